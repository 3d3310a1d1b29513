//! `assay bench`: what this machine does, as ratios measured in one run.

mod memory;
mod model;
mod pipeline;
mod random_model;

pub use model::{ModelArgs, model};
pub use pipeline::{PipelineArgs, pipeline};
