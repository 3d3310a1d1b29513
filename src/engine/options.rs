//! The settings of the engine and of each model, and why an engine cannot start.
//!
//! Plain data; knows no thread and no tensor. Invariant: an unknown key is refused.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{ModelError, Precision};

/// The `[engine]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// "cpu" or "cuda:N".
    pub device: String,
    /// The most tokens (text tokens and picture patches) of one batch.
    pub batch_tokens: u32,
    /// The longest that a request waits for others to share its batch.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Requests that may wait for the device; further ones are held back.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: "cpu".to_owned(), batch_tokens: 4096, max_wait: Duration::from_millis(5), queue: 256 }
    }
}

/// One `[models.NAME]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// A Hugging Face model directory, a GGUF file, or where one is published: hf://org/name[@revision].
    pub path: PathBuf,
    /// The number format to hold weights in: "f32", "f16", "bf16", "q8_0" or "q4k".
    #[serde(default)]
    pub dtype: Precision,
}

/// Why the engine did not start or did not stop.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("engine.{key} is 0; it must be at least 1")]
    Zero { key: &'static str },
    #[error("engine.device: {0}")]
    Device(#[source] ModelError),
    #[error("models.{name}: {source}")]
    Model { name: String, source: Box<ModelError> },
    #[error("models.{name}: {architecture} writes text and embeds nothing; name a model that embeds")]
    NoEncoder { name: String, architecture: String },
    #[error("models.{name} was loaded but its first computation failed: {detail}")]
    Probe { name: String, detail: String },
    #[error("the device thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the device thread did not end within {within:?}")]
    StillRunning { within: Duration },
}
