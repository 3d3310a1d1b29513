//! The device thread: owns the models by value, packs waiting requests into batches and answers each one.
//!
//! It knows no product and no configuration. Invariants: only this thread touches a model; an input that fails is found
//! by running its batch again one by one, so it fails alone; when the device itself no longer works the thread ends,
//! and nobody's asset is blamed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::api::{Answer, InferenceError};
use super::batch::Batcher;
use super::options::Options;
use crate::metrics::Metrics;
use crate::model::{Encoder, ModelError, Pixels, TokenIds};

/// A model as the device thread owns it.
pub struct DeviceModel {
    pub name: String,
    pub encoder: Box<dyn Encoder>,
    /// An input that is known to work: when even this fails, it is the device that is broken.
    pub probe: Content,
}

/// One input of a prepared request.
pub struct Input {
    /// Index of its model.
    pub model: usize,
    pub content: Content,
}

/// Equal pictures of a request share their pixels.
pub enum Content {
    Text(TokenIds),
    Image(Arc<Pixels>),
}

impl Content {
    pub fn cost(&self) -> u32 {
        match self {
            Self::Text(ids) => ids.cost(),
            Self::Image(pixels) => pixels.cost,
        }
    }

    /// The rows of this one input, which is one row.
    pub fn embed_alone(&self, encoder: &mut dyn Encoder) -> Result<Vec<Vec<f32>>, ModelError> {
        match self {
            Self::Text(ids) => encoder.embed_texts(&[ids]),
            Self::Image(pixels) => encoder.embed_images(&[pixels]),
        }
    }
}

/// Counts a request as waiting until it is dropped.
pub struct WaitingMark(IntGauge);

impl WaitingMark {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for WaitingMark {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request on its way to the device.
pub struct Job {
    pub inputs: Vec<Input>,
    pub tokens: u32,
    pub reply: oneshot::Sender<Result<Answer, InferenceError>>,
    pub waiting: WaitingMark,
    /// Its place in the queue, given back when its batch begins.
    pub place: OwnedSemaphorePermit,
}

/// A job whose batch runs.
struct Running {
    inputs: Vec<Input>,
    tokens: u32,
    reply: oneshot::Sender<Result<Answer, InferenceError>>,
    embeddings: Vec<Option<Vec<f32>>>,
    failure: Option<InferenceError>,
    device_seconds: f64,
}

/// All that the device thread owns.
pub struct DeviceLoop {
    models: Vec<DeviceModel>,
    jobs: Receiver<Job>,
    batcher: Batcher<Job>,
    running: Vec<Running>,
    metrics: Arc<Metrics>,
}

/// Where an input stands: its job in the batch, its place in the job.
type Place = (usize, usize);

/// Inputs of one model and one kind, computed together.
struct Group {
    model: usize,
    places: Vec<Place>,
}

impl DeviceLoop {
    pub fn new(models: Vec<DeviceModel>, jobs: Receiver<Job>, options: &Options, metrics: Arc<Metrics>) -> Self {
        let batcher = Batcher::new(options.batch_tokens, options.max_wait);
        Self { models, jobs, batcher, running: Vec::new(), metrics }
    }

    /// Runs until every sender is gone and all that waited is answered; or ends early, with the reason, when the device
    /// no longer works. May panic; the caller catches it.
    pub fn run(&mut self) -> Result<(), String> {
        while self.gather() {
            let batch = self.batcher.take();
            self.begin(batch);
            self.compute()?;
            self.answer();
        }
        Ok(())
    }

    /// Waits until a batch is due. False when no more can come.
    fn gather(&mut self) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => {
                    let tokens = job.tokens;
                    self.batcher.push(job, tokens, Instant::now());
                    if self.batcher.is_due(Instant::now()) {
                        return true;
                    }
                    continue;
                }
                Err(TryRecvError::Disconnected) => return !self.batcher.is_empty(),
                Err(TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            let received = match self.batcher.due_at(now) {
                Some(due) if due <= now => return true,
                Some(due) => self.jobs.recv_timeout(due - now),
                None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(job) => {
                    let tokens = job.tokens;
                    self.batcher.push(job, tokens, Instant::now());
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return !self.batcher.is_empty(),
            }
        }
    }

    /// Frees the queue's places and leaves out whom nobody waits for any more.
    fn begin(&mut self, batch: Vec<Job>) {
        let wanted = batch.into_iter().filter(|job| !job.reply.is_closed());
        self.running = wanted
            .map(|job| {
                let Job { inputs, tokens, reply, waiting, place } = job;
                drop((waiting, place));
                let embeddings = vec![None; inputs.len()];
                Running { inputs, tokens, reply, embeddings, failure: None, device_seconds: 0.0 }
            })
            .collect();
        if !self.running.is_empty() {
            let tokens: u64 = self.running.iter().map(|job| u64::from(job.tokens)).sum();
            self.metrics.batch_tokens.observe(tokens as f64);
            tracing::debug!(requests = self.running.len(), tokens, "batch begins");
        }
    }

