//! BERT (Devlin et al., 2019) and RoBERTa (Liu et al., 2019) as sentence encoders: post-norm blocks and pooled tokens.
//!
//! Loads the layout of Hugging Face's `BertModel`, `RobertaModel` and `XLMRobertaModel`, with the side files of a
//! sentence-transformers directory. Texts of a batch are packed one after the other, `[tokens, hidden]`, without
//! padding; attention runs over texts of equal length together. Invariant: a text never sees another, so its vector does
//! not depend on its batch.

use std::ops::Range;
use std::path::Path;

use candle_core::{D, DType, Tensor};
use candle_nn::{LayerNorm, Module};
use serde::Deserialize;

use super::api::{Encoder, ModelError, Pixels, TokenIds};
use super::config::{Activation, Section, Stack, TextTower, positive};
use super::embedding_input::{TextOnly, texts_only};
use super::family::{CONFIG, Parts};
use super::layers::{Linear, activate, attend_whole, layer_norm, split_heads, unit_rows};
use super::sentence::{Pooling, SentenceSettings};
use super::tokenizer::{Padding, TextProcessor};
use super::trace::Trace;
use super::weights::{Scope, Weights, read_json};

/// Attention scores that are held at a time, over all heads.
const MOST_SCORES: usize = 1 << 23;

/// Loads the BERT in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    load_from(directory, weights, Positions::FromZero)
}

/// Loads the RoBERTa in `directory`.
pub fn load_roberta(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    load_from(directory, weights, Positions::FromPadding)
}

fn load_from(directory: &Path, weights: &Weights, positions: Positions) -> Result<Parts, ModelError> {
    let config = BertConfig::read(&directory.join(CONFIG), positions)?;
    let SentenceSettings { pooling, limit, lower_case, files } =
        SentenceSettings::read(directory, config.tower.stack.hidden)?;
    let text = TextProcessor::load_up_to(directory, &config.tower, Padding::None, limit)?;
    let parts = Parts::embedding(TextOnly { text, lower_case }, Bert::load(config, pooling, weights)?);
    Ok(Parts { settings: files, ..parts })
}

/// Where positions are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// From 0, as BERT does.
    FromZero,
    /// From one past the padding id, as RoBERTa does; a padding token inside a text has the padding's own position.
    FromPadding,
}

/// What config.json says of the model.
#[derive(Debug, Clone, Copy)]
pub struct BertConfig {
    /// Its `positions` are those that a text can have, not the rows of the table.
    pub tower: TextTower,
    /// Rows of the position table that no token of a text can have.
    reserved: usize,
    positions: Positions,
    segments: usize,
}

impl BertConfig {
    /// Reads config.json.
    pub fn read(file: &Path, positions: Positions) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(flatten)]
            section: Section,
            type_vocab_size: Option<usize>,
            position_embedding_type: Option<String>,
            #[serde(default)]
            is_decoder: bool,
        }
        let found: File = read_json(file)?;
        if let Some(kind) = found.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(ModelError::unsupported(file, "position_embedding_type", kind, "only absolute is"));
        }
        if found.is_decoder {
            return Err(ModelError::unsupported(file, "is_decoder", true, "only encoders are"));
        }
        let stack = Stack {
            hidden: 768,
            intermediate: 3072,
            layers: 12,
            heads: 12,
            epsilon: 1e-12,
            activation: Activation::GeluErf,
        };
        let (vocabulary, pad_token) = match positions {
            Positions::FromZero => (30522, 0),
            Positions::FromPadding => (50265, 1),
        };
        let default = TextTower { stack, vocabulary, positions: 512, end_token: 0, pad_token };
        let mut tower = found.section.top_level_text(default, file)?;
        let reserved = match positions {
            Positions::FromZero => 0,
            Positions::FromPadding => tower.pad_token as usize + 1,
        };
        if reserved >= tower.positions {
            let detail = format!("pad_token_id {} leaves no position for a text", tower.pad_token);
            return Err(ModelError::malformed(file, detail));
        }
        tower.positions -= reserved;
        let segments = positive(found.type_vocab_size, 2, "type_vocab_size", file)?;
        Ok(Self { tower, reserved, positions, segments })
    }

    /// The position of each token of a text.
    fn positions_of<'a>(&'a self, ids: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let pad = self.tower.pad_token;
        ids.iter().enumerate().scan(pad, move |last, (index, id)| match self.positions {
            Positions::FromZero => Some(index as u32),
            Positions::FromPadding if *id == pad => Some(pad),
            Positions::FromPadding => {
                *last += 1;
                Some(*last)
            }
        })
    }
}

/// The model with its pooling.
pub struct Bert {
    config: BertConfig,
    pooling: Vec<Pooling>,
    embedding: Embedding,
    blocks: Vec<Block>,
}

impl Bert {
    /// `pooling` must name at least one way.
    pub fn load(config: BertConfig, pooling: Vec<Pooling>, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let layers = root.at("encoder").at("layer");
        let stack = &config.tower.stack;
        let blocks: Result<_, _> = (0..stack.layers).map(|index| Block::load(&layers.at(index), stack)).collect();
        Ok(Self { embedding: Embedding::load(&root.at("embeddings"), &config)?, blocks: blocks?, config, pooling })
    }

