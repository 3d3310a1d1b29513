//! The engine as the rest of the process holds it: loads the models, starts the device thread, passes requests on.
//!
//! It knows no product and no tensor. Invariants: at most `queue` requests are with the device, further callers wait
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
use super::device_loop::{DeviceLoop, Input, Job, WaitingMark};
use super::encoders::Content;
use super::options::{EngineError, ModelOptions, Options};
use super::starting::{LoadedModel, Sides, load, start_device};
use crate::metrics::Metrics;
use crate::model::{ModelError, Pixels};

/// The running engine. Dropping it lets the device thread finish what waits, without anybody waiting for it.
pub struct Engine {
    descriptions: Vec<ModelDescription>,
    sides: Vec<Sides>,
    index: HashMap<String, usize>,
    /// None once the engine was shut down.
    jobs: Mutex<Option<SyncSender<Job>>>,
    places: Arc<Semaphore>,
    /// Why the device thread ended; empty while it lives.
    ended: Arc<OnceLock<String>>,
    thread: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
    metrics: Arc<Metrics>,
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
        options.check()?;
        let loaded = load(options, models)?;
        Self::with_models(options, loaded, metrics)
    }

    /// The same with models that were loaded before.
    pub(super) fn with_models(
        options: &Options,
        models: Vec<LoadedModel>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let descriptions: Vec<ModelDescription> = models.iter().map(|model| model.description.clone()).collect();
        let index = descriptions.iter().enumerate().map(|(at, model)| (model.name.clone(), at)).collect();
        let (sender, receiver) = sync_channel(options.queue);
        let places = Arc::new(Semaphore::new(options.queue));
        let ended = Arc::new(OnceLock::new());
        let (device, sides) = start_device(options, models, receiver, &metrics)?;
        let thread = spawn(device, ended.clone(), places.clone(), metrics.clone())?;
        Ok(Self {
            descriptions,
            sides,
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

    fn model(&self, name: &str) -> Result<(usize, &Sides), InferenceError> {
        match self.index.get(name) {
            Some(index) => Ok((*index, &self.sides[*index])),
            None => Err(InferenceError::UnknownModel { model: name.to_owned() }),
        }
    }

    /// The device's input for one task. Equal pictures of a request share their pixels through `seen`.
    fn input<'r>(&self, task: &'r Task, seen: &mut Vec<SeenImage<'r>>) -> Result<Input, InferenceError> {
        let name: &str = task.model();
        let (model, sides) = self.model(name)?;
        let lacks = |detail: &str| {
            let detail = detail.to_owned();
            InferenceError::Unsupported { model: name.to_owned(), detail }
        };
        if let Task::Generate(generation) = task {
            let preparer = sides.generation.as_ref().ok_or_else(|| lacks("it embeds and writes nothing"))?;
            return Ok(Input::Generate { model, generation: Box::new(preparer.prepare(generation)?) });
        }
        let processor = sides.embedding.as_ref().ok_or_else(|| lacks("it writes and embeds only its own prompts"))?;
        let bad = |error| blame(name, error);
        let content = match task {
            Task::EmbedText { text, .. } => Content::Text(processor.text(text).map_err(bad)?),
            Task::EmbedImage { image, .. } => {
                let known = seen.iter().find(|(of, other, _)| *of == model && Arc::ptr_eq(other, image));
                let pixels = match known {
                    Some((_, _, pixels)) => pixels.clone(),
                    None => Arc::new(processor.image(image.picture()).map_err(bad)?),
                };
                seen.push((model, image, pixels.clone()));
                Content::Image(pixels)
            }
            Task::Generate(_) => return Err(lacks("it embeds and writes nothing")),
        };
        Ok(Input::Encode { model, content })
    }
}

/// A picture of a request and what one model made of it.
type SeenImage<'r> = (usize, &'r Arc<Image>, Arc<Pixels>);

