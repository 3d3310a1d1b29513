//! The layers that the encoder families share: pre-norm transformer blocks, token and patch embeddings.
//!
//! Follows "Attention Is All You Need" with the norm before each block, as the vision transformer (Dosovitskiy et al.,
//! 2021) and CLIP (Radford et al., 2021) have it. Activations have the shape `[batch, positions, hidden]`.
//! Invariant: rows of a batch never mix; padding on the right is invisible under the causal mask.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{LayerNorm, Module};

use super::feed_forward::FeedForward;
use super::linear::Linear;
use crate::model::api::{ModelError, Pixels};
use crate::model::config::{Stack, VisionTower};
use crate::model::weights::Scope;

/// A linear map with a bias: `[.., inputs]` to `[.., outputs]`.
pub fn linear(scope: &Scope<'_>, inputs: usize, outputs: usize) -> std::result::Result<Linear, ModelError> {
    Linear::load_with_bias(scope, inputs, outputs)
}

/// A linear map without a bias.
pub fn projection(scope: &Scope<'_>, inputs: usize, outputs: usize) -> std::result::Result<Linear, ModelError> {
    Linear::load(scope, inputs, outputs)
}

/// Layer normalisation over the last axis.
pub fn layer_norm(scope: &Scope<'_>, size: usize, epsilon: f64) -> std::result::Result<LayerNorm, ModelError> {
    Ok(LayerNorm::new(scope.tensor("weight", &[size])?, scope.tensor("bias", &[size])?, epsilon))
}

/// Softmax attention of prepared heads.
/// `queries` is `[batch, heads, m, d]`, `keys` and `values` are `[batch, heads, n, d]`; the result is `[batch, m, heads * d]`.
pub fn attend_whole(queries: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, positions, width) = queries.dims4()?;
    let scores = (queries.matmul(&keys.t()?)? * (width as f64).powf(-0.5))?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let shares = candle_nn::ops::softmax_last_dim(&scores)?;
    shares.matmul(values)?.transpose(1, 2)?.reshape((batch, positions, heads * width))
}

/// Splits the last axis of `[batch, n, parts * heads * d]` into `parts` tensors of `[batch, heads, n, d]`.
pub fn split_heads(fused: &Tensor, parts: usize, heads: usize) -> Result<Vec<Tensor>> {
    let (batch, positions, width) = fused.dims3()?;
    let split = fused.reshape((batch, positions, parts, heads, width / (parts * heads)))?;
    let split = split.permute((2, 0, 3, 1, 4))?;
    (0..parts).map(|part| split.i(part)?.contiguous()).collect()
}

