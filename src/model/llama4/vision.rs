//! The vision tower of Llama 4: tiles to rows of features.
//!
//! Follows `Llama4VisionModel` of Hugging Face transformers: patches by one linear map, the class token last, two-axis
//! rotation of adjacent pairs, squares of patches merged into one row, an adapter and a projection. Invariants: tiles never
//! see each other; a few tiles are computed at a time, so memory does not grow with the number of tiles.

use candle_core::{DType, Device, Module, Result, Tensor};

use super::vision_config::Llama4Vision;
use crate::model::api::{Features, ModelError, VisionInput};
use crate::model::config::Activation;
use crate::model::decoder::Tower;
use crate::model::layers::{FeedForward, LayerNorm, Linear, SegmentAttention, Sight, VisionBlock};
use crate::model::trace::Trace;
use crate::model::weights::Scope;

/// Of all layer norms; the reference does not read `norm_eps`.
const EPSILON: f64 = 1e-5;

/// Values of the widest activation that may exist at a time: 64 MiB in f32.
const WIDEST: usize = 16 << 20;

type Block = VisionBlock<LayerNorm, FeedForward>;

/// The tower with its projection to the decoder's width.
pub struct Llama4Tower {
    config: Llama4Vision,
    patches: Linear,
    /// `[1, hidden]`
    class: Tensor,
    /// `[patches + 1, hidden]`
    positions: Tensor,
    norm_before: LayerNorm,
    blocks: Vec<Block>,
    norm_after: LayerNorm,
    adapter: [Linear; 2],
    projector: Linear,
    /// Of activations.
    dtype: DType,
    device: Device,
}

impl Llama4Tower {
    /// Reads `vision_model` and `multi_modal_projector` below `scope`; `text_hidden` is the decoder's width.
    pub fn load(scope: &Scope<'_>, config: Llama4Vision, text_hidden: usize) -> std::result::Result<Self, ModelError> {
        let vision = scope.at("vision_model");
        let hidden = config.hidden;
        let rows = config.grid().pow(2) + 1;
        let adapter = vision.at("vision_adapter").at("mlp");
        let layers = vision.at("model").at("layers");
        let blocks = (0..config.layers).map(|index| load_block(&layers.at(index), &config));
        Ok(Self {
            patches: Linear::load(&vision.at("patch_embedding").at("linear"), 3 * config.patch.pow(2), hidden)?,
            class: vision.tensor("class_embedding", &[hidden])?.reshape((1, hidden))?,
            positions: vision.tensor("positional_embedding_vlm", &[rows, hidden])?,
            norm_before: LayerNorm::load(&vision.at("layernorm_pre"), hidden, EPSILON)?,
            blocks: blocks.collect::<std::result::Result<_, _>>()?,
            norm_after: LayerNorm::load(&vision.at("layernorm_post"), hidden, EPSILON)?,
            adapter: [
                Linear::load(&adapter.at("fc1"), hidden * config.shuffle.pow(2), config.adapter)?,
                Linear::load(&adapter.at("fc2"), config.adapter, config.adapter)?,
            ],
            projector: Linear::load(&scope.at("multi_modal_projector").at("linear_1"), config.adapter, text_hidden)?,
            dtype: scope.activations(),
            device: scope.device().clone(),
            config,
        })
    }

    /// How many tiles are computed at a time.
    fn tiles_at_once(&self) -> usize {
        let width = self.config.intermediate.max(3 * self.config.hidden);
        (WIDEST / ((self.config.grid().pow(2) + 1) * width)).max(1)
    }

    /// `pixels` is `[tiles, 3, side, side]`; the result is `[tiles * tokens, text hidden]`.
    fn forward(&self, pixels: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        let (tiles, hidden) = (pixels.dim(0)?, self.config.hidden);
        let embedded = self.embed(pixels)?;
        trace.show(format_args!("vision.patch_embed"), &embedded);
        let class = self.class.broadcast_as((tiles, 1, hidden))?;
        let rows = Tensor::cat(&[embedded, class.contiguous()?], 1)?.broadcast_add(&self.positions)?;
        let length = rows.dim(1)?;
        let rows = self.norm_before.forward(&rows)?;
        trace.show(format_args!("vision.layernorm_pre"), &rows);
        let sight = self.sight(tiles)?;
        let mut rows = rows.reshape((tiles * length, hidden))?;
        for (index, block) in self.blocks.iter().enumerate() {
            rows = block.forward(&rows, &sight)?;
            trace.show(format_args!("vision.layer_{index}"), &rows.reshape((tiles, length, hidden))?);
        }
        let rows = self.norm_after.forward(&rows)?.reshape((tiles, length, hidden))?;
        trace.show(format_args!("vision.layernorm_post"), &rows);
        let merged = self.merge(&rows.narrow(1, 0, length - 1)?)?;
        let inner = self.adapter[0].forward(&merged)?.gelu_erf()?;
        let adapted = self.adapter[1].forward(&inner)?.gelu_erf()?;
        trace.show(format_args!("vision.adapter"), &adapted);
        let projected = self.projector.forward(&adapted.flatten_to(1)?)?;
        trace.show(format_args!("vision.projector"), &projected);
        Ok(projected)
    }