#[async_trait]
impl Inference for Engine {
    fn models(&self) -> &[ModelDescription] {
        &self.descriptions
    }

    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError> {
        let mut seen = Vec::new();
        let inputs: Vec<Input> =
            request.tasks.iter().map(|task| self.input(task, &mut seen)).collect::<Result<_, _>>()?;
        let tokens = inputs.iter().fold(0_u32, |sum, input| sum.saturating_add(input.cost()));
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

fn blame(model: &str, error: ModelError) -> InferenceError {
    InferenceError::BadInput { model: model.to_owned(), detail: error.to_string() }
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
mod tests {
    // A text is a list of words; a word that is a number is its token id, and some ids make the encoder misbehave.

    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, sync_channel};

    use futures::future::join_all;

    use super::*;
    use crate::model::{self, Encoder, EncoderParts, Picture, Processor, TokenIds};

    const HOUR: Duration = Duration::from_secs(3600);
    const REFUSED: u32 = 13;
    const FAILING: u32 = 14;
    const NOT_A_NUMBER: u32 = 15;
    const BREAKING: u32 = 16;
    const PANICKING: u32 = 17;
    const GATED: u32 = 18;

    struct Words;

    impl Processor for Words {
        fn text(&self, text: &str) -> Result<TokenIds, ModelError> {
            match text.is_empty() {
                true => Err(ModelError::Input { detail: "the text has no tokens".to_owned() }),
                false => Ok(TokenIds(text.split(' ').map(|word| word.parse().unwrap_or(1)).collect())),
            }
        }

        fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError> {
            Ok(Pixels { side: 1, values: vec![f32::from(picture.rgb[0])], cost: picture.width })
        }
    }

    struct Moody {
        /// How many inputs each call had.
        calls: Arc<Mutex<Vec<usize>>>,
        gate: Receiver<()>,
        broken: bool,
    }

    impl Encoder for Moody {
        fn dimensions(&self) -> usize {
            2
        }

        fn takes_texts(&self) -> bool {
            true
        }

        fn takes_images(&self) -> bool {
            true
        }

        fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError> {
            self.calls.lock().unwrap().push(texts.len());
            let has = |id| texts.iter().any(|text| text.0.contains(&id));
            assert!(!has(PANICKING), "told to panic");
            if has(GATED) {
                self.gate.recv().unwrap();
            }
            self.broken |= has(BREAKING);
            if has(REFUSED) {
                return Err(ModelError::Input { detail: "thirteen".to_owned() });
            }
            if self.broken || has(FAILING) {
                return Err(ModelError::Compute(candle_core::Error::Msg("no kernel".to_owned())));
            }
            let value = |text: &&TokenIds| if text.0[0] == NOT_A_NUMBER { f32::NAN } else { text.0[0] as f32 };
            Ok(texts.iter().map(|text| vec![value(text), 0.0]).collect())
        }

        fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
            self.calls.lock().unwrap().push(images.len());
            Ok(images.iter().map(|image| vec![image.values[0], 1.0]).collect())
        }
    }

    struct Bench {
        engine: Engine,
        metrics: Arc<Metrics>,
        calls: Arc<Mutex<Vec<usize>>>,
        gate: std::sync::mpsc::SyncSender<()>,
    }

    /// An engine with one moody model whose batches are due at `batch_tokens` alone.
    fn bench(batch_tokens: u32, queue: usize) -> Bench {
        let options = Options { batch_tokens, queue, max_wait: HOUR, ..Options::default() };
        let (gate, wait) = sync_channel(16);
        let calls = Arc::new(Mutex::new(Vec::new()));
        let description = ModelDescription {
            name: "moody".to_owned(),
            architecture: "Moody".to_owned(),
            fingerprint: "0".repeat(16),
            dimensions: 2,
            embeds: true,
            generates: false,
        };
        let encoder = Box::new(Moody { calls: calls.clone(), gate: wait, broken: false });
        let metrics = Arc::new(Metrics::new());
        let encoder = Some(EncoderParts { processor: Arc::new(Words), encoder });
        let model = LoadedModel { description, encoder, generator: None, blocks: 0 };
        let engine = Engine::with_models(&options, vec![model], metrics.clone()).unwrap();
        calls.lock().unwrap().clear();
        Bench { engine, metrics, calls, gate }
    }

    impl Bench {
        fn text(&self, text: &str) -> Prepared {
            let task = Task::EmbedText { model: "moody".into(), text: text.to_owned() };
            self.engine.prepare(&Request { tasks: vec![task] }).unwrap()
        }

        async fn texts(&self, texts: &[&str]) -> Vec<Result<Answer, InferenceError>> {
            join_all(texts.iter().map(|text| self.engine.infer(self.text(text)))).await
        }

        async fn until(&self, holds: impl Fn(&Self) -> bool) {
            while !holds(self) {
                tokio::task::yield_now().await;
            }
        }
    }

    fn first(result: &Result<Answer, InferenceError>) -> f32 {
        result.as_ref().unwrap().embeddings[0][0]
    }

    #[tokio::test]
    async fn requests_share_a_batch_and_each_gets_its_own_answer() {
        let bench = bench(6, 8);
        let answers = bench.texts(&["2", "3 3 3", "4 4"]).await;
        assert_eq!(answers.iter().map(first).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
        assert_eq!(*bench.calls.lock().unwrap(), [3]);
        let answers: Vec<Answer> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers.iter().map(|answer| answer.prompt_tokens).collect::<Vec<_>>(), [1, 3, 2]);
        let total: f64 = answers.iter().map(|answer| answer.device_seconds).sum();
        assert!(total > 0.0);
        assert!((answers[1].device_seconds - total / 2.0).abs() < total * 1e-9);
        let text = bench.metrics.render();
        assert!(text.contains("assay_batch_tokens_sum 6") && text.contains("assay_waiting_requests 0"), "{text}");
        assert!(text.contains("assay_device_seconds_total{model=\"moody\"}"), "{text}");
    }

    #[tokio::test]
    async fn a_bad_input_fails_alone_and_says_whose_fault_it_is() {
        let bench = bench(5, 8);
        let answers = bench.texts(&["2", "13", "14", "15", "3"]).await;
        assert_eq!((first(&answers[0]), first(&answers[4])), (2.0, 3.0));
        assert!(matches!(&answers[1], Err(InferenceError::BadInput { detail, .. }) if detail == "thirteen"));
        assert!(matches!(&answers[2], Err(InferenceError::BadOutput { .. })));
        assert!(matches!(&answers[3], Err(InferenceError::BadOutput { .. })));
        assert!(bench.engine.is_alive());
        let answers = bench.texts(&["2", "2", "2", "2", "15"]).await;
        assert!(answers[4].is_err() && answers[..4].iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_panic_ends_the_thread_and_everybody_learns_it() {
        let bench = bench(2, 8);
        let answers = bench.texts(&["2", "17", "3"]).await;
        for answer in &answers {
            assert!(
                matches!(answer, Err(InferenceError::Dead { detail }) if detail.contains("told to panic")),
                "{answer:?}"
            );
        }
        assert!(!bench.engine.is_alive());
        assert!(matches!(bench.engine.infer(bench.text("2")).await, Err(InferenceError::Dead { .. })));
        assert!(bench.metrics.render().contains("assay_device_alive 0"));
        bench.engine.shutdown(HOUR).unwrap();
    }

    #[tokio::test]
    async fn a_broken_device_is_nobodys_bad_output() {
        let bench = bench(2, 8);
        let answers = bench.texts(&["2", "16"]).await;
        for answer in answers {
            assert!(
                matches!(&answer, Err(InferenceError::Dead { detail }) if detail.contains("no kernel")),
                "{answer:?}"
            );
        }
        assert!(!bench.engine.is_alive());
    }

    #[tokio::test]
    async fn a_request_that_nobody_waits_for_is_left_out() {
        let bench = bench(1, 8);
        let engine = Arc::new(bench.engine);
        let task = |text: &str| Task::EmbedText { model: "moody".into(), text: text.to_owned() };
        let prepare = |text| engine.prepare(&Request { tasks: vec![task(text)] }).unwrap();
        let (gated, dropped, last) = (prepare("18"), prepare("2"), prepare("3"));
        let spawn = |prepared| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.infer(prepared).await })
        };
        let gated = spawn(gated);
        while *bench.calls.lock().unwrap() != [1] {
            tokio::task::yield_now().await;
        }
        let dropped = spawn(dropped);
        while bench.metrics.waiting_requests.get() != 1 {
            tokio::task::yield_now().await;
        }
        dropped.abort();
        assert!(dropped.await.unwrap_err().is_cancelled());
        let last = spawn(last);
        bench.gate.send(()).unwrap();
        assert!(gated.await.unwrap().is_ok());
        assert_eq!(first(&last.await.unwrap()), 3.0);
        // The probe's own call is not counted: one for the gated request, one for the last.
        assert_eq!(*bench.calls.lock().unwrap(), [1, 1]);
    }

