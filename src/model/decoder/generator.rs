//! A decoder, with or without eyes, as a [`Generator`].

use candle_core::Device;

use super::forward::Decoder;
use crate::kv::KvStore;
use crate::model::api::{Features, Generator, GeneratorShape, ModelError, Step, StepOutput, VisionInput};
use crate::model::trace::Trace;

/// A vision tower: one prepared picture to features of the decoder's width.
pub trait Tower: Send + Sync {
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
        Self { shape: decoder.shape(), decoder, tower }
    }
}

/// Runs work of the CPU on one of the threads that share it out: else each of its many products would send the calling
/// thread to sleep and wake it again. A GPU is worked by the thread that it knows.
fn among_threads<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    if device.is_cpu() { rayon::scope(|_| work()) } else { work() }
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
            Some(tower) => among_threads(self.decoder.device(), || tower.see(image, trace)),
            None => Err(ModelError::Input { detail: "this model takes no pictures".to_owned() }),
        }
    }

    fn step(&mut self, step: &Step<'_>, cache: &mut KvStore, trace: &mut Trace) -> Result<StepOutput, ModelError> {
        among_threads(self.decoder.device(), || self.decoder.step(step, cache, trace))
    }
}