    /// One pooled row per text, in order, f32 and not yet of unit length: `[texts, dimensions]`. Shows `hidden_0` (the
    /// embeddings) and `hidden_i` after block i, each `[tokens, hidden]` with shorter texts first.
    pub fn pooled(&self, texts: &[&TokenIds], trace: &mut Trace) -> Result<Tensor, ModelError> {
        let limit = self.config.tower.positions;
        if texts.is_empty() || texts.iter().any(|text| !(1..=limit).contains(&text.0.len())) {
            return Err(ModelError::Input { detail: format!("texts must have 1 to {limit} tokens") });
        }
        let packed = Packed::new(texts, self.config.tower.stack.heads);
        let mut hidden = self.embedding.forward(&packed, &self.config)?;
        trace.show(format_args!("hidden_0"), &hidden);
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, &packed.runs)?;
            trace.show(format_args!("hidden_{}", index + 1), &hidden);
        }
        let hidden = hidden.to_dtype(DType::F32)?;
        let rows: candle_core::Result<Vec<_>> =
            packed.rows.iter().map(|rows| pool(&hidden.narrow(0, rows.start, rows.len())?, &self.pooling)).collect();
        Ok(Tensor::stack(&rows?, 0)?)
    }
}

impl Encoder for Bert {
    fn dimensions(&self) -> usize {
        self.config.tower.stack.hidden * self.pooling.len()
    }

    fn takes_texts(&self) -> bool {
        true
    }

    fn takes_images(&self) -> bool {
        false
    }

    fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        Ok(unit_rows(&self.pooled(texts, &mut Trace::off())?)?)
    }

    fn embed_images(&mut self, _images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
        Err(texts_only())
    }
}

/// `[tokens, hidden]` of one text to `[hidden * ways]`.
fn pool(states: &Tensor, ways: &[Pooling]) -> candle_core::Result<Tensor> {
    let tokens = states.dim(0)?;
    let parts: candle_core::Result<Vec<_>> = ways
        .iter()
        .map(|way| match way {
            Pooling::First => states.get(0),
            Pooling::Last => states.get(tokens - 1),
            Pooling::Max => states.max(0),
            Pooling::Mean => states.mean(0),
            Pooling::MeanBySquareRoot => states.sum(0)? / (tokens as f64).sqrt(),
        })
        .collect();
    Tensor::cat(&parts?, D::Minus1)
}

/// Texts of equal length that lie one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    first: usize,
    texts: usize,
    length: usize,
}

/// Texts one after the other, shorter ones first, so that equal lengths lie side by side.
struct Packed<'a> {
    /// In packed order.
    texts: Vec<&'a TokenIds>,
    /// The packed rows of each text, in the order in which the texts were given.
    rows: Vec<Range<usize>>,
    runs: Vec<Run>,
}

impl<'a> Packed<'a> {
    fn new(texts: &[&'a TokenIds], heads: usize) -> Self {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|index| texts[*index].0.len());
        let mut rows = vec![0..0; texts.len()];
        let mut runs: Vec<Run> = Vec::new();
        let mut end = 0;
        for index in &order {
            let length = texts[*index].0.len();
            rows[*index] = end..end + length;
            match runs.last_mut() {
                Some(run) if run.length == length && (run.texts + 1) * heads * length * length <= MOST_SCORES => {
                    run.texts += 1;
                }
                _ => runs.push(Run { first: end, texts: 1, length }),
            }
            end += length;
        }
        Self { texts: order.into_iter().map(|index| texts[index]).collect(), rows, runs }
    }
}

/// Token and position embeddings, normalised.
struct Embedding {
    tokens: Tensor,
    /// With the first segment's vector added, for every text is one segment.
    positions: Tensor,
    norm: LayerNorm,
}

impl Embedding {
    fn load(scope: &Scope<'_>, config: &BertConfig) -> Result<Self, ModelError> {
        let TextTower { stack, vocabulary, positions, .. } = config.tower;
        let table = |name: &str, rows: usize| scope.at(name).tensor("weight", &[rows, stack.hidden]);
        let segment = table("token_type_embeddings", config.segments)?.narrow(0, 0, 1)?;
        Ok(Self {
            tokens: table("word_embeddings", vocabulary)?,
            positions: table("position_embeddings", positions + config.reserved)?.broadcast_add(&segment)?,
            norm: layer_norm(&scope.at("LayerNorm"), stack.hidden, stack.epsilon)?,
        })
    }

