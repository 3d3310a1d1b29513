//! Attention of one layer, on whatever device the cache lies.

use candle_core::{Result, Tensor};

use super::gathered;
use super::host;
use super::plan::{AttentionPlan, Segment};
use crate::kv::KvStore;

/// Softmax attention of `queries`, `[heads, rows, head_dim]`, over the cached keys and values of `layer`, those of this
/// step included; heads share keys in groups of `heads / kv_heads`. Returns `[rows, heads * head_dim]`.
/// Scores are scaled by `1 / sqrt(head_dim)`; softmax is in f32.
pub fn attend(
    queries: &Tensor,
    cache: &KvStore,
    layer: usize,
    plan: &AttentionPlan<'_>,
    segments: &[Segment],
) -> Result<Tensor> {
    match cache.host(layer) {
        Some(cached) => host::attend(queries, cached, cache.shape(), plan, segments),
        None => gathered::attend(queries, cache, layer, plan, segments),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kv::{BLOCK, BlockId, KvShape};
    use crate::model::api::SequenceStep;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 12, blocks: 16 };
    const HEADS: usize = 6;

    struct Case {
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    }

    fn case(rows: usize, seed: u64) -> Case {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut tensor = |heads: usize| {
            let values: Vec<f32> =
                (0..heads * rows * SHAPE.head_dim).map(|_| random.random_range(-2.0_f32..2.0)).collect();
            Tensor::from_vec(values, (heads, rows, SHAPE.head_dim), &Device::Cpu).unwrap()
        };
        Case { queries: tensor(HEADS), keys: tensor(2), values: tensor(2) }
    }

    /// Attention written down plainly, in f64, for one sequence without a cache.
    fn plainly(case: &Case, chunk: usize) -> Vec<f32> {
        let read = |tensor: &Tensor| tensor.to_vec3::<f32>().unwrap();
        let (queries, keys, values) = (read(&case.queries), read(&case.keys), read(&case.values));
        let rows = queries[0].len();
        let mut out = Vec::new();
        for row in 0..rows {
            for (head, queries) in queries.iter().enumerate() {
                let shared = head / (HEADS / 2);
                let visible = row / chunk * chunk..row + 1;
                let score = |key: &Vec<f32>| {
                    let dot: f64 = queries[row].iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    (dot / (SHAPE.head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys[shared][visible.clone()].iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..SHAPE.head_dim).map(|component| {
                    let column = values[shared][visible.clone()].iter().map(|value| f64::from(value[component]));
                    (weights.iter().zip(column).map(|(weight, value)| weight * value).sum::<f64>() / sum) as f32
                }));
            }
        }
        out
    }

    /// Runs the rows of a case in pieces of `piece` rows through a paged cache.
    fn paged(mut cache: KvStore, case: &Case, chunk: Option<usize>, piece: usize) -> Vec<f32> {
        let table: Vec<BlockId> = [7, 2, 11, 4, 0, 9].map(BlockId).to_vec();
        let rows = case.queries.dim(1).unwrap();
        let mut out = Vec::new();
        for past in (0..rows).step_by(piece) {
            let new = piece.min(rows - past);
            let plan = AttentionPlan::new(&[SequenceStep { new, past, blocks: &table }], chunk, &cache).unwrap();
            let cut = |tensor: &Tensor| tensor.narrow(1, past, new).unwrap().contiguous().unwrap();
            cache.write(1, &cut(&case.keys), &cut(&case.values), &plan.slots).unwrap();
            let found = attend(&cut(&case.queries), &cache, 1, &plan, plan.segments(chunk.is_some())).unwrap();
            assert_eq!(found.dims(), [new, HEADS * SHAPE.head_dim]);
            out.extend(found.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        out
    }

    fn farthest(found: &[f32], expected: &[f32]) -> f32 {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn paged_attention_equals_plain_attention_in_pieces_of_any_size() {
        for chunk in [None, Some(5), Some(BLOCK), Some(24)] {
            let case = case(70, 3);
            let expected = plainly(&case, chunk.unwrap_or(usize::MAX));
            for piece in [1, 7, 16, 70] {
                let host = KvStore::new(SHAPE, DType::F32, &Device::Cpu).unwrap();
                let distance = farthest(&paged(host, &case, chunk, piece), &expected);
                assert!(distance < 2e-6, "host, chunk {chunk:?}, piece {piece}: {distance}");
                let distance = farthest(&paged(KvStore::in_tensors(SHAPE).unwrap(), &case, chunk, piece), &expected);
                assert!(distance < 2e-6, "tensors, chunk {chunk:?}, piece {piece}: {distance}");
            }
        }
    }

    #[test]
    fn on_the_host_a_row_has_the_same_bits_in_any_piece() {
        let case = case(50, 4);
        let run = |piece| paged(KvStore::new(SHAPE, DType::F32, &Device::Cpu).unwrap(), &case, Some(20), piece);
        let whole = run(50);
        assert_eq!(run(1), whole);
        assert_eq!(run(13), whole);
    }

    #[test]
    fn sequences_of_a_step_do_not_see_each_other() {
        let (one, two) = (case(20, 5), case(9, 6));
        let mut cache = KvStore::new(SHAPE, DType::F32, &Device::Cpu).unwrap();
        let tables = [[BlockId(3), BlockId(1)], [BlockId(0), BlockId(2)]];
        let sequences = [
            SequenceStep { new: 20, past: 0, blocks: &tables[0] },
            SequenceStep { new: 9, past: 0, blocks: &tables[1] },
        ];
        let plan = AttentionPlan::new(&sequences, None, &cache).unwrap();
        let both = |pick: fn(&Case) -> &Tensor| Tensor::cat(&[pick(&one), pick(&two)], 1).unwrap();
        cache.write(0, &both(|case| &case.keys), &both(|case| &case.values), &plan.slots).unwrap();
        let found = attend(&both(|case| &case.queries), &cache, 0, &plan, plan.segments(false)).unwrap();
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = [plainly(&one, usize::MAX), plainly(&two, usize::MAX)].concat();
        assert!(farthest(&found, &expected) < 2e-6);
    }
}