    fn compute(&mut self) -> Result<(), String> {
        for group in self.groups() {
            let started = Instant::now();
            let outcome = self.compute_group(&group);
            self.charge(&group, started.elapsed());
            outcome?;
        }
        Ok(())
    }

    /// The batch by model and kind, in order of first appearance. The waiting inputs keep their order.
    fn groups(&self) -> Vec<Group> {
        let mut index: HashMap<(usize, bool), usize> = HashMap::new();
        let mut groups: Vec<Group> = Vec::new();
        for (job, running) in self.running.iter().enumerate() {
            for (position, input) in running.inputs.iter().enumerate() {
                let kind = (input.model, matches!(input.content, Content::Image(_)));
                let group = *index.entry(kind).or_insert_with(|| {
                    groups.push(Group { model: input.model, places: Vec::new() });
                    groups.len() - 1
                });
                groups[group].places.push((job, position));
            }
        }
        groups
    }

    fn compute_group(&mut self, group: &Group) -> Result<(), String> {
        match self.forward(group.model, &group.places) {
            Ok(rows) => {
                self.keep(group, &group.places, rows);
                Ok(())
            }
            Err(error) => {
                let model = &self.models[group.model].name;
                tracing::warn!(model, inputs = group.places.len(), %error, "batch failed; running its inputs one by one");
                self.compute_one_by_one(group)
            }
        }
    }

    fn compute_one_by_one(&mut self, group: &Group) -> Result<(), String> {
        for place in &group.places {
            let places = std::slice::from_ref(place);
            match self.forward(group.model, places) {
                Ok(rows) => self.keep(group, places, rows),
                Err(error) => {
                    self.check_device(group.model)?;
                    let model = self.models[group.model].name.clone();
                    self.running[place.0].fail(match error {
                        ModelError::Input { detail } => InferenceError::BadInput { model, detail },
                        other => InferenceError::BadOutput { model, detail: other.to_string() },
                    });
                }
            }
        }
        Ok(())
    }

    /// Tells a bad input from a broken device.
    fn check_device(&mut self, model: usize) -> Result<(), String> {
        let DeviceModel { name, encoder, probe } = &mut self.models[model];
        match probe.embed_alone(encoder.as_mut()) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("model {name:?} fails even on a known input: {error}")),
        }
    }

    /// One row for each place, in order. Pixels that several places share are computed once.
    fn forward(&mut self, model: usize, places: &[Place]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut texts = Vec::new();
        let mut images: Vec<&Pixels> = Vec::new();
        let mut row_of: HashMap<*const Pixels, usize> = HashMap::new();
        let mut rows = Vec::with_capacity(places.len());
        for (job, position) in places {
            match &self.running[*job].inputs[*position].content {
                Content::Text(ids) => {
                    rows.push(texts.len());
                    texts.push(ids);
                }
                Content::Image(pixels) => {
                    rows.push(*row_of.entry(Arc::as_ptr(pixels)).or_insert_with(|| {
                        images.push(pixels);
                        images.len() - 1
                    }));
                }
            }
        }
        let encoder = &mut self.models[model].encoder;
        let computed = if images.is_empty() { encoder.embed_texts(&texts)? } else { encoder.embed_images(&images)? };
        Ok(rows.into_iter().map(|row| computed[row].clone()).collect())
    }

    fn keep(&mut self, group: &Group, places: &[Place], rows: Vec<Vec<f32>>) {
        for ((job, position), row) in places.iter().zip(rows) {
            if row.iter().all(|value| value.is_finite()) {
                self.running[*job].embeddings[*position] = Some(row);
            } else {
                let model = self.models[group.model].name.clone();
                let detail = "a vector that holds values which are no numbers".to_owned();
                self.running[*job].fail(InferenceError::BadOutput { model, detail });
            }
        }
    }

    /// Shares the group's time among its requests by tokens.
    fn charge(&mut self, group: &Group, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let model = &self.models[group.model].name;
        self.metrics.device_seconds_total.with_label_values(&[model.as_str()]).inc_by(seconds);
        let cost = |(job, position): &Place| f64::from(self.running[*job].inputs[*position].content.cost());
        let costs: Vec<f64> = group.places.iter().map(cost).collect();
        let total: f64 = costs.iter().sum::<f64>().max(1.0);
        for ((job, _), cost) in group.places.iter().zip(costs) {
            self.running[*job].device_seconds += seconds * cost / total;
        }
    }

    fn answer(&mut self) {
        for running in self.running.drain(..) {
            let Running { tokens, reply, embeddings, failure, device_seconds, .. } = running;
            let result = match failure {
                Some(failure) => Err(failure),
                None => Ok(Answer {
                    embeddings: embeddings.into_iter().flatten().collect(),
                    prompt_tokens: tokens,
                    completion_tokens: 0,
                    device_seconds,
                    finish_reason: "embedded",
                }),
            };
            // Whoever stopped waiting meanwhile wants no answer.
            let _ = reply.send(result);
        }
    }
}

impl Running {
    /// The first failure is the one that is told.
    fn fail(&mut self, failure: InferenceError) {
        self.failure.get_or_insert(failure);
    }
}