    /// `[tokens, hidden]`.
    fn forward(&self, packed: &Packed<'_>, config: &BertConfig) -> candle_core::Result<Tensor> {
        let rows = |table: &Tensor, ids: Vec<u32>| {
            let count = ids.len();
            table.index_select(&Tensor::from_vec(ids, count, table.device())?, 0)
        };
        let ids = packed.texts.iter().flat_map(|text| text.0.iter().copied()).collect();
        let positions = packed.texts.iter().flat_map(|text| config.positions_of(&text.0)).collect();
        self.norm.forward(&(rows(&self.tokens, ids)? + rows(&self.positions, positions)?)?)
    }
}

/// Attention and feed-forward, each added to what came in and normalised after that.
struct Block {
    fused: Linear,
    outward: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    forward_norm: LayerNorm,
    heads: usize,
    activation: Activation,
}

impl Block {
    fn load(scope: &Scope<'_>, stack: &Stack) -> Result<Self, ModelError> {
        let (hidden, wide) = (stack.hidden, stack.intermediate);
        let attention = scope.at("attention");
        // One wide product instead of three narrow ones.
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for name in ["query", "key", "value"] {
            let part = attention.at("self").at(name);
            weights.push(part.tensor("weight", &[hidden, hidden])?);
            biases.push(part.tensor("bias", &[hidden])?);
        }
        let (inward, outward) = (attention.at("output"), scope.at("output"));
        Ok(Self {
            fused: Linear::from_weight(Tensor::cat(&weights, 0)?, Some(Tensor::cat(&biases, 0)?)),
            outward: Linear::load_with_bias(&inward.at("dense"), hidden, hidden)?,
            attention_norm: layer_norm(&inward.at("LayerNorm"), hidden, stack.epsilon)?,
            inner: Linear::load_with_bias(&scope.at("intermediate").at("dense"), hidden, wide)?,
            outer: Linear::load_with_bias(&outward.at("dense"), wide, hidden)?,
            forward_norm: layer_norm(&outward.at("LayerNorm"), hidden, stack.epsilon)?,
            heads: stack.heads,
            activation: stack.activation,
        })
    }

    /// `[tokens, hidden]` to the same.
    fn forward(&self, input: &Tensor, runs: &[Run]) -> candle_core::Result<Tensor> {
        let seen = self.outward.forward(&self.attention(&self.fused.forward(input)?, runs)?)?;
        let attended = self.attention_norm.forward(&(seen + input)?)?;
        let wide = activate(self.activation, &self.inner.forward(&attended)?)?;
        self.forward_norm.forward(&(self.outer.forward(&wide)? + attended)?)
    }

    /// `[tokens, 3 * hidden]` to `[tokens, hidden]`.
    fn attention(&self, fused: &Tensor, runs: &[Run]) -> candle_core::Result<Tensor> {
        let width = fused.dim(1)?;
        let parts: candle_core::Result<Vec<_>> = runs
            .iter()
            .map(|run| {
                let rows = fused.narrow(0, run.first, run.texts * run.length)?;
                let heads = split_heads(&rows.reshape((run.texts, run.length, width))?, 3, self.heads)?;
                attend_whole(&heads[0], &heads[1], &heads[2], None)?.flatten_to(1)
            })
            .collect();
        Tensor::cat(&parts?, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_lie_side_by_side_and_every_text_keeps_its_place() {
        let texts: Vec<TokenIds> = [3, 1, 3, 2].iter().map(|length| TokenIds(vec![7; *length])).collect();
        let packed = Packed::new(&texts.iter().collect::<Vec<_>>(), 2);
        assert_eq!(packed.rows, [3..6, 0..1, 6..9, 1..3]);
        let run = |first, texts, length| Run { first, texts, length };
        assert_eq!(packed.runs, [run(0, 1, 1), run(1, 1, 2), run(3, 2, 3)]);
        // Scores of too many texts at a time would not fit into memory.
        let packed = Packed::new(&texts.iter().collect::<Vec<_>>(), MOST_SCORES / 9);
        assert_eq!(packed.runs.len(), 4);
    }

    #[test]
    fn positions_begin_past_the_padding_where_the_family_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        std::fs::write(&file, r#"{"max_position_embeddings": 514, "pad_token_id": 1}"#).unwrap();
        let positions = |kind| {
            let config = BertConfig::read(&file, kind).unwrap();
            (config.tower.positions, config.positions_of(&[0, 5, 1, 2]).collect::<Vec<_>>())
        };
        assert_eq!(positions(Positions::FromZero), (514, vec![0, 1, 2, 3]));
        assert_eq!(positions(Positions::FromPadding), (512, vec![2, 3, 1, 4]));
    }

    #[test]
    fn every_way_of_pooling_follows_its_formula() {
        let states =
            Tensor::new(&[[1f32, -4.0], [3.0, 0.0], [2.0, 1.0], [2.0, -1.0]], &candle_core::Device::Cpu).unwrap();
        for (way, expected) in [
            (Pooling::First, [1.0, -4.0]),
            (Pooling::Last, [2.0, -1.0]),
            (Pooling::Max, [3.0, 1.0]),
            (Pooling::Mean, [2.0, -1.0]),
            (Pooling::MeanBySquareRoot, [4.0, -2.0]),
        ] {
            assert_eq!(pool(&states, &[way]).unwrap().to_vec1::<f32>().unwrap(), expected, "{way:?}");
        }
        assert_eq!(pool(&states, &[Pooling::First, Pooling::Last]).unwrap().dims(), [4]);
    }
}
