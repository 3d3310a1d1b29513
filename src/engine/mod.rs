//! The engine: requests are packed into batches and run on the device thread that owns the models.

mod api;

pub use api::{Answer, Image, Inference, InferenceError, ModelDescription, Prepared, Request, Task};
