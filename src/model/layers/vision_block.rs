//! The transformer block of the vision towers (Dosovitskiy et al., 2021), whatever norm and feed-forward layer it has.
//!
//! Rows are packed, `[rows, hidden]`. Invariant: rows of different segments never mix.

use candle_core::{Module, Result, Tensor};

use super::segments::{SegmentAttention, Sight};

/// Attention and feed-forward, each behind its norm and added to what came in.
#[derive(Debug, Clone)]
pub struct VisionBlock<N, F> {
    pub attention_norm: N,
    pub attention: SegmentAttention,
    pub forward_norm: N,
    pub feed_forward: F,
}

impl<N: Module, F: Module> VisionBlock<N, F> {
    /// `[rows, hidden]` to `[rows, hidden]`.
    pub fn forward(&self, input: &Tensor, sight: &Sight) -> Result<Tensor> {
        let attended = self.attention.forward(&self.attention_norm.forward(input)?, sight)?;
        let attended = (attended + input)?;
        &attended + self.feed_forward.forward(&self.forward_norm.forward(&attended)?)?
    }
}
