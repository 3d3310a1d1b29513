//! The device thread: takes requests in, lets encoders and generators work in turn, and answers each request.
//!
//! It knows no product and no configuration. Invariants: only this thread touches a model; a request is answered once,
//! as soon as its last part is done or its first part has failed; when the device itself no longer works the thread ends,
//! and nobody's asset is blamed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::api::{Answer, InferenceError};
use super::batch::Batcher;
use super::encoders::{Content, EncoderInput, Encoders};
use super::generation::{PreparedGeneration, Writer};
use super::options::Options;
use super::settled::{Done, Place, Settled};
use crate::metrics::Metrics;

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

/// One task of a prepared request.
pub enum Input {
    Encode {
        /// Index of its model.
        model: usize,
        content: Content,
    },
    Generate {
        model: usize,
        generation: Box<PreparedGeneration>,
    },
}

impl Input {
    /// Tokens that the device reads for it.
    pub fn cost(&self) -> u32 {
        match self {
            Self::Encode { content, .. } => content.cost(),
            Self::Generate { generation, .. } => generation.prompt_tokens(),
        }
    }
}

/// A request on its way to the device.
pub struct Job {
    pub inputs: Vec<Input>,
    pub tokens: u32,
    pub reply: oneshot::Sender<Result<Answer, InferenceError>>,
    pub waiting: WaitingMark,
    /// Its place in the queue, given back when its batch begins; with a generation, when it is answered.
    pub place: OwnedSemaphorePermit,
}

/// A request that is being worked on.
struct Open {
    reply: oneshot::Sender<Result<Answer, InferenceError>>,
    done: Vec<Option<Done>>,
    left: usize,
    tokens: u32,
    device_seconds: f64,
    /// Models that write for it.
    writers: HashSet<usize>,
    /// Until its first part is with an encoder or a generator.
    waiting: Option<WaitingMark>,
    place: Option<OwnedSemaphorePermit>,
}

/// All that the device thread owns.
pub struct DeviceLoop {
    encoders: Encoders,
    /// By the index of their model.
    writers: HashMap<usize, Writer>,
    jobs: Receiver<Job>,
    /// Encoder inputs, those of one request together.
    batcher: Batcher<Vec<EncoderInput>>,
    open: HashMap<u64, Open>,
    next: u64,
    /// No more requests can come.
    closed: bool,
    metrics: Arc<Metrics>,
}

impl DeviceLoop {
    pub fn new(
        encoders: Encoders,
        writers: HashMap<usize, Writer>,
        jobs: Receiver<Job>,
        options: &Options,
        metrics: Arc<Metrics>,
    ) -> Self {
        let batcher = Batcher::new(options.batch_tokens, options.max_wait);
        Self { encoders, writers, jobs, batcher, open: HashMap::new(), next: 0, closed: false, metrics }
    }

    /// Runs until every sender is gone and all that waited is answered; or ends early, with the reason, when the device
    /// no longer works. May panic; the caller catches it.
    pub fn run(&mut self) -> Result<(), String> {
        while self.receive() {
            self.forget_abandoned();
            self.encode()?;
            self.write()?;
        }
        Ok(())
    }

