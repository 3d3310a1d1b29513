//! The vision tower of Qwen2.5-VL: patches to rows of features.
//!
//! Follows `Qwen2_5_VisionTransformerPretrainedModel` of Hugging Face transformers: patches by one linear map, two-axis
//! rotation of halves, most blocks within windows and few over the whole picture, squares of patches merged into one row.
//! Rows are sorted by windows between embedding and merger; what leaves is in the picture's own order again.

use std::ops::Range;

use candle_core::{DType, Device, Module, Result, Tensor};

use super::vision_config::Qwen25Vision;
use crate::model::api::{Features, ModelError, VisionInput};
use crate::model::config::Activation;
use crate::model::decoder::Tower;
use crate::model::layers::{
    FeedForward, GatedFeedForward, Linear, PatchGrid, RmsNorm, SegmentAttention, Sight, VisionBlock, grid_positions,
};
use crate::model::trace::Trace;
use crate::model::weights::Scope;

/// Of all norms.
const EPSILON: f64 = 1e-6;

type Block = VisionBlock<RmsNorm, GatedFeedForward>;

/// The tower.
pub struct Qwen25Tower {
    config: Qwen25Vision,
    patches: Linear,
    blocks: Vec<Block>,
    merger_norm: RmsNorm,
    merger: FeedForward,
    /// Of activations.
    dtype: DType,
    device: Device,
}

impl Qwen25Tower {
    /// Reads the tower below `scope`, `visual` in published files.
    pub fn load(scope: &Scope<'_>, config: Qwen25Vision) -> std::result::Result<Self, ModelError> {
        let sizes = config.shared;
        let patch = scope.at("patch_embed").at("proj");
        let kernel = patch.tensor("weight", &[sizes.hidden, 3, sizes.frames, sizes.patch, sizes.patch])?;
        let kernel = kernel.reshape((sizes.hidden, sizes.patch_values()))?;
        let blocks = (0..sizes.depth).map(|index| load_block(&scope.at("blocks").at(index), &config));
        let merger = scope.at("merger");
        let widths = [sizes.merged(), sizes.merged(), sizes.output];
        Ok(Self {
            patches: Linear::from_weight(kernel, None),
            blocks: blocks.collect::<std::result::Result<_, _>>()?,
            merger_norm: RmsNorm::load(&merger.at("ln_q"), sizes.hidden, EPSILON)?,
            merger: FeedForward::load(&merger.at("mlp"), ["0", "2"], widths, Activation::GeluErf)?,
            dtype: scope.activations(),
            device: scope.device().clone(),
            config,
        })
    }

    /// `[patches, hidden]` to `[tokens, output]`.
    fn merge(&self, rows: &Tensor) -> Result<Tensor> {
        let merged = self.merger_norm.forward(rows)?.reshape(((), self.config.shared.merged()))?;
        self.merger.forward(&merged)
    }
}

impl Tower for Qwen25Tower {
    fn see(&self, image: &VisionInput, trace: &mut Trace) -> std::result::Result<Features, ModelError> {
        let sizes = self.config.shared;
        let grid = PatchGrid::of(image, sizes.merge, sizes.patch_values())?;
        let order = WindowOrder::of(&grid, self.config.window);
        let pixels = Tensor::from_slice(&image.values, (grid.len(), sizes.patch_values()), &self.device)?;
        let embedded = self.patches.forward(&pixels.to_dtype(self.dtype)?)?;
        trace.show(format_args!("vision.patch_embed"), &embedded);
        let mut rows = embedded.index_select(&Tensor::new(order.patches.as_slice(), &self.device)?, 0)?;
        let places = grid.places();
        let places: Vec<[usize; 2]> = order.patches.iter().map(|patch| places[*patch as usize]).collect();
        let angles = self.config.rope.angles(&grid_positions(&places), DType::F32, &self.device)?;
        let whole = Sight { angles: angles.clone(), segments: std::iter::once(0..grid.len()).collect() };
        let windows = Sight { angles, segments: order.windows };
        for (index, block) in self.blocks.iter().enumerate() {
            rows = block.forward(&rows, if self.config.full.contains(&index) { &whole } else { &windows })?;
            trace.show(format_args!("vision.block_{index}"), &rows);
        }
        let rows = self.merge(&rows)?.index_select(&Tensor::new(order.back.as_slice(), &self.device)?, 0)?;
        trace.show(format_args!("vision.merged"), &rows);
        Ok(Features { rows, deep: Vec::new() })
    }
}

fn load_block(scope: &Scope<'_>, config: &Qwen25Vision) -> std::result::Result<Block, ModelError> {
    let sizes = config.shared;
    let hidden = sizes.hidden;
    let attention = scope.at("attn");
    Ok(Block {
        attention_norm: RmsNorm::load(&scope.at("norm1"), hidden, EPSILON)?,
        attention: SegmentAttention {
            inward: Linear::load_with_bias(&attention.at("qkv"), hidden, 3 * hidden)?,
            outward: Linear::load_with_bias(&attention.at("proj"), hidden, hidden)?,
            heads: sizes.heads,
        },
        forward_norm: RmsNorm::load(&scope.at("norm2"), hidden, EPSILON)?,
        feed_forward: GatedFeedForward::load(&scope.at("mlp"), hidden, sizes.intermediate, true)?,
    })
}

/// The order in which the rows of a window follow each other.
struct WindowOrder {
    /// For each row, its patch in the picture's own order.
    patches: Vec<u32>,
    /// Rows of each window.
    windows: Vec<Range<usize>>,
    /// For each square of the picture, where it lies after sorting.
    back: Vec<u32>,
}

impl WindowOrder {
    fn of(grid: &PatchGrid, side: usize) -> Self {
        let square = grid.merge * grid.merge;
        let mut order = Self { patches: Vec::new(), windows: Vec::new(), back: vec![0; grid.len() / square] };
        for window in grid.windows(side) {
            let first = order.patches.len();
            for index in window {
                order.back[index] = (order.patches.len() / square) as u32;
                order.patches.extend((index * square..(index + 1) * square).map(|patch| patch as u32));
            }
            order.windows.push(first..order.patches.len());
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_sorted_by_windows_and_find_back() {
        let order = WindowOrder::of(&PatchGrid { rows: 4, columns: 6, merge: 2 }, 2);
        assert_eq!(order.patches[4..12], [4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!(order.windows, [0..16, 16..24]);
        assert_eq!(order.back, [0, 1, 4, 2, 3, 5]);
    }
}
