//! The boundary of the engine: a request of tasks goes in, one answer comes out.
//!
//! The engine knows tokens, pixels and models by name; it knows no product, no job and no Kafka.
//! Preparing is CPU work and may run on any thread; inferring waits for the device thread.
//! Invariant: a request fails alone. When the device thread is dead every call says so, and nobody retries.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

pub use super::sampler::Sampling;
use crate::model::Picture;

/// What one asset asks of the models.
#[derive(Debug, Clone)]
pub struct Request {
    pub tasks: Vec<Task>,
}

/// One thing to compute.
#[derive(Debug, Clone)]
pub enum Task {
    EmbedText { model: Arc<str>, text: String },
    EmbedImage { model: Arc<str>, image: Arc<Image> },
    Generate(Generation),
}

impl Task {
    /// The name of the model that it asks.
    pub fn model(&self) -> &Arc<str> {
        match self {
            Self::EmbedText { model, .. } | Self::EmbedImage { model, .. } => model,
            Self::Generate(generation) => &generation.model,
        }
    }
}

/// A text to be written by a generative model, and what is wanted of its prompt beside it.
#[derive(Debug, Clone)]
pub struct Generation {
    pub model: Arc<str>,
    /// The system message. Requests with the same one share its computation.
    pub instruction: Option<Arc<str>>,
    /// Shown before the prompt, in order.
    pub images: Vec<Arc<Image>>,
    pub prompt: String,
    /// What the answer must be; without it any text.
    pub output: Option<OutputSchema>,
    pub sampling: Sampling,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// The longest time from the first computation to the end of the answer; an answer in JSON is closed then.
    pub deadline: Option<Duration>,
    /// Whether the prompt's own hidden state is wanted as an embedding.
    pub pooling: Option<Pooling>,
}

/// The JSON that an answer must be.
#[derive(Debug, Clone)]
pub struct OutputSchema {
    /// A JSON Schema; [`super::check_output_schema`] says which can be enforced.
    pub schema: Arc<Value>,
    /// What the schema's `x-assay-choices` name: values that differ from asset to asset.
    pub choices: Vec<(String, Vec<String>)>,
}

/// Which hidden states of a prompt, after the last norm, make its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// That of the prompt's last token.
    Last,
    /// The mean over the tokens that follow the instruction.
    Mean,
}

/// 8-bit RGB, rows from the top, no padding: `width * height * 3` bytes.
#[derive(Debug, Clone)]
pub struct Image {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

impl Image {
    /// The same as models take it.
    pub(super) fn picture(&self) -> Picture<'_> {
        Picture { width: self.width, height: self.height, rgb: &self.rgb }
    }
}

/// A request after its CPU side: token ids and pixel tensors of the right size. Opaque outside the engine.
pub struct Prepared {
    /// Token cost: text tokens plus image patches of all tasks.
    pub tokens: u32,
    pub(crate) inner: Box<dyn Any + Send>,
}

impl Prepared {
    pub fn new(tokens: u32, inner: Box<dyn Any + Send>) -> Self {
        Self { tokens, inner }
    }

    /// What the same engine put in, or the value back when it is of another type.
    pub fn into_inner(self) -> Box<dyn Any + Send> {
        self.inner
    }
}

/// The result of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// One unit-length vector for each task that yields one, in the request's order.
    pub embeddings: Vec<Vec<f32>>,
    /// One text for each generation, in the request's order.
    pub texts: Vec<String>,
    pub prompt_tokens: u32,
    /// Tokens of the texts, those that the schema left no choice in included.
    pub completion_tokens: u32,
    /// This request's share, by tokens, of the device time of its batches, in seconds.
    pub device_seconds: f64,
    /// `embedded` without a generation; else `stop`, `length` (the answer was closed because its tokens ran out) or
    /// `deadline` (closed because its time did).
    pub finish_reason: &'static str,
}

/// What a loaded model is, for tables and checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDescription {
    /// The name under which the configuration lists it.
    pub name: String,
    /// Architecture as its config.json says, for example `CLIPModel`.
    pub architecture: String,
    /// First 16 hexadecimal digits of the SHA-256 over its files' names and contents.
    pub fingerprint: String,
    /// Length of its embeddings.
    pub dimensions: usize,
    pub embeds: bool,
    pub generates: bool,
}

/// The models of a process.
#[async_trait]
pub trait Inference: Send + Sync {
    /// Every loaded model.
    fn models(&self) -> &[ModelDescription];

    /// The CPU side: tokenise, resize, normalise. Blocking; call it from the CPU pool.
    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError>;

    /// The device side. Waits while the engine is busy; dropping the future abandons the request.
    async fn infer(&self, prepared: Prepared) -> Result<Answer, InferenceError>;

    /// False once the device thread has died.
    fn is_alive(&self) -> bool;
}

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InferenceError {
    #[error("model {model:?} is not loaded; list it under [models.{model}]")]
    UnknownModel { model: String },
    #[error("model {model:?} cannot do this: {detail}")]
    Unsupported { model: String, detail: String },
    #[error("model {model:?} got an input that it cannot use: {detail}")]
    BadInput { model: String, detail: String },
    /// The asset leaves the model nothing to choose from.
    #[error("model {model:?} has no answer to choose: {detail}")]
    NoChoices { model: String, detail: String },
    #[error("model {model:?} was still at it after {within:?}, before the first token of its answer")]
    Deadline { model: String, within: Duration },
    #[error("model {model:?} answered with {detail}")]
    BadOutput { model: String, detail: String },
    /// The device thread has ended; the process must be replaced.
    #[error("the device thread is dead: {detail}")]
    Dead { detail: String },
}

impl InferenceError {
    /// The stable word for the rejections table; none when no asset is to blame.
    pub fn asset_reason(&self) -> Option<&'static str> {
        match self {
            Self::BadInput { .. } => Some("model_input"),
            Self::NoChoices { .. } => Some("no_choices"),
            Self::Deadline { .. } => Some("inference_deadline"),
            Self::BadOutput { .. } => Some("model_output"),
            Self::UnknownModel { .. } | Self::Unsupported { .. } | Self::Dead { .. } => None,
        }
    }
}
