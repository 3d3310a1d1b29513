//! The boundary of the engine: a request of tasks goes in, one answer comes out.
//!
//! The engine knows tokens, pixels and models by name; it knows no product, no job and no Kafka.
//! Preparing is CPU work and may run on any thread; inferring waits for the device thread.
//! Invariant: a request fails alone. When the device thread is dead every call says so, and nobody retries.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;

/// What one asset asks of the models: each task yields one vector.
/// Generation of structured answers joins this enumeration as a further kind of task.
#[derive(Debug, Clone)]
pub struct Request {
    pub tasks: Vec<Task>,
}

/// One thing to compute.
#[derive(Debug, Clone)]
pub enum Task {
    EmbedText { model: Arc<str>, text: String },
    EmbedImage { model: Arc<str>, image: Arc<Image> },
}

/// 8-bit RGB, rows from the top, no padding: `width * height * 3` bytes.
#[derive(Debug, Clone)]
pub struct Image {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
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
    /// One unit-length vector per task, in the request's order.
    pub embeddings: Vec<Vec<f32>>,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// This request's share, by tokens, of the device time of its batches, in seconds.
    pub device_seconds: f64,
    /// `embedded` for encoder tasks.
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
            Self::BadOutput { .. } => Some("model_output"),
            Self::UnknownModel { .. } | Self::Unsupported { .. } | Self::Dead { .. } => None,
        }
    }
}
