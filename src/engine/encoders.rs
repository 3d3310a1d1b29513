//! The encoders' half of the device thread: one batch of inputs in, one vector for each out.
//!
//! It knows no queue and no clock but the one that measures its work. Invariants: an input that fails is found by running
//! its batch again one by one, so it fails alone; when the device itself no longer works that is said instead, and
//! nobody's asset is blamed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::api::InferenceError;
use super::settled::{Done, Place, Settled};
use crate::metrics::Metrics;
use crate::model::{Encoder, ModelError, Pixels, TokenIds};

/// An encoder as the device thread owns it.
pub struct DeviceEncoder {
    pub name: String,
    pub encoder: Box<dyn Encoder>,
    /// An input that is known to work: when even this fails, it is the device that is broken.
    pub probe: Content,
}

/// What an encoder embeds. Equal pictures of a request share their pixels.
#[derive(Debug, Clone)]
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

/// One input of a batch.
#[derive(Debug)]
pub struct EncoderInput {
    pub place: Place,
    /// Index of its model.
    pub model: usize,
    pub content: Content,
}

/// All encoders of the device, by the index of their model.
pub struct Encoders {
    encoders: HashMap<usize, DeviceEncoder>,
    metrics: Arc<Metrics>,
}

/// Inputs of one model and one kind, computed together.
struct Group {
    model: usize,
    inputs: Vec<EncoderInput>,
}

impl Encoders {
    pub fn new(encoders: HashMap<usize, DeviceEncoder>, metrics: Arc<Metrics>) -> Self {
        Self { encoders, metrics }
    }

    /// Computes a batch. Fails, with the reason, when the device no longer works.
    pub fn compute(&mut self, batch: Vec<EncoderInput>) -> Result<Vec<Settled>, String> {
        let mut settled = Vec::with_capacity(batch.len());
        for group in groups(batch) {
            let started = Instant::now();
            let results = self.compute_group(&group)?;
            let shares = self.shares(&group, started.elapsed());
            for ((input, result), device_seconds) in group.inputs.iter().zip(results).zip(shares) {
                settled.push(Settled { place: input.place, result, device_seconds });
            }
        }
        Ok(settled)
    }

    fn compute_group(&mut self, group: &Group) -> Result<Vec<Result<Done, InferenceError>>, String> {
        match self.forward(group.model, &group.inputs) {
            Ok(rows) => Ok(rows.into_iter().map(|row| self.checked(group.model, row)).collect()),
            Err(error) => {
                let (model, inputs) = (self.name(group.model), group.inputs.len());
                tracing::warn!(model, inputs, %error, "batch failed; running its inputs one by one");
                group.inputs.iter().map(|input| self.compute_alone(group.model, input)).collect()
            }
        }
    }

    fn compute_alone(&mut self, model: usize, input: &EncoderInput) -> Result<Result<Done, InferenceError>, String> {
        match self.forward(model, std::slice::from_ref(input)) {
            Ok(mut rows) => Ok(self.checked(model, rows.pop().unwrap_or_default())),
            Err(error) => {
                self.check_device(model)?;
                let model = self.name(model).to_owned();
                Ok(Err(match error {
                    ModelError::Input { detail } => InferenceError::BadInput { model, detail },
                    other => InferenceError::BadOutput { model, detail: other.to_string() },
                }))
            }
        }
    }

    /// Tells a bad input from a broken device.
    fn check_device(&mut self, model: usize) -> Result<(), String> {
        let Some(DeviceEncoder { name, encoder, probe }) = self.encoders.get_mut(&model) else { return Ok(()) };
        match probe.embed_alone(encoder.as_mut()) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("model {name:?} fails even on a known input: {error}")),
        }
    }

    /// One row for each input, in order. Pixels that several inputs share are computed once.
    fn forward(&mut self, model: usize, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut texts = Vec::new();
        let mut images: Vec<&Pixels> = Vec::new();
        let mut row_of: HashMap<*const Pixels, usize> = HashMap::new();
        let mut rows = Vec::with_capacity(inputs.len());
        for input in inputs {
            match &input.content {
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
        let encoder = &mut self.encoders.get_mut(&model).expect("inputs are made for encoders alone").encoder;
        let computed = if images.is_empty() { encoder.embed_texts(&texts)? } else { encoder.embed_images(&images)? };
        Ok(rows.into_iter().map(|row| computed[row].clone()).collect())
    }

    fn checked(&self, model: usize, row: Vec<f32>) -> Result<Done, InferenceError> {
        if row.iter().all(|value| value.is_finite()) {
            return Ok(Done::Vector(row));
        }
        let detail = "a vector that holds values which are no numbers".to_owned();
        Err(InferenceError::BadOutput { model: self.name(model).to_owned(), detail })
    }

    /// Shares the group's time among its inputs by tokens.
    fn shares(&self, group: &Group, elapsed: Duration) -> Vec<f64> {
        let seconds = elapsed.as_secs_f64();
        self.metrics.device_seconds_total.with_label_values(&[self.name(group.model)]).inc_by(seconds);
        let costs: Vec<f64> = group.inputs.iter().map(|input| f64::from(input.content.cost())).collect();
        let total: f64 = costs.iter().sum::<f64>().max(1.0);
        costs.into_iter().map(|cost| seconds * cost / total).collect()
    }

    fn name(&self, model: usize) -> &str {
        self.encoders.get(&model).map_or("", |encoder| &encoder.name)
    }
}

/// The batch by model and kind, in order of first appearance. The inputs keep their order.
fn groups(batch: Vec<EncoderInput>) -> Vec<Group> {
    let mut index: HashMap<(usize, bool), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for input in batch {
        let kind = (input.model, matches!(input.content, Content::Image(_)));
        let group = *index.entry(kind).or_insert_with(|| {
            groups.push(Group { model: input.model, inputs: Vec::new() });
            groups.len() - 1
        });
        groups[group].inputs.push(input);
    }
    groups
}
