//! The vision tower of Qwen3-VL: patches to rows of features, for the prompt and for the first decoder layers.
//!
//! Follows `Qwen3VLVisionModel` of Hugging Face transformers: patches by one linear map, a learned table of positions
//! stretched over the picture, two-axis rotation of halves, squares of patches merged into one row. Every patch sees the
//! whole picture.

use candle_core::{DType, Device, Module, Result, Tensor};

use super::vision_config::Qwen3Vision;
use crate::model::api::{Features, ModelError, VisionInput};
use crate::model::config::Activation;
use crate::model::decoder::Tower;
use crate::model::layers::{
    FeedForward, LayerNorm, Linear, PatchGrid, SegmentAttention, Sight, VisionBlock, grid_positions,
};
use crate::model::trace::Trace;
use crate::model::weights::Scope;

/// Of all norms.
const EPSILON: f64 = 1e-6;
const MAPS: [&str; 2] = ["linear_fc1", "linear_fc2"];

type Block = VisionBlock<LayerNorm, FeedForward>;

/// The tower.
pub struct Qwen3Tower {
    config: Qwen3Vision,
    patches: Linear,
    table: PositionTable,
    blocks: Vec<Block>,
    merger: Merger,
    deep_mergers: Vec<Merger>,
    /// Of activations.
    dtype: DType,
    device: Device,
}

impl Qwen3Tower {
    /// Reads the tower below `scope`, `model.visual` in published files.
    pub fn load(scope: &Scope<'_>, config: Qwen3Vision) -> std::result::Result<Self, ModelError> {
        let sizes = config.shared;
        let patch = scope.at("patch_embed").at("proj");
        let kernel = patch.tensor("weight", &[sizes.hidden, 3, sizes.frames, sizes.patch, sizes.patch])?;
        let kernel = kernel.reshape((sizes.hidden, sizes.patch_values()))?;
        let blocks = (0..sizes.depth).map(|index| load_block(&scope.at("blocks").at(index), &config));
        let deep = scope.at("deepstack_merger_list");
        let deep_mergers = (0..config.deep.len()).map(|index| Merger::load(&deep.at(index), &config, true));
        Ok(Self {
            patches: Linear::from_weight(kernel, Some(patch.tensor("bias", &[sizes.hidden])?)),
            table: PositionTable::load(&scope.at("pos_embed"), config.table_side, sizes.hidden)?,
            blocks: blocks.collect::<std::result::Result<_, _>>()?,
            merger: Merger::load(&scope.at("merger"), &config, false)?,
            deep_mergers: deep_mergers.collect::<std::result::Result<_, _>>()?,
            dtype: scope.activations(),
            device: scope.device().clone(),
            config,
        })
    }
}

impl Tower for Qwen3Tower {
    fn see(&self, image: &VisionInput, trace: &mut Trace) -> std::result::Result<Features, ModelError> {
        let sizes = self.config.shared;
        let grid = PatchGrid::of(image, sizes.merge, sizes.patch_values())?;
        let places = grid.places();
        let pixels = Tensor::from_slice(&image.values, (grid.len(), sizes.patch_values()), &self.device)?;
        let embedded = self.patches.forward(&pixels.to_dtype(self.dtype)?)?;
        trace.show(format_args!("vision.patch_embed"), &embedded);
        let sight = Sight {
            angles: self.config.rope.angles(&grid_positions(&places), DType::F32, &self.device)?,
            segments: std::iter::once(0..grid.len()).collect(),
        };
        let learned = self.table.stretched(&grid, &places)?;
        let mut rows = (embedded + learned.to_dtype(self.dtype)?)?;
        let mut deep = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            rows = block.forward(&rows, &sight)?;
            trace.show(format_args!("vision.block_{index}"), &rows);
            if self.config.deep.get(deep.len()) == Some(&index) {
                let features = self.deep_mergers[deep.len()].forward(&rows)?;
                trace.show(format_args!("vision.deepstack_{}", deep.len()), &features);
                deep.push(features);
            }
        }
        let rows = self.merger.forward(&rows)?;
        trace.show(format_args!("vision.merged"), &rows);
        Ok(Features { rows, deep })
    }
}

