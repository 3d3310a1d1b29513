//! The generators' loop, one step at a time: plan, see, compute, choose.
//!
//! Masks of output schemas are worked out on threads of their own while the device computes. Invariants: an answer that
//! fails fails alone; keys and values stay within the blocks that the cache was made with; a device that fails even on
//! a known input is said to be dead, and nobody's asset is blamed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use rayon::prelude::*;

use super::choice::{Choice, Chosen};
use super::features::FeatureCache;
use super::opinions::Opinions;
use super::packed::{Packed, PackedPart};
use super::writing::{PreparedGeneration, Writing};
use crate::engine::api::InferenceError;
use crate::engine::options::Options;
use crate::engine::scheduler::{Limits, Part, Plan, Scheduler};
use crate::engine::sequence::{NewSequence, SequenceId};
use crate::engine::settled::{Done, Finish, Place, Settled, Written};
use crate::kv::{BlockId, KvStore};
use crate::metrics::Metrics;
use crate::model::{
    ChatProcessor, Features, Generator, GeneratorShape, ModelError, SequenceStep, Step, StepOutput, Trace,
};

/// What a writer is made of.
pub struct WriterParts {
    /// The model's name in the configuration.
    pub name: String,
    pub generator: Box<dyn Generator>,
    pub processor: Arc<dyn ChatProcessor>,
    /// Blocks of its key-value cache.
    pub blocks: usize,
    /// Where masks are worked out.
    pub masks: Arc<ThreadPool>,
    pub metrics: Arc<Metrics>,
}

/// A generator and everything that it writes at the moment.
pub struct Writer {
    name: String,
    generator: Box<dyn Generator>,
    shape: GeneratorShape,
    processor: Arc<dyn ChatProcessor>,
    cache: KvStore,
    scheduler: Scheduler,
    seen: FeatureCache,
    writing: HashMap<SequenceId, Writing>,
    choices: HashMap<SequenceId, Choice>,
    masks: Arc<ThreadPool>,
    fast_forward: bool,
    metrics: Arc<Metrics>,
}

/// What a step has left for its answers.
struct Computed {
    parts: Vec<PackedPart>,
    opinions: Opinions,
    /// Of each part's pooled rows: all of them, or their sum.
    hidden: Vec<Vec<f32>>,
}

impl Writer {
    /// Makes the cache and lets the model compute once. Fails, with the reason, when it cannot.
    pub fn new(parts: WriterParts, options: &Options) -> Result<Self, ModelError> {
        let WriterParts { name, generator, processor, blocks, masks, metrics } = parts;
        let shape = generator.shape().clone();
        let limits = Limits {
            step_tokens: options.step_tokens,
            prefill_chunk: options.step_tokens,
            max_running: options.sequences,
            context: shape.context,
            share: options.prefix_cache,
        };
        let mut writer = Self {
            cache: generator.cache(blocks)?,
            generator,
            shape,
            processor,
            scheduler: Scheduler::new(limits, blocks),
            seen: FeatureCache::new(options.vision_cache.as_u64()),
            writing: HashMap::new(),
            choices: HashMap::new(),
            masks,
            fast_forward: options.fast_forward,
            metrics,
            name,
        };
        writer.probe()?;
        Ok(writer)
    }

    /// Whether there is nothing to write.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// Takes a generation in. Fails at once when it can never fit.
    pub fn start(&mut self, place: Place, generation: Box<PreparedGeneration>) -> Result<(), InferenceError> {
        let PreparedGeneration { prompt, choice, max_tokens, deadline, pooled_from } = *generation;
        let sequence = NewSequence {
            tokens: prompt.ids.clone(),
            pictures: prompt.images.iter().map(Into::into).collect(),
            max_new: max_tokens,
            shareable: pooled_from,
            deadline: None,
        };
        let id = self
            .scheduler
            .submit(sequence)
            .map_err(|error| InferenceError::BadInput { model: self.name.clone(), detail: error.to_string() })?;
        self.writing.insert(id, Writing::new(place, prompt, deadline, pooled_from));
        self.choices.insert(id, choice);
        self.begin_forced(id)
    }

    /// What the schema forces at the start of every answer is computed with the prompt.
    fn begin_forced(&mut self, id: SequenceId) -> Result<(), InferenceError> {
        let Some(choice) = self.choices.get_mut(&id).filter(|_| self.fast_forward) else { return Ok(()) };
        match choice.forced() {
            Ok(tokens) => {
                self.scheduler.extend(id, &tokens);
                self.count_tokens("forced", tokens.len());
                Ok(())
            }
            Err(error) => {
                self.forget(id);
                Err(InferenceError::BadOutput { model: self.name.clone(), detail: error.to_string() })
            }
        }
    }