    /// `[tiles, 3, side, side]` to `[tiles, patches, hidden]`. A patch is flattened by channel, row and column.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (tiles, grid, patch) = (pixels.dim(0)?, self.config.grid(), self.config.patch);
        let patches = pixels
            .reshape(&[tiles, 3, grid, patch, grid, patch][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((tiles, grid * grid, 3 * patch * patch))?;
        self.patches.forward(&patches)
    }

    /// Where the rows of so many tiles are: columns and rows count from 1, the class token is not rotated.
    fn sight(&self, tiles: usize) -> Result<Sight> {
        let grid = self.config.grid() as u32;
        let places = (1..=grid).flat_map(|row| (1..=grid).map(move |column| [0, row, column]));
        let tile: Vec<[u32; 3]> = places.chain([[0; 3]]).collect();
        Ok(Sight {
            angles: self.config.rope.angles(&tile.repeat(tiles), DType::F32, &self.device)?,
            segments: (0..tiles).map(|index| index * tile.len()..(index + 1) * tile.len()).collect(),
        })
    }

    /// `[tiles, patches, hidden]` to `[tiles, tokens, hidden * square]`: each square of patches becomes one row, patch
    /// after patch.
    fn merge(&self, rows: &Tensor) -> Result<Tensor> {
        let (tiles, _, hidden) = rows.dims3()?;
        let side = self.config.shuffle;
        let squares = self.config.grid() / side;
        rows.reshape(&[tiles, squares, side, squares, side, hidden][..])?.permute(vec![0, 1, 3, 2, 4, 5])?.reshape((
            tiles,
            squares * squares,
            side * side * hidden,
        ))
    }

    fn check(&self, image: &VisionInput) -> std::result::Result<usize, ModelError> {
        let (rows, columns) = image.grid;
        // Beside its parts, a picture that was cut is seen as a whole.
        let tiles = if rows * columns > 1 { rows * columns + 1 } else { 1 };
        let (values, tokens) = (tiles * 3 * self.config.side.pow(2), tiles * self.config.tokens());
        if rows * columns == 0 || image.values.len() != values || image.tokens != tokens {
            let detail = format!(
                "a picture of {rows} x {columns} tiles with {} values and {} tokens, expected {values} and {tokens}",
                image.values.len(),
                image.tokens
            );
            return Err(ModelError::Input { detail });
        }
        Ok(tiles)
    }
}

impl Tower for Llama4Tower {
    fn see(&self, image: &VisionInput, trace: &mut Trace) -> std::result::Result<Features, ModelError> {
        let tiles = self.check(image)?;
        let side = self.config.side;
        let mut rows = Vec::new();
        let mut traces = Vec::new();
        for values in image.values.chunks(self.tiles_at_once().min(tiles) * 3 * side * side) {
            let shape = (values.len() / (3 * side * side), 3, side, side);
            let pixels = Tensor::from_slice(values, shape, &self.device)?.to_dtype(self.dtype)?;
            let mut own = if trace.is_on() { Trace::on() } else { Trace::off() };
            rows.push(self.forward(&pixels, &mut own)?);
            traces.push(own.into_tensors());
        }
        for (index, (name, _)) in traces[0].iter().enumerate() {
            let parts: Vec<&Tensor> = traces.iter().map(|shown| &shown[index].1).collect();
            trace.show(format_args!("{name}"), &Tensor::cat(&parts, 0)?);
        }
        Ok(Features { rows: Tensor::cat(&rows, 0)?, deep: Vec::new() })
    }
}

fn load_block(scope: &Scope<'_>, config: &Llama4Vision) -> std::result::Result<Block, ModelError> {
    let hidden = config.hidden;
    let attention = scope.at("self_attn");
    let inward = ["q_proj", "k_proj", "v_proj"].map(|name| (name, hidden));
    let sizes = [hidden, config.intermediate, hidden];
    Ok(Block {
        attention_norm: LayerNorm::load(&scope.at("input_layernorm"), hidden, EPSILON)?,
        attention: SegmentAttention {
            inward: Linear::load_joined(&attention, &inward, hidden, true)?,
            outward: Linear::load_with_bias(&attention.at("o_proj"), hidden, hidden)?,
            heads: config.heads,
        },
        forward_norm: LayerNorm::load(&scope.at("post_attention_layernorm"), hidden, EPSILON)?,
        feed_forward: FeedForward::load(&scope.at("mlp"), ["fc1", "fc2"], sizes, Activation::GeluErf)?,
    })
}
