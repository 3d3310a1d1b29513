//! Tests only, on a GPU: what our kernels compute, against the CPU's layers and the same inputs.
//!
//! Run them with `cargo test --features cuda --lib kernel_tests -- --ignored`. Inputs are rounded to the tested format
//! first, so that what is left is the kernels' own rounding.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::api::SequenceStep;
use super::device::open_device;
use super::layers::{
    Arrangement, AttentionPlan, DevicePlan, ExpertSizes, Experts, Pairing, RmsNorm, Rope, RopeSettings, attend, gated,
};
use super::step_rows::{StepRows, likeliest};
use super::trace::Trace;
use super::weights::{Precision, Weights};
use crate::kv::{BLOCK, BlockId, KvShape, KvStore};

const FORMATS: [(DType, f32); 3] = [(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

fn gpu() -> Device {
    open_device("cuda:0").unwrap()
}

fn random(random: &mut ChaCha8Rng, shape: &[usize], dtype: DType) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(-2.0..2.0)).collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn farthest(found: &Tensor, expected: &Tensor) -> f32 {
    let (found, expected) = (numbers(found), numbers(expected));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()));
    found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max)
}

/// Heads of queries, heads of keys and their width.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    width: usize,
}

/// How queries and keys are treated before they meet.
#[derive(Clone, Copy)]
struct Treatment {
    rotated: bool,
    tempered: bool,
    /// Whether norms come first.
    norms: Option<bool>,
    pairing: Pairing,
}

const PLAIN: Treatment = Treatment { rotated: false, tempered: false, norms: None, pairing: Pairing::Halves };

/// The same steps on both devices.
struct Both {
    sizes: Sizes,
    dtype: DType,
    host: KvStore,
    device: KvStore,
    gpu: Device,
    random: ChaCha8Rng,
}

impl Both {
    fn new(sizes: Sizes, dtype: DType, blocks: usize) -> Self {
        let shape = KvShape { layers: 1, kv_heads: sizes.kv_heads, head_dim: sizes.width, blocks };
        let gpu = gpu();
        let host = KvStore::new(shape, DType::F32, &Device::Cpu).unwrap();
        let device = KvStore::new(shape, dtype, &gpu).unwrap();
        Self { sizes, dtype, host, device, gpu, random: ChaCha8Rng::seed_from_u64(7) }
    }