    /// Forgets what is written for a request; its blocks are free at the next step.
    pub fn cancel(&mut self, request: u64) {
        let of_request = self.writing.iter().filter(|(_, writing)| writing.place.request == request);
        for id in of_request.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.scheduler.cancel(id);
            self.choices.remove(&id);
            self.writing.remove(&id);
            self.finished("cancelled");
        }
    }

    /// Computes one step and returns what is over. Fails, with the reason, when the device no longer works.
    pub fn step(&mut self, now: Instant) -> Result<Vec<Settled>, String> {
        let mut settled = Vec::new();
        self.close_late(now, &mut settled);
        let mut plan = self.scheduler.plan(now);
        self.note(&plan);
        for id in &plan.preempted {
            self.writing.get_mut(id).into_iter().for_each(Writing::set_back);
        }
        self.see(&mut plan, &mut settled)?;
        if !plan.parts.is_empty() {
            self.advance(plan, now, &mut settled)?;
        }
        Ok(settled)
    }

    fn note(&self, plan: &Plan) {
        let name = self.name.as_str();
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        self.metrics.running_sequences.with_label_values(&[name]).set(running as i64);
        self.metrics.waiting_sequences.with_label_values(&[name]).set(waiting as i64);
        let pool = self.scheduler.pool();
        self.metrics.kv_blocks.with_label_values(&[name, "used"]).set(pool.held() as i64);
        self.metrics.kv_blocks.with_label_values(&[name, "free"]).set(pool.available() as i64);
        self.metrics.preemptions_total.with_label_values(&[name]).inc_by(plan.preempted.len() as u64);
        for part in &plan.parts {
            let Some(writing) = self.writing.get(&part.id).filter(|writing| writing.started.is_none()) else {
                continue;
            };
            let count = |result, tokens: usize| {
                self.metrics.prefix_cache_tokens_total.with_label_values(&[name, result]).inc_by(tokens as u64);
            };
            count("hit", part.start);
            count("miss", writing.prompt.ids.len() - part.start);
        }
    }

    /// Ends answers whose time is over: closed where a schema says how, else cut; refused before their first token.
    fn close_late(&mut self, now: Instant, settled: &mut Vec<Settled>) {
        let late = self.writing.iter().filter(|(_, writing)| writing.is_late(now)).map(|(id, _)| *id);
        for id in late.collect::<Vec<_>>() {
            let (has_begun, within) = (self.writing[&id].sampled > 0, self.writing[&id].deadline.unwrap_or_default());
            let rest = self.choices.get_mut(&id).map(Choice::close);
            settled.extend(match rest {
                Some(Ok(rest)) if has_begun => {
                    self.scheduler.extend(id, &rest);
                    self.end(id, Finish::Deadline)
                }
                _ => self.fail(id, InferenceError::Deadline { model: self.name.clone(), within }),
            });
        }
    }

    /// Makes the features of pictures that this step's tokens need. A picture that cannot be used ends its answer.
    fn see(&mut self, plan: &mut Plan, settled: &mut Vec<Settled>) -> Result<(), String> {
        let mut failed = HashSet::new();
        for part in &plan.parts {
            let Some(writing) = self.writing.get(&part.id) else { continue };
            if !writing.features.is_empty() || !writing.shows(&part.range()) {
                continue;
            }
            match self.features(part.id) {
                Ok(features) => {
                    if let Some(writing) = self.writing.get_mut(&part.id) {
                        writing.features = features;
                    }
                }
                Err(error) => {
                    failed.insert(part.id);
                    let failure = self.blame(error)?;
                    settled.extend(self.fail(part.id, failure));
                }
            }
        }
        plan.parts.retain(|part| !failed.contains(&part.id));
        Ok(())
    }

    fn features(&mut self, id: SequenceId) -> Result<Vec<Features>, ModelError> {
        let started = Instant::now();
        let images = self.writing[&id].prompt.images.iter().map(|image| image.input.clone()).collect::<Vec<_>>();
        let mut all = Vec::with_capacity(images.len());
        for image in images {
            let known = self.seen.get(&image.hash);
            let result = if known.is_some() { "hit" } else { "miss" };
            self.metrics.vision_cache_total.with_label_values(&[&self.name, result]).inc();
            all.push(match known {
                Some(features) => features,
                None => {
                    let features = self.generator.see(&image, &mut Trace::off())?;
                    self.seen.keep(image.hash, &features);
                    features
                }
            });
        }
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.vision_seconds_total.with_label_values(&[&self.name]).inc_by(seconds);
        self.metrics.device_seconds_total.with_label_values(&[&self.name]).inc_by(seconds);
        self.writing.get_mut(&id).into_iter().for_each(|writing| writing.device_seconds += seconds);
        Ok(all)
    }

    /// Computes the plan's parts, together or, when that fails, one by one.
    fn advance(&mut self, plan: Plan, now: Instant, settled: &mut Vec<Settled>) -> Result<(), String> {
        for part in &plan.parts {
            self.writing.get_mut(&part.id).into_iter().for_each(|writing| _ = writing.started.get_or_insert(now));
        }
        let error = match self.compute(&plan.parts) {
            Ok(computed) => {
                self.scheduler.complete(&plan);
                self.choose(&computed, settled);
                return Ok(());
            }
            Err(error) => error,
        };
        let (model, answers) = (&self.name, plan.parts.len());
        tracing::warn!(model, answers, %error, "step failed; running its answers one by one");
        for part in &plan.parts {
            let alone = Plan { parts: vec![*part], ..Plan::default() };
            match self.compute(&alone.parts) {
                Ok(computed) => {
                    self.scheduler.complete(&alone);
                    self.choose(&computed, settled);
                }
                Err(error) => {
                    let failure = self.blame(error)?;
                    settled.extend(self.fail(part.id, failure));
                }
            }
        }
        Ok(())
    }

    /// One forward pass, with the masks of what will be sampled after it worked out beside it.
    fn compute(&mut self, parts: &[Part]) -> Result<Computed, ModelError> {
        let mut packed = Packed::default();
        for part in parts {
            if let (Some(sequence), Some(writing)) = (self.scheduler.sequence(part.id), self.writing.get(&part.id)) {
                packed.add(sequence, part.range(), writing);
            }
        }
        let sampling: Vec<SequenceId> = packed.parts.iter().filter(|part| part.samples).map(|part| part.id).collect();
        let is_sampling: HashSet<SequenceId> = sampling.iter().copied().collect();
        let choices: Vec<&mut Choice> =
            self.choices.iter_mut().filter(|(id, _)| is_sampling.contains(id)).map(|(_, choice)| choice).collect();
        let (generator, cache) = (&mut self.generator, &mut self.cache);
        let started = Instant::now();
        let (output, computed) = self.masks.in_place_scope(|scope| {
            for choice in choices {
                scope.spawn(move |_| choice.prepare());
            }
            let output = generator.step(&packed.step(), cache, &mut Trace::off());
            (output, Instant::now())
        });
        let waited = computed.elapsed().as_secs_f64();
        self.metrics.mask_seconds_total.with_label_values(&[&self.name]).inc_by(waited);
        let parts = packed.parts;
        let looked = Instant::now();
        let opinions = output.and_then(|StepOutput { logits, hidden }| {
            let opinions = Opinions::read(logits, &sampling, &mut self.choices, self.shape.vocabulary)?;
            let pooled: Vec<usize> = parts.iter().map(|part| part.pooled.len()).collect();
            Ok((opinions, hidden.grouped(&pooled, self.shape.hidden)?))
        });
        self.charge(&parts, computed - started + looked.elapsed());
        let (opinions, hidden) = opinions?;
        Ok(Computed { parts, opinions, hidden })
    }

    /// Shares the step's time among its answers by tokens.
    fn charge(&mut self, parts: &[PackedPart], elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        self.metrics.device_seconds_total.with_label_values(&[&self.name]).inc_by(seconds);
        let total: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let (mut prompts, mut decodes) = (0, false);
        for part in parts {
            let Some(writing) = self.writing.get_mut(&part.id) else { continue };
            writing.device_seconds += seconds * part.tokens.len() as f64 / total.max(1) as f64;
            prompts += part.tokens.end.min(writing.prompt.ids.len()).saturating_sub(part.tokens.start);
            decodes |= part.tokens.end > writing.prompt.ids.len();
        }
        let kind = match (prompts > 0, decodes) {
            (true, true) => "mixed",
            (true, false) => "prefill",
            (false, _) => "decode",
        };
        self.metrics.engine_step_seconds.with_label_values(&[self.name.as_str(), kind]).observe(seconds);
        self.metrics.prompt_tokens_total.with_label_values(&[&self.name]).inc_by(prompts as u64);
        self.metrics.batch_tokens.observe(total as f64);
    }

    /// Pools hidden states and adds the next token to every answer that this step was the last for.
    fn choose(&mut self, computed: &Computed, settled: &mut Vec<Settled>) {
        let width = self.shape.hidden;
        for (part, states) in computed.parts.iter().zip(&computed.hidden) {
            if let Some(writing) = self.writing.get_mut(&part.id) {
                writing.pool(states, width, part.pooled.len());
                if part.tokens.end >= writing.prompt.ids.len() {
                    writing.features = Vec::new();
                }
            }
        }
        let chosen = self.chosen(&computed.opinions);
        for (id, chosen) in chosen {
            match chosen {
                Ok(chosen) => settled.extend(self.extend(id, chosen)),
                Err(detail) => {
                    let failure = InferenceError::BadOutput { model: self.name.clone(), detail };
                    settled.extend(self.fail(id, failure));
                }
            }
        }
    }

    /// The next tokens of every answer that samples, worked out side by side.
    fn chosen(&mut self, opinions: &Opinions) -> Vec<(SequenceId, Result<Chosen, String>)> {
        let scheduler = &self.scheduler;
        let waiting: Vec<_> = self
            .choices
            .iter_mut()
            .filter_map(|(id, choice)| Some((*id, choice, opinions.of(*id)?, scheduler.sequence(*id)?)))
            .collect();
        let (ends, fast_forward) = (&self.shape.end_tokens, self.fast_forward);
        waiting
            .into_par_iter()
            .map(|(id, choice, opinion, sequence)| (id, choice.next(opinion, sequence, ends, fast_forward)))
            .collect()
    }

    fn extend(&mut self, id: SequenceId, chosen: Chosen) -> Option<Settled> {
        let Chosen { tokens, forced, finish } = chosen;
        self.scheduler.extend(id, &tokens);
        self.writing.get_mut(&id).into_iter().for_each(|writing| writing.sampled += tokens.len() - forced);
        self.count_tokens("forced", forced);
        self.count_tokens("sampled", tokens.len() - forced);
        self.end(id, finish?)
    }

    fn count_tokens(&self, kind: &str, count: usize) {
        self.metrics.generated_tokens_total.with_label_values(&[self.name.as_str(), kind]).inc_by(count as u64);
    }

    fn end(&mut self, id: SequenceId, finish: Finish) -> Option<Settled> {
        let ids = self.scheduler.sequence(id)?.generated().to_vec();
        let text = match self.processor.decode(&ids) {
            Ok(text) => text,
            Err(error) => {
                let model = self.name.clone();
                return self.fail(id, InferenceError::BadOutput { model, detail: error.to_string() });
            }
        };
        let vector = match self.writing.get(&id)?.embedding() {
            Ok(vector) => vector,
            Err(detail) => {
                let failure = InferenceError::BadOutput { model: self.name.clone(), detail };
                return self.fail(id, failure);
            }
        };
        let Writing { place, device_seconds, .. } = self.forget(id)?;
        self.finished(finish.as_str());
        let written = Written { text, vector, tokens: ids.len(), finish };
        Some(Settled { place, result: Ok(Done::Text(written)), device_seconds })
    }

    fn fail(&mut self, id: SequenceId, failure: InferenceError) -> Option<Settled> {
        let Writing { place, device_seconds, .. } = self.forget(id)?;
        self.finished("failed");
        Some(Settled { place, result: Err(failure), device_seconds })
    }

    fn finished(&self, reason: &str) {
        self.metrics.finished_sequences_total.with_label_values(&[self.name.as_str(), reason]).inc();
    }

    fn forget(&mut self, id: SequenceId) -> Option<Writing> {
        self.scheduler.finish(id);
        self.choices.remove(&id);
        self.writing.remove(&id)
    }

    /// Tells a bad input from a broken device.
    fn blame(&mut self, error: ModelError) -> Result<InferenceError, String> {
        let model = self.name.clone();
        match self.probe() {
            Err(broken) => Err(format!("model {model:?} fails even on a known input: {broken}")),
            Ok(()) => Ok(match error {
                ModelError::Input { detail } => InferenceError::BadInput { model, detail },
                other => InferenceError::BadOutput { model, detail: other.to_string() },
            }),
        }
    }

    /// One token by itself, in a cache of its own.
    fn probe(&mut self) -> Result<(), ModelError> {
        let mut cache = self.generator.cache(1)?;
        let blocks = [BlockId(0)];
        let step = Step {
            tokens: &[0],
            positions: &[[0; 3]],
            sequences: &[SequenceStep { new: 1, past: 0, blocks: &blocks }],
            splices: &[],
            logits: &[0],
            hidden: &[],
        };
        self.generator.step(&step, &mut cache, &mut Trace::off()).map(|_| ())
    }
}