    #[tokio::test]
    async fn a_full_queue_holds_further_requests_back_until_there_is_room() {
        let bench = bench(1, 1);
        let all = bench.texts(&["18", "2", "3", "4"]);
        let opened = async {
            bench.until(|bench| *bench.calls.lock().unwrap() == [1] && bench.metrics.waiting_requests.get() == 3).await;
            bench.gate.send(()).unwrap();
        };
        let (answers, ()) = tokio::join!(all, opened);
        assert_eq!(answers[1..].iter().map(first).collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
        assert_eq!(bench.metrics.waiting_requests.get(), 0);
    }

    #[tokio::test]
    async fn the_same_picture_in_one_request_is_computed_once() {
        let bench = bench(1, 8);
        let image = |byte| Arc::new(Image { width: 1, height: 1, rgb: vec![byte; 3] });
        let (one, other) = (image(7), image(9));
        let task = |image: &Arc<Image>| Task::EmbedImage { model: "moody".into(), image: image.clone() };
        let request = Request { tasks: vec![task(&one), task(&other), task(&one)] };
        let answer = bench.engine.infer(bench.engine.prepare(&request).unwrap()).await.unwrap();
        assert_eq!(answer.embeddings, [[7.0, 1.0], [9.0, 1.0], [7.0, 1.0]]);
        assert_eq!((answer.prompt_tokens, bench.calls.lock().unwrap().as_slice()), (3, [2].as_slice()));
    }

    #[tokio::test]
    async fn a_request_without_tasks_is_answered_without_the_models() {
        let bench = bench(1, 8);
        let nothing = bench.engine.prepare(&Request { tasks: Vec::new() }).unwrap();
        let filler = bench.text("2");
        let (answer, _) = tokio::join!(bench.engine.infer(nothing), bench.engine.infer(filler));
        assert!(answer.unwrap().embeddings.is_empty());
    }

    #[tokio::test]
    async fn a_shutdown_answers_what_waits_and_refuses_what_comes_later() {
        // The budget is never reached and the wait is an hour: only the shutdown can end this.
        let bench = bench(100, 8);
        let waiting = bench.texts(&["2", "3"]);
        let stopped = async {
            bench.until(|bench| bench.metrics.waiting_requests.get() == 2).await;
            bench.engine.shutdown(HOUR).unwrap();
        };
        let (answers, ()) = tokio::join!(waiting, stopped);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert!(matches!(bench.engine.infer(bench.text("2")).await, Err(InferenceError::Dead { .. })));
        bench.engine.shutdown(HOUR).unwrap();
        assert!(!bench.engine.is_alive());
    }

    #[test]
    fn unknown_models_and_unusable_inputs_are_told_when_preparing() {
        let bench = bench(1, 1);
        let prepare = |model: &str, text: &str| {
            let task = Task::EmbedText { model: model.into(), text: text.to_owned() };
            bench.engine.prepare(&Request { tasks: vec![task] }).err()
        };
        assert!(matches!(prepare("other", "2"), Some(InferenceError::UnknownModel { .. })));
        assert!(matches!(prepare("moody", ""), Some(InferenceError::BadInput { .. })));
    }

    #[test]
    fn an_engine_that_could_never_answer_does_not_start() {
        let start = |options: &Options, path: &str| {
            let models = BTreeMap::from([(
                "demo".to_owned(),
                ModelOptions { path: path.into(), dtype: crate::model::Precision::F32 },
            )]);
            Engine::start(options, &models, Arc::new(Metrics::new())).err().expect("must not start").to_string()
        };
        let refusal = start(&Options::default(), "/no/such/model");
        assert!(refusal.contains("models.demo") && refusal.contains("/no/such/model/config.json"), "{refusal}");
        let elsewhere = Options { device: "abacus".to_owned(), ..Options::default() };
        assert!(start(&elsewhere, "/no/such/model").contains("abacus"));
        let none =
            Engine::start(&Options { queue: 0, ..Options::default() }, &BTreeMap::new(), Arc::new(Metrics::new()));
        assert!(matches!(none, Err(EngineError::Zero { key: "queue" })));
    }

    #[tokio::test]
    async fn both_families_answer_through_one_engine_as_they_do_alone() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models");
        let models: BTreeMap<String, ModelOptions> = ["clip", "siglip"]
            .iter()
            .map(|name| {
                let path = PathBuf::from(folder).join(name);
                ((*name).to_owned(), ModelOptions { path, dtype: crate::model::Precision::F32 })
            })
            .collect();
        let engine = Engine::start(&Options::default(), &models, Arc::new(Metrics::new())).unwrap();
        let architectures: Vec<_> = engine.models().iter().map(|model| model.architecture.as_str()).collect();
        assert_eq!(architectures, ["CLIPModel", "SiglipModel"]);

        let image = Arc::new(Image { width: 20, height: 30, rgb: (0..1800).map(|at| (at % 251) as u8).collect() });
        let text = "a quiet river near the golden bridge";
        let tasks = ["clip", "siglip"].iter().flat_map(|name| {
            [
                Task::EmbedText { model: (*name).into(), text: text.to_owned() },
                Task::EmbedImage { model: (*name).into(), image: image.clone() },
            ]
        });
        let prepared = engine.prepare(&Request { tasks: tasks.collect() }).unwrap();
        assert_eq!(prepared.tokens, 13 + 16 + 24 + 16);
        let answer = engine.infer(prepared).await.unwrap();
        for (name, found) in ["clip", "siglip"].iter().zip(answer.embeddings.chunks(2)) {
            let mut alone =
                model::load(&models[*name].path, crate::model::Precision::F32, &model::open_device("cpu").unwrap())
                    .unwrap()
                    .encoder
                    .unwrap();
            let ids = alone.processor.text(text).unwrap();
            assert_eq!(found[0], alone.encoder.embed_texts(&[&ids]).unwrap()[0]);
            let pixels = alone.processor.image(image.picture()).unwrap();
            assert_eq!(found[1], alone.encoder.embed_images(&[&pixels]).unwrap()[0]);
        }
        engine.shutdown(HOUR).unwrap();
    }