    /// How far the device's answer lies from the host's after one step.
    fn step(&mut self, sequences: &[SequenceStep<'_>], chunk: Option<usize>, treatment: Treatment) -> f32 {
        let Sizes { heads, kv_heads, width } = self.sizes;
        let rows: usize = sequences.iter().map(|sequence| sequence.new).sum();
        let positions: Vec<[u32; 3]> = sequences
            .iter()
            .flat_map(|sequence| (sequence.past..sequence.past + sequence.new).map(|at| [at as u32; 3]))
            .collect();
        let all = random(&mut self.random, &[rows, (heads + 2 * kv_heads) * width], self.dtype);
        let temperatures = random(&mut self.random, &[1, rows, 1], self.dtype);
        let weights = [(); 2].map(|()| random(&mut self.random, &[width], self.dtype));
        let settings = RopeSettings::default();
        let at = std::path::Path::new("config.json");
        let rope = Rope::read(&settings, 10_000.0, width, treatment.pairing, (at, "")).unwrap();
        let host_plan = AttentionPlan::new(sequences, chunk, &self.host).unwrap();
        let angles = |device: &Device, dtype: DType| rope.angles(&positions, dtype, device).unwrap();

        let angles_here = angles(&Device::Cpu, DType::F32);
        let part = |first: usize, heads: usize| {
            let part = all.narrow(1, first * width, heads * width).unwrap();
            part.reshape((rows, heads, width)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
        };
        let norms = weights.clone().map(|weight| RmsNorm::of(weight, 1e-5));
        let treat = |heads: Tensor, norm: &RmsNorm, is_query: bool| {
            let normed = |heads: Tensor, when: bool| match treatment.norms {
                Some(first) if first == when => norm.forward(&heads).unwrap(),
                _ => heads,
            };
            let mut heads = normed(heads, true);
            if treatment.rotated {
                heads = angles_here.rotate(&heads).unwrap();
            }
            if treatment.tempered && is_query {
                heads = heads.broadcast_mul(&temperatures).unwrap();
            }
            normed(heads, false)
        };
        let query = treat(part(0, heads), &norms[0], true);
        let key = treat(part(heads, kv_heads), &norms[1], false);
        self.host.write(0, &key, &part(heads + kv_heads, kv_heads), &host_plan.slots).unwrap();
        let chunked = chunk.is_some();
        let expected = attend(&query, &self.host, 0, &host_plan, host_plan.segments(chunked)).unwrap();

        let there = |tensor: &Tensor| tensor.to_dtype(self.dtype).unwrap().to_device(&self.gpu).unwrap();
        let plan = AttentionPlan::new(sequences, chunk, &self.device).unwrap();
        let plan = DevicePlan::new(&plan, &self.device, (heads, self.dtype, &self.gpu)).unwrap().unwrap();
        let (angles_there, temperatures) = (angles(&self.gpu, self.dtype), there(&temperatures));
        let norms: [RmsNorm; 2] = [0, 1].map(|one| RmsNorm::of(there(&weights[one]), 1e-5));
        let arrangement = Arrangement {
            angles: treatment.rotated.then_some(&angles_there),
            temperatures: treatment.tempered.then_some(&temperatures),
            norms: treatment.norms.map(|_| (&norms[0], &norms[1])),
            norms_first: treatment.norms == Some(true),
        };
        let queries = plan.arrange(&there(&all), &arrangement, &self.device, 0).unwrap();
        let found = plan.attend(&queries, &self.device, 0, chunked).unwrap();
        farthest(&found, &expected)
    }
}

/// Block tables of so many blocks each, scattered over the cache.
fn tables(counts: &[usize], random: &mut ChaCha8Rng) -> Vec<Vec<BlockId>> {
    let mut ids: Vec<u32> = (0..counts.iter().sum::<usize>() as u32).collect();
    ids.shuffle(random);
    let mut ids = ids.into_iter().map(BlockId);
    counts.iter().map(|count| ids.by_ref().take(*count).collect()).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn attention_equals_the_cpus_for_prompts_chunks_and_decodes_side_by_side() {
    let sizes = |heads, kv_heads, width| Sizes { heads, kv_heads, width };
    let shapes =
        [sizes(6, 2, 12), sizes(4, 4, 64), sizes(8, 2, 64), sizes(10, 2, 128), sizes(8, 1, 128), sizes(2, 2, 96)];
    for shape in shapes {
        for (dtype, limit) in FORMATS {
            for chunk in [None, Some(40)] {
                let lengths = [1, 300, 75, 17, 2000];
                let mut random = ChaCha8Rng::seed_from_u64(3);
                let tables = tables(&lengths.map(|length: usize| (length + 70).div_ceil(BLOCK)), &mut random);
                let mut both = Both::new(shape, dtype, tables.iter().map(Vec::len).sum());
                let step = |past: [usize; 5], new: [usize; 5]| -> Vec<SequenceStep<'_>> {
                    (0..5).map(|at| SequenceStep { new: new[at], past: past[at], blocks: &tables[at] }).collect()
                };
                let what =
                    format!("{} x {} x {}, {dtype:?}, chunk {chunk:?}", shape.heads, shape.kv_heads, shape.width);
                let distance = both.step(&step([0; 5], lengths), chunk, PLAIN);
                assert!(distance < limit, "{what}: prompts are off by {distance}");
                let distance = both.step(&step(lengths, [1, 1, 33, 3, 1]), chunk, PLAIN);
                assert!(distance < limit, "{what}: a mixed step is off by {distance}");
                let past = [2, 301, 108, 20, 2001];
                let distance = both.step(&step(past, [1; 5]), chunk, PLAIN);
                assert!(distance < limit, "{what}: a decode is off by {distance}");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn norms_rotation_and_temperature_are_those_of_the_layers() {
    for (dtype, limit) in FORMATS {
        for width in [12, 64, 128] {
            for norms in [None, Some(true), Some(false)] {
                for pairing in [Pairing::Adjacent, Pairing::Halves] {
                    for (rotated, tempered) in [(true, false), (false, true)] {
                        let treatment = Treatment { rotated, tempered, norms, pairing };
                        let mut both = Both::new(Sizes { heads: 4, kv_heads: 2, width }, dtype, 4);
                        let blocks = [BlockId(2), BlockId(0), BlockId(3)];
                        let sequence = SequenceStep { new: 37, past: 0, blocks: &blocks };
                        let distance = both.step(&[sequence], None, treatment);
                        // Products of normed vectors are large, so weights are sharp.
                        assert!(
                            distance < 4.0 * limit,
                            "{dtype:?} {width} {norms:?} {pairing:?} {rotated}: {distance}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn the_device_chooses_what_the_host_would() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let gpu = gpu();
    for vocabulary in [5_usize, 1000, 128_256] {
        let words = vocabulary.div_ceil(32);
        let mut rows: Vec<Vec<f32>> =
            (0..6).map(|_| (0..vocabulary).map(|_| f32::from(random.random_range(-9..9_i8))).collect()).collect();
        rows[3][vocabulary / 2] = f32::NAN;
        let masks: Vec<Option<Vec<u32>>> = (0..6)
            .map(|row| {
                (row % 2 == 1).then(|| (0..words).map(|_| random.random::<u32>() & random.random::<u32>()).collect())
            })
            .collect();
        let masks: Vec<Option<&[u32]>> = masks.iter().map(Option::as_deref).collect();
        let flat = Tensor::from_vec(rows.concat(), (6, vocabulary), &gpu).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let logits = StepRows::of(flat.to_dtype(dtype).unwrap()).unwrap();
            let found = logits.likeliest(&masks, vocabulary).unwrap();
            for ((found, row), mask) in found.iter().zip(&rows).zip(&masks) {
                let expected = likeliest(row, *mask);
                assert!(found.logit == expected.logit || found.logit.is_nan() && expected.logit.is_nan());
                assert!(found.token == expected.token || expected.logit == f32::NEG_INFINITY);
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn experts_together_equal_experts_one_by_one() {
    let mut random_numbers = ChaCha8Rng::seed_from_u64(9);
    let sizes = ExpertSizes { hidden: 200, width: 136, experts: 37, active: 3 };
    let shapes: [(&str, &[usize]); 6] = [
        ("router.weight", &[37, 200]),
        ("experts.gate_up_proj", &[37, 200, 272]),
        ("experts.down_proj", &[37, 136, 200]),
        ("shared_expert.gate_proj.weight", &[136, 200]),
        ("shared_expert.up_proj.weight", &[136, 200]),
        ("shared_expert.down_proj.weight", &[200, 136]),
    ];
    let directory = tempfile::tempdir().unwrap();
    let tensors: HashMap<&str, Tensor> = shapes
        .iter()
        .map(|(name, shape)| (*name, (random(&mut random_numbers, shape, DType::F16) * 0.05).unwrap()))
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F16).unwrap()))
        .collect();
    candle_core::safetensors::save(&tensors, directory.path().join("model.safetensors")).unwrap();
    let gpu = gpu();
    let there = Weights::open(directory.path(), Precision::F16, &gpu).unwrap();
    let here = Weights::open(directory.path(), Precision::F32, &Device::Cpu).unwrap();
    let (there, here) = (Experts::load(&there.root(), sizes).unwrap(), Experts::load(&here.root(), sizes).unwrap());
    for rows in [1, 2, 70, 600, 2500] {
        let input = random(&mut random_numbers, &[rows, 200], DType::F16);
        let expected = here.forward(&input, 0, &mut Trace::off()).unwrap();
        let input = input.to_dtype(DType::F16).unwrap().to_device(&gpu).unwrap();
        let distance = farthest(&there.forward(&input, 0, &mut Trace::off()).unwrap(), &expected);
        assert!(distance < 1e-2, "{rows} rows are off by {distance}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_sum_is_normalised_as_the_layer_does_it() {
    let (gpu, mut numbers) = (gpu(), ChaCha8Rng::seed_from_u64(11));
    for (dtype, limit) in FORMATS {
        for width in [7, 96, 4096, 5120] {
            let [one, other] = [(); 2].map(|()| random(&mut numbers, &[9, width], dtype));
            let weight = random(&mut numbers, &[width], dtype);
            let there = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap().to_device(&gpu).unwrap();
            let (sum, normed) = RmsNorm::of(there(&weight), 1e-5).after_adding(&there(&one), &there(&other)).unwrap();
            let expected = RmsNorm::of(weight, 1e-5).after_adding(&one, &other).unwrap();
            let distance = farthest(&sum, &expected.0).max(farthest(&normed, &expected.1));
            assert!(distance < limit, "{dtype:?} {width}: off by {distance}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn gates_are_those_of_the_layer() {
    let (gpu, mut numbers) = (gpu(), ChaCha8Rng::seed_from_u64(12));
    for (dtype, limit) in FORMATS {
        for (rows, width) in [(1, 7), (5, 96), (70, 1536)] {
            let both = random(&mut numbers, &[rows, 2 * width], dtype);
            let expected = gated(&both, width).unwrap();
            let found = gated(&both.to_dtype(dtype).unwrap().to_device(&gpu).unwrap(), width).unwrap();
            let distance = farthest(&found, &expected);
            assert!(distance < limit, "{dtype:?} {rows} x {width}: off by {distance}");
        }
    }
}
