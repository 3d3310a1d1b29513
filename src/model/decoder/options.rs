//! What the text decoders differ in. A family's configuration becomes one of these; the decoder knows no family.

use crate::model::api::GeneratorShape;
use crate::model::layers::{ExpertSizes, Rope};

/// A decoder in full.
#[derive(Debug, Clone)]
pub struct DecoderOptions {
    pub hidden: usize,
    pub vocabulary: usize,
    /// Largest number of positions.
    pub context: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of all norms.
    pub epsilon: f64,
    pub rope: Rope,
    pub qk_norm: QkNorm,
    /// Scales queries of layers without rotation by their position.
    pub temperature: Option<Temperature>,
    /// Length of a chunk, for layers that see only theirs.
    pub chunk: Option<usize>,
    pub biases: Biases,
    /// The head is the embedding matrix.
    pub tied: bool,
    /// What the feed-forward part of a layer is called.
    pub feed_forward_name: &'static str,
    pub layers: Vec<LayerOptions>,
    pub end_tokens: Vec<u32>,
}

/// Which linear maps have a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Biases {
    pub query_key_value: bool,
    pub attention_output: bool,
    pub feed_forward: bool,
}

/// Normalisation of queries and keys over a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// `q_norm` and `k_norm`, before the rotation, on all layers (Qwen3).
    Weighted,
    /// Without weights, after the rotation, on layers with one (Llama 4).
    Plain,
}

/// `1 + scale * ln(1 + floor((position + 1) / floor))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    pub scale: f64,
    pub floor: f64,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerOptions {
    /// Queries and keys are rotated.
    pub rotated: bool,
    /// Sees its chunk only.
    pub chunked: bool,
    pub feed_forward: FeedForwardOptions,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForwardOptions {
    Dense { width: usize },
    Experts(ExpertSizes),
}

impl DecoderOptions {
    /// What who drives the generator must know; `cached_bytes` is the size of a number in its cache.
    pub fn shape(&self, cached_bytes: usize) -> GeneratorShape {
        GeneratorShape {
            vocabulary: self.vocabulary,
            hidden: self.hidden,
            context: self.context,
            end_tokens: self.end_tokens.clone(),
            layers: self.layers.len(),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            cached_bytes,
            experts: self.layers.iter().find_map(|layer| match layer.feed_forward {
                FeedForwardOptions::Experts(sizes) => Some((sizes.active, sizes.experts)),
                FeedForwardOptions::Dense { .. } => None,
            }),
        }
    }
}

impl Temperature {
    /// The factor of a query at `position`.
    pub fn factor(&self, position: u32) -> f32 {
        (((f64::from(position) + 1.0) / self.floor).floor().ln_1p() * self.scale + 1.0) as f32
    }
}
