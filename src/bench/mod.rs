//! `assay bench`, and `assay model drift`: what this machine and number formats do, as ratios measured in one run.

mod drift;
mod engine;
mod memory;
mod model;
mod pipeline;
mod process;
mod random_model;
mod random_tokenizer;
mod workload;

pub use drift::{DriftArgs, drift};
pub use engine::{EngineArgs, engine};
pub use model::{ModelArgs, model};
pub use pipeline::{PipelineArgs, pipeline};
