//! The engine: requests are packed into batches and run on the device thread that owns the models.
//!
//! Encoders embed whole batches; generators write answers side by side, token by token.

mod api;
mod batch;
mod device_loop;
mod encoders;
mod generation;
mod grammar;
mod handle;
mod instant;
mod options;
mod prefix_claims;
mod sampler;
mod scheduler;
mod sequence;
mod settled;
mod starting;

pub use api::{
    Answer, Generation, Image, Inference, InferenceError, ModelDescription, OutputSchema, Pooling, Prepared, Request,
    Sampling, Task,
};
pub use grammar::check_schema as check_output_schema;
pub use handle::Engine;
pub use instant::InstantInference;
pub use options::{EngineError, MemorySize, ModelOptions, Options};