/// A mask `[n, n]` that hides what comes later.
pub fn causal_mask(positions: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let hidden = |row: usize, column: usize| if column > row { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> =
        (0..positions).flat_map(|row| (0..positions).map(move |column| hidden(row, column))).collect();
    Tensor::from_vec(values, (positions, positions), device)?.to_dtype(dtype)
}

/// One block: attention and feed-forward, each behind its norm and added to what came in.
struct Block {
    attention_norm: LayerNorm,
    fused: Linear,
    outward: Linear,
    heads: usize,
    forward_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn load(scope: &Scope<'_>, stack: &Stack) -> std::result::Result<Self, ModelError> {
        let hidden = stack.hidden;
        let attention = scope.at("self_attn");
        let parts = [("q_proj", hidden), ("k_proj", hidden), ("v_proj", hidden)];
        Ok(Self {
            attention_norm: layer_norm(&scope.at("layer_norm1"), hidden, stack.epsilon)?,
            fused: Linear::load_joined(&attention, &parts, hidden, true)?,
            outward: linear(&attention.at("out_proj"), hidden, hidden)?,
            heads: stack.heads,
            forward_norm: layer_norm(&scope.at("layer_norm2"), hidden, stack.epsilon)?,
            feed_forward: FeedForward::load(
                &scope.at("mlp"),
                ["fc1", "fc2"],
                [hidden, stack.intermediate, hidden],
                stack.activation,
            )?,
        })
    }

    fn forward(&self, input: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let fused = self.fused.forward(&self.attention_norm.forward(input)?)?;
        let heads = split_heads(&fused, 3, self.heads)?;
        let attended = (self.outward.forward(&attend_whole(&heads[0], &heads[1], &heads[2], mask)?)? + input)?;
        &attended + self.feed_forward.forward(&self.forward_norm.forward(&attended)?)?
    }
}

/// A stack of blocks.
pub struct Blocks(Vec<Block>);

impl Blocks {
    /// Reads `layers.0`, `layers.1`, and so on below `scope`.
    pub fn load(scope: &Scope<'_>, stack: &Stack) -> std::result::Result<Self, ModelError> {
        let layers = scope.at("layers");
        let blocks: std::result::Result<_, _> =
            (0..stack.layers).map(|index| Block::load(&layers.at(index), stack)).collect();
        Ok(Self(blocks?))
    }

    pub fn forward(&self, input: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.0.iter().try_fold(input, |hidden, block| block.forward(&hidden, mask))
    }
}

/// Token embeddings plus learned positions.
pub struct TextEmbedding {
    tokens: Tensor,
    positions: Tensor,
}

impl TextEmbedding {
    pub fn load(
        scope: &Scope<'_>,
        vocabulary: usize,
        positions: usize,
        hidden: usize,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            tokens: scope.at("token_embedding").tensor("weight", &[vocabulary, hidden])?,
            positions: scope.at("position_embedding").tensor("weight", &[positions, hidden])?,
        })
    }

    /// `ids` holds `rows` sequences of equal length, one after the other; the result is `[rows, length, hidden]`.
    pub fn forward(&self, ids: Vec<u32>, rows: usize) -> Result<Tensor> {
        let length = ids.len() / rows.max(1);
        let count = ids.len();
        let ids = Tensor::from_vec(ids, count, self.tokens.device())?;
        let embedded = self.tokens.index_select(&ids, 0)?.reshape((rows, length, ()))?;
        embedded.broadcast_add(&self.positions.narrow(0, 0, length)?)
    }
}

/// Cuts square pictures into patches and embeds each by one linear map.
pub struct PatchEmbedding {
    map: Linear,
    side: usize,
    patch: usize,
    dtype: DType,
    device: Device,
}

impl PatchEmbedding {
    /// `with_bias` as the family has it.
    pub fn load(scope: &Scope<'_>, tower: &VisionTower, with_bias: bool) -> std::result::Result<Self, ModelError> {
        let (hidden, patch) = (tower.stack.hidden, tower.patch);
        let weight = scope.tensor("weight", &[hidden, 3, patch, patch])?.reshape((hidden, 3 * patch * patch))?;
        let bias = if with_bias { Some(scope.tensor("bias", &[hidden])?) } else { None };
        let (dtype, device) = (weight.dtype(), weight.device().clone());
        Ok(Self { map: Linear::from_weight(weight, bias), side: tower.side, patch, dtype, device })
    }

    /// `[batch, patches, hidden]`. A stride equal to the kernel makes the convolution one matrix product.
    pub fn forward(&self, images: &[&Pixels]) -> std::result::Result<Tensor, ModelError> {
        let (side, patch) = (self.side, self.patch);
        let mut values = Vec::with_capacity(images.len() * 3 * side * side);
        for image in images {
            if image.side != side || image.values.len() != 3 * side * side {
                let detail = format!("a picture of side {} where the model takes {side}", image.side);
                return Err(ModelError::Input { detail });
            }
            values.extend_from_slice(&image.values);
        }
        let grid = side / patch;
        let pixels = Tensor::from_vec(values, (images.len() * 3, side, side), &self.device)?.to_dtype(self.dtype)?;
        // Pixels beyond the last whole patch are not looked at, as in a convolution without padding.
        let covered = pixels.narrow(1, 0, grid * patch)?.narrow(2, 0, grid * patch)?;
        let patches = covered
            .reshape(&[images.len(), 3, grid, patch, grid, patch][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((images.len(), grid * grid, 3 * patch * patch))?;
        Ok(self.map.forward(&patches)?)
    }
}

/// The rows of `[batch, n]` as f32, each divided by its length. A row without a finite length comes back as it is
/// computed, not as a number, and is for the caller to refuse.
pub fn unit_rows(rows: &Tensor) -> Result<Vec<Vec<f32>>> {
    let mut rows = rows.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for row in &mut rows {
        let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    Ok(rows)
}
