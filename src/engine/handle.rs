//! The engine as the rest of the process holds it: loads the models, starts the device thread, passes requests on.
//!
//! It knows no product and no tensor. Invariants: at most `queue` requests wait for the device, further callers wait
//! outside; once the device thread has ended every waiting and every later call is answered with `Dead`.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use super::api::{Answer, Image, Inference, InferenceError, ModelDescription, Prepared, Request, Task};
use super::device_loop::{Content, DeviceLoop, DeviceModel, Input, Job, WaitingMark};
use super::options::{EngineError, ModelOptions, Options};
use crate::metrics::Metrics;
use crate::model::{self, Encoder, ModelError, Picture, Pixels, Processor};

/// The text that every model must be able to embed.
const PROBE: &str = "a picture";

/// The running engine. Dropping it lets the device thread finish what waits, without anybody waiting for it.
pub struct Engine {
    descriptions: Vec<ModelDescription>,
    processors: Vec<Arc<dyn Processor>>,
    index: HashMap<String, usize>,
    /// None once the engine was shut down.
    jobs: Mutex<Option<SyncSender<Job>>>,
    places: Arc<Semaphore>,
    /// Why the device thread ended; empty while it lives.
    ended: Arc<OnceLock<String>>,
    thread: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
    metrics: Arc<Metrics>,
}

/// A loaded model before it is taken apart for its two sides.
struct Model {
    description: ModelDescription,
    processor: Arc<dyn Processor>,
    encoder: Box<dyn Encoder>,
}

/// What [`Prepared`] holds for this engine.
struct PreparedInputs(Vec<Input>);

impl Engine {
    /// Loads all models, lets each compute once, and starts the device thread. Blocking, for as long as it takes to read
    /// the model files.
    pub fn start(
        options: &Options,
        models: &BTreeMap<String, ModelOptions>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let device = model::open_device(&options.device).map_err(EngineError::Device)?;
        let mut loaded = Vec::new();
        for (name, from) in models {
            let parts = model::load(&from.path, from.dtype, &device)
                .map_err(|source| EngineError::Model { name: name.clone(), source })?;
            let description = ModelDescription {
                name: name.clone(),
                architecture: parts.architecture,
                fingerprint: parts.fingerprint,
                dimensions: parts.encoder.dimensions(),
            };
            tracing::info!(
                model = name,
                architecture = description.architecture,
                fingerprint = description.fingerprint,
                dimensions = description.dimensions,
                "model loaded"
            );
            loaded.push(Model { description, processor: parts.processor, encoder: parts.encoder });
        }
        Self::with_models(options, loaded, metrics)
    }

    fn with_models(options: &Options, models: Vec<Model>, metrics: Arc<Metrics>) -> Result<Self, EngineError> {
        if options.queue == 0 {
            return Err(EngineError::Zero { key: "queue" });
        }
        if options.batch_tokens == 0 {
            return Err(EngineError::Zero { key: "batch_tokens" });
        }
        let (mut descriptions, mut processors, mut on_device) = (Vec::new(), Vec::new(), Vec::new());
        for model in models {
            on_device.push(probed(&model.description.name, model.encoder, model.processor.as_ref())?);
            descriptions.push(model.description);
            processors.push(model.processor);
        }
        let index = descriptions.iter().enumerate().map(|(at, model)| (model.name.clone(), at)).collect();
        let (sender, receiver) = sync_channel(options.queue);
        let places = Arc::new(Semaphore::new(options.queue));
        let ended = Arc::new(OnceLock::new());
        let device = DeviceLoop::new(on_device, receiver, options, metrics.clone());
        let thread = spawn(device, ended.clone(), places.clone(), metrics.clone())?;
        Ok(Self {
            descriptions,
            processors,
            index,
            jobs: Mutex::new(Some(sender)),
            places,
            ended,
            thread: Mutex::new(Some(thread)),
            metrics,
        })
    }

    /// Takes no more requests, lets the device thread answer those that wait, and waits for its end. Blocking.
    pub fn shutdown(&self, within: Duration) -> Result<(), EngineError> {
        self.places.close();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((handle, done)) = thread.take() else { return Ok(()) };
        // The thread drops its end of this channel as its last act.
        if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = done.recv_timeout(within) {
            *thread = Some((handle, done));
            return Err(EngineError::StillRunning { within });
        }
        // A panic was caught and told inside the thread.
        let _ = handle.join();
        Ok(())
    }

    fn dead(&self) -> InferenceError {
        let detail = self.ended.get().cloned().unwrap_or_else(|| "the engine was shut down".to_owned());
        InferenceError::Dead { detail }
    }