    /// Waits until there is something to do. False when everything is done and no more can come.
    fn receive(&mut self) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => {
                    self.take_in(job);
                    if self.batcher.is_due(Instant::now()) {
                        return true;
                    }
                    continue;
                }
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return !self.batcher.is_empty() || self.is_writing();
                }
                Err(TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            let received = match self.batcher.due_at(now) {
                _ if self.is_writing() => return true,
                Some(due) if due <= now => return true,
                Some(due) => self.jobs.recv_timeout(due - now),
                None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(job) => self.take_in(job),
                Err(RecvTimeoutError::Timeout) => return true,
                // The next look says what is left.
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn is_writing(&self) -> bool {
        self.writers.values().any(|writer| !writer.is_idle())
    }

    fn take_in(&mut self, job: Job) {
        let Job { inputs, tokens, reply, waiting, place } = job;
        let request = self.next;
        self.next += 1;
        let open = Open {
            reply,
            done: vec![None; inputs.len()],
            left: inputs.len(),
            tokens,
            device_seconds: 0.0,
            writers: HashSet::new(),
            waiting: Some(waiting),
            place: Some(place),
        };
        self.open.insert(request, open);
        if inputs.is_empty() {
            return self.answer_if_done(request);
        }
        let (mut encoding, mut cost) = (Vec::new(), 0_u32);
        for (task, input) in inputs.into_iter().enumerate() {
            let place = Place { request, task };
            match input {
                Input::Encode { model, content } => {
                    cost = cost.saturating_add(content.cost());
                    encoding.push(EncoderInput { place, model, content });
                }
                Input::Generate { model, generation } => self.start_writing(place, model, generation),
            }
        }
        // A generation that was refused at once has taken its request with it.
        if !encoding.is_empty() && self.open.contains_key(&request) {
            self.batcher.push(encoding, cost, Instant::now());
        }
    }

    fn start_writing(&mut self, place: Place, model: usize, generation: Box<PreparedGeneration>) {
        let writer = self.writers.get_mut(&model).expect("generations are prepared for generators alone");
        match writer.start(place, generation) {
            Ok(()) => {
                if let Some(open) = self.open.get_mut(&place.request) {
                    open.writers.insert(model);
                    open.waiting = None;
                }
            }
            Err(failure) => self.settle(Settled { place, result: Err(failure), device_seconds: 0.0 }),
        }
    }

    /// Leaves out whom nobody waits for any more.
    fn forget_abandoned(&mut self) {
        if !self.is_writing() {
            return;
        }
        let abandoned = self.open.iter().filter(|(_, open)| !open.writers.is_empty() && open.reply.is_closed());
        for request in abandoned.map(|(request, _)| *request).collect::<Vec<_>>() {
            self.close(request);
        }
    }

    /// Forgets a request; what is still written for it is cancelled.
    fn close(&mut self, request: u64) -> Option<Open> {
        let open = self.open.remove(&request)?;
        for model in &open.writers {
            if let Some(writer) = self.writers.get_mut(model) {
                writer.cancel(request);
            }
        }
        Some(open)
    }

    fn encode(&mut self) -> Result<(), String> {
        if self.batcher.is_empty() || !(self.closed || self.batcher.is_due(Instant::now())) {
            return Ok(());
        }
        let mut batch = Vec::new();
        for inputs in self.batcher.take() {
            let Some(request) = inputs.first().map(|input| input.place.request) else { continue };
            let Some(open) = self.open.get_mut(&request) else { continue };
            open.waiting = None;
            if open.writers.is_empty() {
                open.place = None;
            }
            if open.reply.is_closed() {
                self.close(request);
            } else {
                batch.extend(inputs);
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let tokens: u64 = batch.iter().map(|input| u64::from(input.content.cost())).sum();
        self.metrics.batch_tokens.observe(tokens as f64);
        tracing::debug!(inputs = batch.len(), tokens, "batch begins");
        for settled in self.encoders.compute(batch)? {
            self.settle(settled);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), String> {
        let mut all = Vec::new();
        for writer in self.writers.values_mut().filter(|writer| !writer.is_idle()) {
            all.extend(writer.step(Instant::now())?);
        }
        for settled in all {
            self.settle(settled);
        }
        Ok(())
    }

    /// Keeps a result. The first failure of a request is its answer.
    fn settle(&mut self, settled: Settled) {
        let Settled { place, result, device_seconds } = settled;
        match result {
            Ok(done) => {
                if let Some(open) = self.open.get_mut(&place.request) {
                    open.device_seconds += device_seconds;
                    open.done[place.task] = Some(done);
                    open.left -= 1;
                    self.answer_if_done(place.request);
                }
            }
            Err(failure) => {
                if let Some(open) = self.close(place.request) {
                    // Whoever stopped waiting meanwhile wants no answer.
                    let _ = open.reply.send(Err(failure));
                }
            }
        }
    }

    fn answer_if_done(&mut self, request: u64) {
        if self.open.get(&request).is_none_or(|open| open.left > 0) {
            return;
        }
        if let Some(open) = self.open.remove(&request) {
            let answer = answer(open.done, open.tokens, open.device_seconds);
            let _ = open.reply.send(Ok(answer));
        }
    }
}

fn answer(done: Vec<Option<Done>>, prompt_tokens: u32, device_seconds: f64) -> Answer {
    let (embeddings, texts) = (Vec::new(), Vec::new());
    let finish_reason = "embedded";
    let mut answer = Answer { embeddings, texts, prompt_tokens, completion_tokens: 0, device_seconds, finish_reason };
    for done in done.into_iter().flatten() {
        match done {
            Done::Vector(vector) => answer.embeddings.push(vector),
            Done::Text(written) => {
                answer.embeddings.extend(written.vector);
                answer.texts.push(written.text);
                answer.completion_tokens += u32::try_from(written.tokens).unwrap_or(u32::MAX);
                answer.finish_reason = written.finish.as_str();
            }
        }
    }
    answer
}