    #[tokio::test]
    async fn a_model_that_takes_only_pictures_or_only_texts_starts_and_refuses_the_other() {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models"));
        let of = |name: &str| ModelOptions { path: folder.join(name), dtype: crate::model::Precision::F32 };
        let models =
            BTreeMap::from([("pictures".to_owned(), of("resnet-basic")), ("sentences".to_owned(), of("bert-minilm"))]);
        let engine = Engine::start(&Options::default(), &models, Arc::new(Metrics::new())).unwrap();
        let image = Arc::new(Image { width: 2, height: 3, rgb: vec![9; 18] });
        let text = |model: &str| Task::EmbedText { model: model.into(), text: "a bridge".to_owned() };
        let picture = |model: &str| Task::EmbedImage { model: model.into(), image: image.clone() };
        for refused in [text("pictures"), picture("sentences")] {
            let refusal = engine.prepare(&Request { tasks: vec![refused] }).err();
            assert!(matches!(refusal, Some(InferenceError::BadInput { .. })), "{refusal:?}");
        }
        let taken = Request { tasks: vec![picture("pictures"), text("sentences")] };
        let answer = engine.infer(engine.prepare(&taken).unwrap()).await.unwrap();
        assert_eq!(answer.embeddings.iter().map(Vec::len).collect::<Vec<_>>(), [64, 72]);
        engine.shutdown(HOUR).unwrap();
    }

    #[test]
    fn options_are_read_in_human_units_and_unknown_keys_are_refused() {
        let options: Options = toml::from_str("device = \"cuda:1\"\nmax_wait = \"20ms\"").unwrap();
        assert_eq!((options.max_wait, options.batch_tokens), (Duration::from_millis(20), 4096));
        assert!(toml::from_str::<Options>("batch = 3").is_err());
        let model: ModelOptions = toml::from_str("path = \"m\"\ndtype = \"bf16\"").unwrap();
        assert_eq!(model.dtype, crate::model::Precision::Bf16);
        assert!(toml::from_str::<ModelOptions>("path = \"m\"\ndtype = \"int7\"").is_err());
    }
}
