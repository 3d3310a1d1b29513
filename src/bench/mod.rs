//! `assay bench`, and `assay model drift`: what this machine and number formats do, as ratios measured in one run.

mod drift;
mod memory;
mod model;
mod pipeline;
mod random_model;
mod scratch;

pub use drift::{DriftArgs, drift};
pub use model::{ModelArgs, model};
pub use pipeline::{PipelineArgs, pipeline};
