//! Layers that the families share.

mod activation;
mod attention;
mod convolution;
mod encoder;
mod experts;
mod feed_forward;
mod gated;
mod lanes;
mod linear;
mod norm;
mod packed;
mod patch_grid;
mod rope;
mod segments;
mod skinny;
mod vision_block;
mod vision_section;

pub use activation::activate;
pub use attention::{Arrangement, AttentionPlan, DevicePlan, arrange, attend};
pub use convolution::{Convolution, Geometry, Maps};
pub use encoder::{
    Blocks, PatchEmbedding, TextEmbedding, attend_whole, causal_mask, layer_norm, linear, projection, split_heads,
    unit_rows,
};
pub use experts::{ExpertSizes, Experts};
pub use feed_forward::FeedForward;
pub use gated::GatedFeedForward;
#[cfg(test)]
pub use gated::gated;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use patch_grid::{PatchGrid, grid_positions};
pub use rope::{Angles, Pairing, Rope, RopeSettings};
pub use segments::{SegmentAttention, Sight};
pub use vision_block::VisionBlock;
pub use vision_section::{ROW_THEN_COLUMN, SECTION, SharedSizes, VisionDefaults, VisionSection};
