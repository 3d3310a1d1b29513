//! A text decoder over a paged cache: packed tokens of many sequences in, logits and hidden states out.
//!
//! Knows neither family nor tokenizer. Invariant: a row's result depends on its own sequence alone.

use candle_core::{DType, Device, Result, Tensor};

use super::layer::{Layer, StepContext};
use super::options::DecoderOptions;
use crate::kv::{KvShape, KvStore};
use crate::model::api::{GeneratorShape, ModelError, Splice, Step, StepOutput};
use crate::model::layers::{AttentionPlan, DevicePlan, Linear, RmsNorm};
use crate::model::step_rows::StepRows;
use crate::model::trace::Trace;
use crate::model::weights::{Matrix, Scope, Usage};

/// A loaded decoder.
pub struct Decoder {
    options: DecoderOptions,
    /// `[vocabulary, hidden]`
    embeddings: Matrix,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    /// Of activations.
    dtype: DType,
    /// Of keys and values.
    cached: DType,
    device: Device,
}

impl Decoder {
    /// Reads embeddings, layers and the last norm below `scope`, and the head below `head` unless it is tied.
    pub fn load(scope: &Scope<'_>, head: &Scope<'_>, options: DecoderOptions) -> std::result::Result<Self, ModelError> {
        let DecoderOptions { vocabulary, hidden, .. } = options;
        let table = scope.at("embed_tokens");
        let usage = if options.tied { Usage::TableAndMap } else { Usage::Table };
        let embeddings = table.lookup("weight", (vocabulary, hidden), usage)?;
        let head = match options.tied {
            // A table of floats is no map of blocks, but a table of blocks is.
            true if scope.quantises() && !table.keeps_blocks("weight", vocabulary, hidden)? => {
                Linear::load(&table, hidden, vocabulary)?
            }
            true => match &embeddings {
                Matrix::Dense(embeddings) => Linear::from_weight(embeddings.clone(), None),
                blocks => Linear::new(blocks.clone(), None)?,
            },
            false => Linear::load(head, hidden, vocabulary)?,
        };
        let layers = scope.at("layers");
        let layers = (0..options.layers.len()).map(|index| Layer::load(&layers.at(index), &options, index));
        Ok(Self {
            layers: layers.collect::<std::result::Result<_, _>>()?,
            norm: RmsNorm::load(&scope.at("norm"), options.hidden, options.epsilon)?,
            head,
            dtype: scope.activations(),
            cached: scope.cached(),
            device: scope.device().clone(),
            embeddings,
            options,
        })
    }

    pub fn shape(&self) -> GeneratorShape {
        self.options.shape(self.cached.size_in_bytes())
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A cache of so many blocks.
    pub fn cache(&self, blocks: usize) -> Result<KvStore> {
        let DecoderOptions { kv_heads, head_dim, .. } = self.options;
        KvStore::new(KvShape { layers: self.layers.len(), kv_heads, head_dim, blocks }, self.cached, &self.device)
    }

    /// One forward pass; see [`crate::model::api::Generator::step`].
    pub fn step(
        &self,
        step: &Step<'_>,
        cache: &mut KvStore,
        trace: &mut Trace,
    ) -> std::result::Result<StepOutput, ModelError> {
        self.check(step)?;
        let plan = AttentionPlan::new(step.sequences, self.options.chunk, cache)?;
        let context = StepContext {
            kernels: DevicePlan::new(&plan, cache, (self.options.heads, self.dtype, &self.device))?,
            plan,
            angles: self.options.rope.angles(step.positions, self.dtype, &self.device)?,
            temperatures: self.temperatures(step.positions)?,
        };
        let mut hidden = self.embed(step)?;
        trace.show(format_args!("text.inputs_embeds"), &hidden);
        let wanted = Wanted::of(step, trace.is_on());
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let mut attended = layer.attend(&hidden, &context, cache, trace)?;
            if let Some(rows) = if last { wanted.tensor(&self.device)? } else { None } {
                (hidden, attended) = (hidden.index_select(&rows, 0)?, attended.index_select(&rows, 0)?);
            }
            hidden = layer.finish(&hidden, &attended, trace)?;
            trace.show(format_args!("text.layer_{index}"), &hidden);
            hidden = add_deep(hidden, step.splices, index, if last { &wanted } else { &Wanted::ALL })?;
        }
        let hidden = self.norm.forward(&hidden)?;
        trace.show(format_args!("text.final_norm"), &hidden);
        self.output(&hidden, step, &wanted)
    }

