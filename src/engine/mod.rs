//! The engine: requests are packed into batches and run on the device thread that owns the models.

mod api;
mod batch;
mod device_loop;
mod grammar;
mod handle;
mod instant;
mod options;
mod sampler;

pub use api::{Answer, Image, Inference, InferenceError, ModelDescription, Prepared, Request, Task};
pub use grammar::{
    AnswerMatcher, CHOICES, FinishReason, Grammar, GrammarError, Grammars, TokenMask, check_schema, with_choices,
};
pub use handle::Engine;
pub use instant::InstantInference;
pub use options::{EngineError, ModelOptions, Options};
pub use sampler::{BadSampling, NotFinite, Sampler, Sampling};