    fn model(&self, name: &str) -> Result<(usize, &dyn Processor), InferenceError> {
        match self.index.get(name) {
            Some(index) => Ok((*index, self.processors[*index].as_ref())),
            None => Err(InferenceError::UnknownModel { model: name.to_owned() }),
        }
    }
}

#[async_trait]
impl Inference for Engine {
    fn models(&self) -> &[ModelDescription] {
        &self.descriptions
    }

    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError> {
        let mut inputs: Vec<Input> = Vec::with_capacity(request.tasks.len());
        let mut seen: Vec<(usize, &Arc<Image>, Arc<Pixels>)> = Vec::new();
        for task in &request.tasks {
            let (Task::EmbedText { model: name, .. } | Task::EmbedImage { model: name, .. }) = task;
            let (model, processor) = self.model(name)?;
            let bad = |error| blame(name, error);
            let content = match task {
                Task::EmbedText { text, .. } => Content::Text(processor.text(text).map_err(bad)?),
                Task::EmbedImage { image, .. } => {
                    let known = seen.iter().find(|(of, other, _)| *of == model && Arc::ptr_eq(other, image));
                    let pixels = match known {
                        Some((_, _, pixels)) => pixels.clone(),
                        None => Arc::new(processor.image(picture(image)).map_err(bad)?),
                    };
                    seen.push((model, image, pixels.clone()));
                    Content::Image(pixels)
                }
            };
            inputs.push(Input { model, content });
        }
        let tokens = inputs.iter().fold(0_u32, |sum, input| sum.saturating_add(input.content.cost()));
        Ok(Prepared::new(tokens, Box::new(PreparedInputs(inputs))))
    }

    async fn infer(&self, prepared: Prepared) -> Result<Answer, InferenceError> {
        let tokens = prepared.tokens;
        let Ok(inputs) = prepared.into_inner().downcast::<PreparedInputs>() else {
            let detail = "the request was prepared by another engine".to_owned();
            return Err(InferenceError::Unsupported { model: String::new(), detail });
        };
        let waiting = WaitingMark::new(&self.metrics.waiting_requests);
        let place = self.places.clone().acquire_owned().await.map_err(|_| self.dead())?;
        let (reply, answer) = oneshot::channel();
        let job = Job { inputs: inputs.0, tokens, reply, waiting, place };
        {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            // The channel is as wide as there are places, so it is never full.
            jobs.as_ref().ok_or_else(|| self.dead())?.try_send(job).map_err(|_| self.dead())?;
        }
        answer.await.unwrap_or_else(|_| Err(self.dead()))
    }

    fn is_alive(&self) -> bool {
        self.ended.get().is_none()
    }
}

fn picture(image: &Image) -> Picture<'_> {
    Picture { width: image.width, height: image.height, rgb: &image.rgb }
}

fn blame(model: &str, error: ModelError) -> InferenceError {
    InferenceError::BadInput { model: model.to_owned(), detail: error.to_string() }
}

/// Lets the model compute once, so that a broken one is found before any asset is.
fn probed(name: &str, mut encoder: Box<dyn Encoder>, processor: &dyn Processor) -> Result<DeviceModel, EngineError> {
    let failed = |detail: String| EngineError::Probe { name: name.to_owned(), detail };
    let probe = processor.text(PROBE).map_err(|error| failed(error.to_string()))?;
    let rows = encoder.embed_texts(&[&probe]).map_err(|error| failed(error.to_string()))?;
    match rows.iter().flatten().all(|value| value.is_finite()) {
        true => Ok(DeviceModel { name: name.to_owned(), encoder, probe }),
        false => Err(failed("its vector holds values which are no numbers".to_owned())),
    }
}

/// Starts the device thread. However it ends, the reason is told first, then everything that waits is let go.
fn spawn(
    mut device: DeviceLoop,
    ended: Arc<OnceLock<String>>,
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
) -> Result<(JoinHandle<()>, Receiver<()>), std::io::Error> {
    let (done, wait_done) = sync_channel::<()>(1);
    metrics.device_alive.set(1.0);
    let handle = std::thread::Builder::new().name("assay-device".to_owned()).spawn(move || {
        // The loop is not used again after a panic, only dropped.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| device.run()));
        let reason = match outcome {
            Ok(Ok(())) => "the engine was shut down".to_owned(),
            Ok(Err(reason)) => reason,
            Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
        };
        let _ = ended.set(reason);
        metrics.device_alive.set(0.0);
        places.close();
        drop(device);
        drop(done);
    });
    handle.map(|handle| (handle, wait_done))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
