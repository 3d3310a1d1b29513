//! The settings of the engine and of each model, and why an engine cannot start.
//!
//! Plain data; knows no thread and no tensor. Invariant: an unknown key is refused.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{ModelError, Precision};

/// The `[engine]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// "cpu" or "cuda:N".
    pub device: String,
    /// The most tokens (text tokens and picture patches) of one batch.
    pub batch_tokens: u32,
    /// The longest that a request waits for others to share its batch.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Requests that may be with the engine; further ones are held back.
    pub queue: usize,
    /// The most tokens that one step of a generator computes: chunks of prompts beside running answers.
    pub step_tokens: usize,
    /// The most answers of one model that are written side by side.
    pub sequences: usize,
    /// Memory for keys and values of each generator: bytes, or a share of what is free when it starts.
    pub kv_memory: MemorySize,
    /// Memory for what vision towers made of pictures, so that a picture is seen once.
    pub vision_cache: ByteSize,
    /// Whether prompts that begin alike share the computation of what they have in common.
    pub prefix_cache: bool,
    /// Whether tokens that the output schema forces are computed in one step together, instead of one by one.
    pub fast_forward: bool,
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemorySize {
    Bytes(u64),
    /// Of what is free, above 0 and at most 1.
    Share(f64),
}

impl MemorySize {
    /// In bytes, when so many are free.
    pub fn bytes(self, free: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (free as f64 * share) as u64,
        }
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let advice =
            || format!("{text:?} is no amount of memory; write a size such as \"2GiB\" or a share such as \"30%\"");
        match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim().parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
                Ok(Self::Share(percent.ok_or_else(advice)? / 100.0))
            }
            None => {
                let size = text.parse::<ByteSize>().ok().filter(|size| size.as_u64() > 0);
                Ok(Self::Bytes(size.ok_or_else(advice)?.as_u64()))
            }
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::Share(share) => write!(f, "{}%", share * 100.0),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: "cpu".to_owned(),
            batch_tokens: 4096,
            max_wait: Duration::from_millis(5),
            queue: 256,
            step_tokens: 512,
            sequences: 64,
            kv_memory: MemorySize::Share(0.3),
            vision_cache: ByteSize::mib(256),
            prefix_cache: true,
            fast_forward: true,
        }
    }
}

impl Options {
    /// Refuses what could never answer.
    pub fn check(&self) -> Result<(), EngineError> {
        let counts = [
            ("queue", self.queue),
            ("batch_tokens", self.batch_tokens as usize),
            ("step_tokens", self.step_tokens),
            ("sequences", self.sequences),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((key, _)) => Err(EngineError::Zero { key }),
            None => Ok(()),
        }
    }
}

/// One `[models.NAME]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// A Hugging Face model directory, a GGUF file, or where one is published: `hf://org/name[@revision]`.
    pub path: PathBuf,
    /// The number format to hold the weights in: "f32", "f16", "bf16", "q8_0" or "q4k".
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
    #[error(
        "engine.kv_memory is {bytes} bytes; one answer of models.{name} with a full context needs {needed}; \
         give it more, or name a model with a shorter context"
    )]
    KvMemory { name: String, bytes: u64, needed: u64 },
    #[error("models.{name}: {detail}")]
    Grammar { name: String, detail: String },
    #[error("models.{name} was loaded but its first computation failed: {detail}")]
    Probe { name: String, detail: String },
    #[error("the device thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the device thread did not end within {within:?}")]
    StillRunning { within: Duration },
}
