//! A decoder, with or without eyes, as a [`Generator`].

use super::forward::Decoder;
use crate::kv::KvStore;
use crate::model::api::{Features, Generator, GeneratorShape, ModelError, Step, StepOutput, VisionInput};
use crate::model::trace::Trace;

/// A vision tower: one prepared picture to features of the decoder's width.
pub trait Tower: Send {
    fn see(&self, image: &VisionInput, trace: &mut Trace) -> Result<Features, ModelError>;
}

/// A decoder and the tower that sees for it.
pub struct DecoderGenerator {
    decoder: Decoder,
    tower: Option<Box<dyn Tower>>,
    shape: GeneratorShape,
}

impl DecoderGenerator {
    pub fn new(decoder: Decoder, tower: Option<Box<dyn Tower>>) -> Self {
        Self { shape: decoder.options().shape(), decoder, tower }
    }
}

impl Generator for DecoderGenerator {
    fn shape(&self) -> &GeneratorShape {
        &self.shape
    }

    fn cache(&self, blocks: usize) -> Result<KvStore, ModelError> {
        Ok(self.decoder.cache(blocks)?)
    }

    fn see(&mut self, image: &VisionInput, trace: &mut Trace) -> Result<Features, ModelError> {
        match &self.tower {
            Some(tower) => tower.see(image, trace),
            None => Err(ModelError::Input { detail: "this model takes no pictures".to_owned() }),
        }
    }

    fn step(&mut self, step: &Step<'_>, cache: &mut KvStore, trace: &mut Trace) -> Result<StepOutput, ModelError> {
        self.decoder.step(step, cache, trace)
    }
}
