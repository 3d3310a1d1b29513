//! From model directories to what the two sides of the engine hold: processors for any thread, models for the device's.
//!
//! It loads and probes; it starts no thread. Invariant: a model that is handed out has computed once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::api::ModelDescription;
use super::device_loop::{DeviceLoop, Job};
use super::encoders::{Content, DeviceEncoder, Encoders};
use super::generation::{GenerationPreparer, Writer, WriterParts};
use super::grammar::GrammarError;
use super::options::{EngineError, ModelOptions, Options};
use crate::kv::BLOCK;
use crate::metrics::Metrics;
use crate::model::{self, Encoder, EncoderParts, GeneratorParts, GeneratorShape, Picture, Processor};

/// The text that every model which takes texts must be able to embed.
const PROBE_TEXT: &str = "a picture";

/// The picture that a model which takes only pictures must be able to embed.
const PROBE_PICTURE: Picture<'_> = Picture { width: 2, height: 2, rgb: &[127; 12] };

/// Threads that work out masks while the device computes.
const MASK_THREADS: usize = 2;

/// A loaded model before it is taken apart for its two sides.
pub struct LoadedModel {
    pub description: ModelDescription,
    pub encoder: Option<EncoderParts>,
    pub generator: Option<GeneratorParts>,
    /// Blocks of the generator's cache; 0 without one.
    pub blocks: usize,
}

/// What any thread holds of a model.
pub struct Sides {
    pub embedding: Option<Arc<dyn Processor>>,
    pub generation: Option<GenerationPreparer>,
}

/// Reads all models.
pub fn load(options: &Options, models: &BTreeMap<String, ModelOptions>) -> Result<Vec<LoadedModel>, EngineError> {
    let device = model::open_device(&options.device).map_err(EngineError::Device)?;
    let mut loaded = Vec::new();
    for (name, from) in models {
        let parts = model::load(&from.path, from.dtype, &device)
            .map_err(|source| EngineError::Model { name: name.clone(), source: Box::new(source) })?;
        let model::Loaded { architecture, fingerprint, encoder, generator, .. } = parts;
        let shape = generator.as_ref().map(|parts| parts.generator.shape());
        let dimensions = match &encoder {
            Some(parts) => parts.encoder.dimensions(),
            None => shape.map_or(0, |shape| shape.hidden),
        };
        let blocks = match shape {
            None => 0,
            Some(shape) => blocks(name, shape, options, model::free_memory(&device))?,
        };
        let (embeds, generates) = (encoder.is_some(), generator.is_some());
        tracing::info!(model = name, architecture, fingerprint, dimensions, blocks, "model loaded");
        let description =
            ModelDescription { name: name.clone(), architecture, fingerprint, dimensions, embeds, generates };
        loaded.push(LoadedModel { description, encoder, generator, blocks });
    }
    Ok(loaded)
}

/// Blocks that the cache may have: as many as its memory holds, and no more than could ever be of use.
fn blocks(name: &str, shape: &GeneratorShape, options: &Options, free: u64) -> Result<usize, EngineError> {
    let bytes = options.kv_memory.bytes(free);
    let block = (2 * shape.layers * shape.kv_heads * shape.head_dim * BLOCK * shape.cached_bytes) as u64;
    let whole = shape.context.div_ceil(BLOCK);
    // Twice what all answers can hold at once leaves as much for prefixes that nobody uses just now.
    let useful = 2 * whole.saturating_mul(options.sequences);
    let blocks = usize::try_from(bytes / block).unwrap_or(usize::MAX).min(useful);
    // Fewer would mean that a prompt which the model can take is refused.
    if blocks < whole.min(MOST_NEEDED / BLOCK) {
        let needed = block * whole.min(MOST_NEEDED / BLOCK) as u64;
        return Err(EngineError::KvMemory { name: name.to_owned(), bytes, needed });
    }
    Ok(blocks)
}

/// Tokens of an answer with its prompt that the cache must hold whatever the model's context is.
const MOST_NEEDED: usize = 8192;

/// Takes the models apart; the device's side is what the device thread runs.
pub fn start_device(
    options: &Options,
    models: Vec<LoadedModel>,
    jobs: Receiver<Job>,
    metrics: &Arc<Metrics>,
) -> Result<(DeviceLoop, Vec<Sides>), EngineError> {
    let masks = rayon::ThreadPoolBuilder::new()
        .num_threads(MASK_THREADS)
        .thread_name(|number| format!("assay-mask-{number}"))
        .build()
        .map_err(|error| EngineError::Thread(std::io::Error::other(error)))?;
    let masks = Arc::new(masks);
    let (mut encoders, mut writers, mut sides) = (HashMap::new(), HashMap::new(), Vec::new());
    for (index, model) in models.into_iter().enumerate() {
        let name = model.description.name;
        let mut side = Sides { embedding: None, generation: None };
        if let Some(parts) = model.encoder {
            encoders.insert(index, probed(&name, parts.encoder, parts.processor.as_ref())?);
            side.embedding = Some(parts.processor);
        }
        if let Some(GeneratorParts { processor, generator }) = model.generator {
            let failed = |error: GrammarError| EngineError::Grammar { name: name.clone(), detail: error.to_string() };
            let context = generator.shape().context;
            side.generation = Some(GenerationPreparer::new(&name, processor.clone(), context).map_err(failed)?);
            let (masks, metrics) = (masks.clone(), metrics.clone());
            let parts = WriterParts { name: name.clone(), generator, processor, blocks: model.blocks, masks, metrics };
            let writer = Writer::new(parts, options);
            let writer =
                writer.map_err(|error| EngineError::Probe { name: name.clone(), detail: error.to_string() })?;
            writers.insert(index, writer);
        }
        sides.push(side);
    }
    let encoders = Encoders::new(encoders, metrics.clone());
    Ok((DeviceLoop::new(encoders, writers, jobs, options, metrics.clone()), sides))
}

/// Lets the model compute once, so that a broken one is found before any asset is.
fn probed(name: &str, mut encoder: Box<dyn Encoder>, processor: &dyn Processor) -> Result<DeviceEncoder, EngineError> {
    let failed = |detail: String| EngineError::Probe { name: name.to_owned(), detail };
    let probe = match encoder.takes_texts() {
        true => processor.text(PROBE_TEXT).map(Content::Text),
        false => processor.image(PROBE_PICTURE).map(|pixels| Content::Image(Arc::new(pixels))),
    };
    let probe = probe.map_err(|error| failed(error.to_string()))?;
    let rows = probe.embed_alone(encoder.as_mut()).map_err(|error| failed(error.to_string()))?;
    match rows.iter().flatten().all(|value| value.is_finite()) {
        true => Ok(DeviceEncoder { name: name.to_owned(), encoder, probe }),
        false => Err(failed("its vector holds values which are no numbers".to_owned())),
    }
}