    fn check(&self, step: &Step<'_>) -> std::result::Result<(), ModelError> {
        let input = |detail: String| Err(ModelError::Input { detail });
        let rows = step.tokens.len();
        let counted: usize = step.sequences.iter().map(|sequence| sequence.new).sum();
        if rows == 0 || rows != counted || rows != step.positions.len() {
            return input(format!(
                "a step of {rows} tokens has {counted} in its sequences; both must be equal and not 0"
            ));
        }
        if let Some(id) = step.tokens.iter().find(|id| **id as usize >= self.options.vocabulary) {
            return input(format!("token id {id} lies outside the vocabulary of {}", self.options.vocabulary));
        }
        let context = self.options.context;
        if let Some(sequence) = step.sequences.iter().find(|sequence| sequence.past + sequence.new > context) {
            let length = sequence.past + sequence.new;
            return input(format!("a sequence of {length} tokens is longer than the context of {context}"));
        }
        for splice in step.splices {
            let (features, width) = splice.features.rows.dims2()?;
            let fits = splice.row + splice.count <= rows && splice.first + splice.count <= features;
            if !fits || width != self.options.hidden {
                return input(format!("features [{features}, {width}] do not fit rows {} of the step", splice.row));
            }
        }
        Ok(())
    }

    /// `[1, rows, 1]`, for models that have them.
    fn temperatures(&self, positions: &[[u32; 3]]) -> Result<Option<Tensor>> {
        let Some(temperature) = self.options.temperature else { return Ok(None) };
        let factors: Vec<f32> = positions.iter().map(|position| temperature.factor(position[0])).collect();
        let size = (1, factors.len(), 1);
        Ok(Some(Tensor::from_vec(factors, size, &self.device)?.to_dtype(self.dtype)?))
    }

    /// Token embeddings with the features of pictures written over them.
    fn embed(&self, step: &Step<'_>) -> Result<Tensor> {
        let ids = Tensor::new(step.tokens, &self.device)?;
        let embedded = match &self.embeddings {
            Matrix::Dense(table) => table.index_select(&ids, 0)?,
            Matrix::Quantised(table) => table.embedding(&ids)?,
            Matrix::Stacked(_) => candle_core::bail!("a table of embeddings has one format"),
        };
        let embedded = embedded.to_dtype(self.dtype)?;
        if step.splices.is_empty() {
            return Ok(embedded);
        }
        let mut splices: Vec<&Splice<'_>> = step.splices.iter().filter(|splice| splice.count > 0).collect();
        splices.sort_by_key(|splice| splice.row);
        let (mut parts, mut next) = (Vec::new(), 0);
        for splice in splices {
            if splice.row > next {
                parts.push(embedded.narrow(0, next, splice.row - next)?);
            }
            parts.push(splice.features.rows.narrow(0, splice.first, splice.count)?.to_dtype(self.dtype)?);
            next = splice.row + splice.count;
        }
        if next < step.tokens.len() {
            parts.push(embedded.narrow(0, next, step.tokens.len() - next)?);
        }
        Tensor::cat(&parts, 0)
    }

    fn output(&self, hidden: &Tensor, step: &Step<'_>, wanted: &Wanted) -> std::result::Result<StepOutput, ModelError> {
        let pick = |rows: &[usize]| -> Result<Tensor> {
            let rows: Vec<u32> = rows.iter().map(|row| wanted.place(*row)).collect();
            hidden.index_select(&Tensor::new(rows, &self.device)?, 0)
        };
        let logits = match step.logits {
            [] => StepRows::default(),
            rows => StepRows::of(self.head.forward(&pick(rows)?)?)?,
        };
        let states = match step.hidden {
            [] => StepRows::default(),
            rows => StepRows::of(pick(rows)?)?,
        };
        // What fails on the device fails here, and not at the first look at what was computed.
        self.device.synchronize()?;
        Ok(StepOutput { logits, hidden: states })
    }
}

/// The rows that are carried through the last layer's second half.
struct Wanted {
    /// Ascending; None for all.
    rows: Option<Vec<u32>>,
}

impl Wanted {
    const ALL: Self = Self { rows: None };

    fn of(step: &Step<'_>, all: bool) -> Self {
        if all || step.logits.len() + step.hidden.len() >= step.tokens.len() {
            return Self { rows: None };
        }
        let mut rows: Vec<u32> = step.logits.iter().chain(step.hidden).map(|row| *row as u32).collect();
        rows.sort_unstable();
        rows.dedup();
        // Something must be carried, or tensors would be empty.
        if rows.is_empty() {
            rows.push(0);
        }
        Self { rows: Some(rows) }
    }

    fn tensor(&self, device: &Device) -> Result<Option<Tensor>> {
        self.rows.as_deref().map(|rows| Tensor::new(rows, device)).transpose()
    }

