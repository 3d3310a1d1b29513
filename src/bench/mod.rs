//! `assay bench`: what this machine does, as ratios measured in one run.

mod engine;
mod memory;
mod model;
mod pipeline;
mod process;
mod random_model;
mod random_tokenizer;
mod workload;

pub use engine::{EngineArgs, engine};
pub use model::{ModelArgs, model};
pub use pipeline::{PipelineArgs, pipeline};
