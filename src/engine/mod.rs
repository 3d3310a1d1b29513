//! The engine: requests are packed into batches and run on the device thread that owns the models.

mod api;
mod batch;
mod device_loop;
mod handle;
mod instant;
mod options;
mod prefix_claims;
mod scheduler;
mod sequence;

pub use api::{Answer, Image, Inference, InferenceError, ModelDescription, Prepared, Request, Task};
pub use handle::Engine;
pub use instant::InstantInference;
pub use options::{EngineError, ModelOptions, Options};