    fn carries(&self, row: usize) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows.binary_search(&(row as u32)).is_ok())
    }

    /// Where a row of the step lies among the carried ones, if it is one of them.
    fn place(&self, row: usize) -> u32 {
        let row = row as u32;
        match &self.rows {
            Some(rows) => rows.partition_point(|carried| *carried < row) as u32,
            None => row,
        }
    }
}

/// Adds the features that a picture has for this layer (Qwen3-VL's deepstack) to those of its rows that `hidden` has.
fn add_deep(hidden: Tensor, splices: &[Splice<'_>], layer: usize, carried: &Wanted) -> Result<Tensor> {
    splices.iter().try_fold(hidden, |hidden, splice| {
        let Some(deep) = splice.features.deep.get(layer) else { return Ok(hidden) };
        let (mut places, mut added) = (Vec::new(), Vec::new());
        for offset in (0..splice.count).filter(|offset| carried.carries(splice.row + offset)) {
            places.push(carried.place(splice.row + offset));
            added.push((splice.first + offset) as u32);
        }
        if places.is_empty() {
            return Ok(hidden);
        }
        let device = hidden.device();
        let added = deep.index_select(&Tensor::new(added, device)?, 0)?.to_dtype(hidden.dtype())?;
        hidden.index_add(&Tensor::new(places, device)?, &added, 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::model::api::{Features, SequenceStep};
    use crate::model::fixture;
    use crate::model::registry::load;
    use crate::model::weights::Precision;

    #[test]
    fn deep_features_of_the_last_layer_reach_their_own_rows_whichever_are_wanted() {
        let loaded = load(&fixture::model("llama3-tied"), Precision::F32, &Device::Cpu).unwrap();
        let mut generator = loaded.generator.unwrap().generator;
        let (layers, width) = (generator.shape().layers, generator.shape().hidden);
        let rows = |seed: usize| -> Vec<f32> { (0..4 * width).map(|at| ((at * 7 + seed) % 13) as f32 * 0.1).collect() };
        let tensor = |seed: usize| Tensor::from_vec(rows(seed), (4, width), &Device::Cpu).unwrap();
        let features = Features { rows: tensor(0), deep: (1..=layers).map(tensor).collect() };
        let splice = Splice { row: 2, features: &features, first: 1, count: 3 };
        let tokens = [5, 6, 7, 7, 7, 8];
        let positions: Vec<[u32; 3]> = (0..6).map(|position| [position; 3]).collect();
        let mut hidden = |wanted: &[usize]| {
            let sequences = [SequenceStep { new: 6, past: 0, blocks: &[BlockId(0)] }];
            let (tokens, positions, splices) = (&tokens, &positions, &[splice]);
            let step = Step { tokens, positions, sequences: &sequences, splices, logits: &[], hidden: wanted };
            let mut cache = generator.cache(1).unwrap();
            let states = generator.step(&step, &mut cache, &mut Trace::off()).unwrap().hidden;
            states.grouped(&[wanted.len()], width).unwrap().remove(0)
        };
        let all = hidden(&[0, 1, 2, 3, 4, 5]);
        for wanted in [vec![5], vec![0, 3], vec![2, 4, 5], vec![1]] {
            let some = hidden(&wanted);
            for (found, row) in some.chunks(width).zip(&wanted) {
                let expected = &all[row * width..(row + 1) * width];
                let distance = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(distance < 1e-5, "row {row} of {wanted:?} is off by {distance}");
            }
        }
    }

    #[test]
    fn looking_into_a_step_changes_nothing_of_what_it_computes() {
        for name in ["llama3-tied", "llama3-untied", "llama4-a", "llama4-b", "qwen25-vl", "qwen3-vl"] {
            let loaded = load(&fixture::model(name), Precision::F32, &Device::Cpu).unwrap();
            let mut generator = loaded.generator.unwrap().generator;
            let tokens: Vec<u32> = (5..45).collect();
            let positions: Vec<[u32; 3]> = (0..40).map(|position| [position; 3]).collect();
            let blocks = [BlockId(2), BlockId(0), BlockId(1)];
            let mut logits = |mut trace: Trace| {
                let mut cache = generator.cache(3).unwrap();
                let mut found = Vec::new();
                for rows in [0..37, 37..38, 38..40] {
                    let sequences = [SequenceStep { new: rows.len(), past: rows.start, blocks: &blocks }];
                    let all: Vec<usize> = (0..rows.len()).collect();
                    let (tokens, positions) = (&tokens[rows.clone()], &positions[rows]);
                    let step =
                        Step { tokens, positions, sequences: &sequences, splices: &[], logits: &all, hidden: &[] };
                    found.extend(generator.step(&step, &mut cache, &mut trace).unwrap().logits.into_host().unwrap());
                }
                found
            };
            assert_eq!(logits(Trace::off()), logits(Trace::on()), "{name}");
        }
    }
}
