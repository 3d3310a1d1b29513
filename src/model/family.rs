//! What a family makes of a model directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::api::{ChatProcessor, Encoder, Generator, ModelError, Processor};
use super::weights::Weights;

/// The name of the settings file of every model.
pub const CONFIG: &str = "config.json";

/// One family of models under one of its architecture names.
pub struct Family {
    /// As config.json names it.
    pub architecture: &'static str,
    /// The older name of the family.
    pub model_type: &'static str,
    pub load: fn(&Path, &Weights) -> Result<Parts, ModelError>,
}

/// A loaded model, before it gets its name and fingerprint. It embeds, writes, or both.
pub struct Parts {
    pub encoder: Option<EncoderParts>,
    pub generator: Option<GeneratorParts>,
    /// Files below the directory that the results depend on.
    pub settings: Vec<PathBuf>,
}

/// Both sides of a model that embeds.
pub struct EncoderParts {
    pub processor: Arc<dyn Processor>,
    pub encoder: Box<dyn Encoder>,
}

/// Both sides of a model that writes.
pub struct GeneratorParts {
    pub processor: Arc<dyn ChatProcessor>,
    pub generator: Box<dyn Generator>,
}

impl Parts {
    pub fn embedding(processor: impl Processor + 'static, encoder: impl Encoder + 'static) -> Self {
        let encoder = Some(EncoderParts { processor: Arc::new(processor), encoder: Box::new(encoder) });
        Self { encoder, generator: None, settings: Vec::new() }
    }

    pub fn writing(processor: impl ChatProcessor + 'static, generator: impl Generator + 'static) -> Self {
        let generator = Some(GeneratorParts { processor: Arc::new(processor), generator: Box::new(generator) });
        Self { encoder: None, generator, settings: Vec::new() }
    }
}