fn load_block(scope: &Scope<'_>, config: &Qwen3Vision) -> std::result::Result<Block, ModelError> {
    let sizes = config.shared;
    let hidden = sizes.hidden;
    let attention = scope.at("attn");
    Ok(Block {
        attention_norm: LayerNorm::load(&scope.at("norm1"), hidden, EPSILON)?,
        attention: SegmentAttention {
            inward: Linear::load_with_bias(&attention.at("qkv"), hidden, 3 * hidden)?,
            outward: Linear::load_with_bias(&attention.at("proj"), hidden, hidden)?,
            heads: sizes.heads,
        },
        forward_norm: LayerNorm::load(&scope.at("norm2"), hidden, EPSILON)?,
        feed_forward: FeedForward::load(
            &scope.at("mlp"),
            MAPS,
            [hidden, sizes.intermediate, hidden],
            config.activation,
        )?,
    })
}

/// Squares of patches to rows of the decoder's width.
struct Merger {
    norm: LayerNorm,
    maps: FeedForward,
    merged: usize,
    /// Whether the norm spans a whole square, not a patch.
    norm_after: bool,
}

impl Merger {
    fn load(scope: &Scope<'_>, config: &Qwen3Vision, norm_after: bool) -> std::result::Result<Self, ModelError> {
        let sizes = config.shared;
        let merged = sizes.merged();
        let normed = if norm_after { merged } else { sizes.hidden };
        Ok(Self {
            norm: LayerNorm::load(&scope.at("norm"), normed, EPSILON)?,
            maps: FeedForward::load(scope, MAPS, [merged, merged, sizes.output], Activation::GeluErf)?,
            merged,
            norm_after,
        })
    }

    /// `[patches, hidden]` to `[tokens, output]`.
    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let merged = if self.norm_after {
            self.norm.forward(&rows.reshape(((), self.merged))?)?
        } else {
            self.norm.forward(rows)?.reshape(((), self.merged))?
        };
        self.maps.forward(&merged)
    }
}

/// The learned positions of a square picture.
struct PositionTable {
    /// `[side * side, hidden]`
    rows: Tensor,
    side: usize,
}

impl PositionTable {
    fn load(scope: &Scope<'_>, side: usize, hidden: usize) -> std::result::Result<Self, ModelError> {
        Ok(Self { rows: scope.tensor("weight", &[side * side, hidden])?, side })
    }

    /// The table stretched so that its corners meet the picture's, by bilinear interpolation in f32: `[patches, hidden]`.
    fn stretched(&self, grid: &PatchGrid, places: &[[usize; 2]]) -> Result<Tensor> {
        let device = self.rows.device();
        let corner = |next_row: usize, next_column: usize| {
            let taps = places.iter().map(|[row, column]| {
                let (tap_row, share_row) = self.tap(*row, grid.rows, next_row);
                let (tap_column, share_column) = self.tap(*column, grid.columns, next_column);
                ((tap_row * self.side + tap_column) as u32, share_row * share_column)
            });
            let (taps, shares): (Vec<u32>, Vec<f32>) = taps.unzip();
            let taps = Tensor::from_vec(taps, places.len(), device)?;
            let shares = Tensor::from_vec(shares, (places.len(), 1), device)?;
            self.rows.index_select(&taps, 0)?.to_dtype(DType::F32)?.broadcast_mul(&shares)
        };
        ((corner(0, 0)? + corner(0, 1)?)? + corner(1, 0)?)? + corner(1, 1)?
    }

    /// The table's row before (`next` 0) or after (1) the place of `index` among `count`, and its share.
    fn tap(&self, index: usize, count: usize, next: usize) -> (usize, f32) {
        let last = self.side - 1;
        let place = index as f32 * last as f32 / (count - 1).max(1) as f32;
        let before = place.floor();
        let share = place - before;
        ((before as usize + next).min(last), if next == 1 { share } else { 1.0 - share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corners_of_the_table_meet_the_corners_of_the_picture() {
        let rows = Tensor::arange(0.0_f32, 9.0, &Device::Cpu).unwrap().reshape((9, 1)).unwrap();
        let table = PositionTable { rows, side: 3 };
        let grid = PatchGrid { rows: 2, columns: 5, merge: 1 };
        let found = table.stretched(&grid, &grid.places()).unwrap().flatten_all().unwrap();
        assert_eq!(found.to_vec1::<f32>().unwrap(), [0.0, 0.5, 1.0, 1.5, 2.0, 6.0, 6.5, 7.0, 7.5, 8.0]);
        let one = PatchGrid { rows: 1, columns: 1, merge: 1 };
        let found = table.stretched(&one, &one.places()).unwrap().flatten_all().unwrap();
        assert_eq!(found.to_vec1::<f32>().unwrap(), [0.0]);
    }
}
