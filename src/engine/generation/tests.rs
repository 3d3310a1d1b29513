//! The generators through the whole engine: random weights, real families, real schemas.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::engine::starting::LoadedModel;
use crate::engine::{
    Answer, Engine, Generation, Image, Inference, InferenceError, MemorySize, ModelDescription, ModelOptions, Options,
    OutputSchema, Pooling, Request, Sampling, Task,
};
use crate::kv::KvStore;
use crate::metrics::Metrics;
use crate::model::{
    self, Features, Generator, GeneratorParts, GeneratorShape, ModelError, Precision, Step, StepOutput, StepRows,
    Trace, VisionInput,
};

const MINUTE: Duration = Duration::from_secs(60);
const FAMILIES: [&str; 3] = ["llama4-a", "llama3-tied", "qwen3-vl"];

struct Bench {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn of(models: &[&str], options: &Options) -> Self {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models"));
        let models: BTreeMap<String, ModelOptions> = models
            .iter()
            .map(|name| ((*name).to_owned(), ModelOptions { path: folder.join(name), dtype: Precision::F32 }))
            .collect();
        let metrics = Arc::new(Metrics::new());
        let engine = Arc::new(Engine::start(options, &models, metrics.clone()).unwrap());
        Self { engine, metrics }
    }

    async fn ask(&self, generation: Generation) -> Result<Answer, InferenceError> {
        let request = Request { tasks: vec![Task::Generate(generation)] };
        let engine = self.engine.clone();
        let prepared = tokio::task::spawn_blocking(move || engine.prepare(&request)).await.unwrap()?;
        self.engine.infer(prepared).await
    }

    async fn ask_all(&self, generations: &[Generation]) -> Vec<Result<Answer, InferenceError>> {
        join_all(generations.iter().cloned().map(|generation| self.ask(generation))).await
    }

    fn finished(&self, model: &str, reason: &str) -> u64 {
        self.metrics.finished_sequences_total.with_label_values(&[model, reason]).get()
    }
}

fn schema() -> Arc<Value> {
    Arc::new(json!({
        "type": "object", "additionalProperties": false, "required": ["category", "brand", "used", "sizes"],
        "properties": {
            "category": { "type": "string", "x-assay-choices": "categories" },
            "brand": { "type": ["string", "null"], "maxLength": 12 },
            "used": { "type": "boolean" },
            "sizes": { "type": "array", "maxItems": 3, "items": { "type": "integer", "minimum": 0, "maximum": 99 } },
        },
    }))
}

fn choices(names: &[&str]) -> Vec<(String, Vec<String>)> {
    vec![("categories".to_owned(), names.iter().map(|name| (*name).to_owned()).collect())]
}

fn generation(model: &str, prompt: &str) -> Generation {
    Generation {
        model: model.into(),
        instruction: Some("You look at products and answer in JSON. Say only what can be seen or read.".into()),
        images: Vec::new(),
        prompt: prompt.to_owned(),
        output: Some(OutputSchema { schema: schema(), choices: choices(&["Home > Mugs", "Home > Vases", "Toys"]) }),
        sampling: Sampling::default(),
        max_tokens: 60,
        deadline: None,
        pooling: Some(Pooling::Last),
    }
}

fn picture(seed: u32) -> Arc<Image> {
    let rgb = (0..40 * 30 * 3_u32).map(|at| (at.wrapping_mul(seed * 2 + 1) % 251) as u8).collect();
    Arc::new(Image { width: 40, height: 30, rgb })
}

/// Texts of different lengths, with pictures where the model takes them.
fn mixture(model: &str, count: usize) -> Vec<Generation> {
    let words = "a blue mug of stoneware, second hand, 30 cl, with a small chip at the handle and a striped saucer";
    (0..count)
        .map(|number| {
            let length = 5 + number * 37 % words.len();
            let text = format!("{number}: {}", words.get(..length).unwrap_or(words));
            let with_picture = model != "llama3-tied" && number % 3 == 0;
            let images = if with_picture { vec![picture(number as u32 / 6)] } else { Vec::new() };
            Generation { images, ..generation(model, &text) }
        })
        .collect()
}

fn small() -> Options {
    Options { kv_memory: MemorySize::Bytes(64 << 20), queue: 512, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_the_same_alone_in_company_cut_set_back_and_from_the_cache() {
    for model in FAMILIES {
        let generations = mixture(model, 7);
        let alone = Options { sequences: 1, prefix_cache: false, fast_forward: false, ..small() };
        let bench = Bench::of(&[model], &alone);
        let mut expected = Vec::new();
        for generation in &generations {
            expected.push(bench.ask(generation.clone()).await.unwrap());
        }
        let variants = [
            ("together", small()),
            ("in small steps", Options { step_tokens: 7, ..small() }),
            ("without sharing", Options { prefix_cache: false, ..small() }),
            ("without forcing", Options { fast_forward: false, ..small() }),
        ];
        for (name, options) in variants {
            let bench = Bench::of(&[model], &options);
            // The second time, all that may be shared is in the cache.
            for round in 0..if name == "together" { 2 } else { 1 } {
                let answers = bench.ask_all(&generations).await;
                for (answer, expected) in answers.into_iter().zip(&expected) {
                    let answer = answer.unwrap();
                    assert_eq!(answer.texts, expected.texts, "{model} {name}, round {round}");
                    assert_eq!(answer.completion_tokens, expected.completion_tokens, "{model} {name}");
                    let drift = answer.embeddings[0].iter().zip(&expected.embeddings[0]).map(|(a, b)| (a - b).abs());
                    assert!(drift.fold(0.0, f32::max) < 1e-5, "{model} {name}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_too_small_for_all_sets_answers_back_and_changes_none() {
    let model = "llama4-a";
    let generations: Vec<Generation> =
        mixture(model, 10).into_iter().map(|one| Generation { images: Vec::new(), ..one }).collect();
    let expected = Bench::of(&[model], &small()).ask_all(&generations).await;
    // 8 layers of 2 heads of 16 in f32: 32 KiB a block; the context of 2048 tokens asks for 128 of them, so the prompts
    // have to be many.
    let tight = Options {
        kv_memory: MemorySize::Bytes(128 * 32 * 1024),
        sequences: 160,
        prefix_cache: false,
        queue: 512,
        ..Options::default()
    };
    let bench = Bench::of(&[model], &tight);
    // Prepared beforehand, so that they come all at once and each grows while the others do.
    let prepare = |generation: &Generation| {
        bench.engine.prepare(&Request { tasks: vec![Task::Generate(generation.clone())] }).unwrap()
    };
    let prepared: Vec<_> = generations.iter().cycle().take(80).map(prepare).collect();
    let answers = join_all(prepared.into_iter().map(|prepared| bench.engine.infer(prepared))).await;
    for (answer, expected) in answers.iter().zip(expected.iter().cycle()) {
        assert_eq!(answer.as_ref().unwrap().texts, expected.as_ref().unwrap().texts);
    }
    assert!(bench.metrics.preemptions_total.with_label_values(&[model]).get() > 0);
    let text = bench.metrics.render();
    assert!(text.contains(&format!("assay_finished_sequences_total{{model=\"{model}\",reason=\"")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instruction_is_computed_once_and_a_picture_is_seen_once() {
    let model = "llama4-a";
    let bench = Bench::of(&[model], &small());
    let generations: Vec<Generation> = (0..8)
        .map(|number| Generation { images: vec![picture(1)], ..generation(model, &format!("mug number {number}")) })
        .collect();
    for answer in bench.ask_all(&generations).await {
        answer.unwrap();
    }
    let vision = |result| bench.metrics.vision_cache_total.with_label_values(&[model, result]).get();
    assert_eq!(vision("miss"), 1);
    let prefix = |result| bench.metrics.prefix_cache_tokens_total.with_label_values(&[model, result]).get();
    // Seven of eight find the whole blocks of instruction and picture computed.
    assert!(prefix("hit") >= 7 * 32, "{} of {}", prefix("hit"), prefix("hit") + prefix("miss"));
    let computed = bench.metrics.prompt_tokens_total.with_label_values(&[model]).get();
    assert_eq!(computed, prefix("miss"), "what was shared was not computed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_texts_with_different_pictures_never_share_what_follows_the_picture() {
    let model = "llama4-a";
    let with = |seed| Generation { images: vec![picture(seed)], ..generation(model, "a mug") };
    let expected: Vec<Vec<f32>> = {
        let bench = Bench::of(&[model], &Options { prefix_cache: false, ..small() });
        let answers = bench.ask_all(&[with(1), with(2)]).await;
        answers.into_iter().map(|answer| answer.unwrap().embeddings.remove(0)).collect()
    };
    assert_ne!(expected[0], expected[1]);
    let bench = Bench::of(&[model], &small());
    for (seed, expected) in [(1, &expected[0]), (2, &expected[1]), (1, &expected[0])] {
        let found = bench.ask(with(seed)).await.unwrap().embeddings.remove(0);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mean_embedding_does_not_depend_on_what_the_cache_held() {
    let model = "llama3-tied";
    let ask = |number: usize| Generation {
        pooling: Some(Pooling::Mean),
        ..generation(model, &format!("a mug, number {number}, of which there are some in a box"))
    };
    let expected = Bench::of(&[model], &Options { prefix_cache: false, ..small() }).ask(ask(3)).await.unwrap();
    let bench = Bench::of(&[model], &Options { step_tokens: 5, ..small() });
    for _ in 0..3 {
        let answers = bench.ask_all(&[ask(1), ask(3), ask(2)]).await;
        let found = &answers[1].as_ref().unwrap().embeddings[0];
        assert!(found.iter().zip(&expected.embeddings[0]).all(|(a, b)| (a - b).abs() < 1e-5));
        let length: f32 = found.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
}

/// How many answers of each shipped schema are checked; more by the environment.
fn answers() -> usize {
    #[expect(clippy::disallowed_methods, reason = "how long to test is no setting of the program")]
    let named = std::env::var("ASSAY_ANSWERS").ok();
    named.map_or(24, |count| count.parse().expect("ASSAY_ANSWERS is a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_to_a_random_prompt_parses_validates_and_keeps_its_budget() {
    let model = "llama4-a";
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let bench = Bench::of(&[model], &Options { queue: 64, ..small() });
    for name in ["product-annotation", "ad-annotation", "ad-copy", "catalogue-mlperf"] {
        let text = std::fs::read_to_string(jobs.join(format!("{name}.output.json"))).unwrap();
        let schema: Arc<Value> = Arc::new(serde_json::from_str(&text).unwrap());
        let validator = jsonschema::validator_for(&schema).unwrap();
        let categories =
            ["Home & Garden > Kitchen > Mugs", "Toys & Games > \"Puzzles\" and cubes", "Schönes > Überall"];
        let named: Vec<String> = categories.iter().map(|name| (*name).to_owned()).collect();
        let ask = |number: usize| {
            let most = 120 + number * 7 % 200;
            let temperature = [0.0, 1.0, 3.0][number % 3];
            Generation {
                prompt: format!("{number} {}", "xyz ".repeat(number % 17)),
                output: Some(OutputSchema {
                    schema: schema.clone(),
                    choices: vec![("candidate_categories".to_owned(), named.clone())],
                }),
                sampling: Sampling { temperature, seed: number as u64, ..Sampling::default() },
                max_tokens: most,
                ..generation(model, "")
            }
        };
        let numbers: Vec<usize> = (0..answers()).collect();
        for chunk in numbers.chunks(64) {
            let generations: Vec<Generation> = chunk.iter().map(|number| ask(*number)).collect();
            for (generation, answer) in generations.iter().zip(bench.ask_all(&generations).await) {
                let answer = answer.unwrap();
                let json: Value = serde_json::from_str(&answer.texts[0])
                    .unwrap_or_else(|error| panic!("{name}: {error}: {}", answer.texts[0]));
                assert!(validator.is_valid(&json), "{name}: {json}");
                if let Some(category) = json.get("category") {
                    assert!(named.iter().any(|name| category == name), "{category}");
                }
                assert!(answer.completion_tokens as usize <= generation.max_tokens);
                assert!(["stop", "length"].contains(&answer.finish_reason));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_time_is_over_is_closed_and_says_so() {
    let model = "llama3-tied";
    let late = Generation { deadline: Some(Duration::from_nanos(1)), ..generation(model, "a mug") };
    // The prompt takes several steps, so its time is over before the first token: there is nothing to close.
    let bench = Bench::of(&[model], &Options { step_tokens: 9, ..small() });
    let refusal = bench.ask(late.clone()).await.unwrap_err();
    assert_eq!(refusal.asset_reason(), Some("inference_deadline"), "{refusal}");
    // The prompt takes one step, so there is one token of the model's own when its time is over.
    let bench = Bench::of(&[model], &small());
    let answer = bench.ask(late).await.unwrap();
    assert!(serde_json::from_str::<Value>(&answer.texts[0]).unwrap()["brand"].is_null(), "{}", answer.texts[0]);
    assert_eq!((answer.finish_reason, bench.finished(model, "deadline")), ("deadline", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_alone_with_its_reason() {
    let bench = Bench::of(&["llama3-tied", "clip"], &small());
    let good = generation("llama3-tied", "a mug");
    let output = |names: &[&str]| Some(OutputSchema { schema: schema(), choices: choices(names) });
    let cases = [
        (Generation { prompt: "mug ".repeat(3000), ..good.clone() }, "tokens"),
        (Generation { images: vec![picture(1)], ..good.clone() }, "takes no pictures"),
        (Generation { output: output(&[]), ..good.clone() }, "categories"),
        (Generation { max_tokens: 3, ..good.clone() }, "at least"),
        (Generation { model: "clip".into(), ..good.clone() }, "embeds"),
        (Generation { model: "none".into(), ..good.clone() }, "not loaded"),
    ];
    let generations: Vec<Generation> = cases.iter().map(|(one, _)| one.clone()).chain([good]).collect();
    let mut answers = bench.ask_all(&generations).await;
    assert!(answers.pop().unwrap().is_ok());
    for (answer, (_, words)) in answers.into_iter().zip(cases) {
        let refusal = answer.unwrap_err().to_string();
        assert!(refusal.contains(words), "{words:?} is not in {refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_may_ask_encoders_and_a_generator_at_once() {
    let bench = Bench::of(&["llama4-a", "clip", "bert-minilm"], &small());
    let image = picture(2);
    let text = "a blue mug".to_owned();
    let tasks = vec![
        Task::EmbedImage { model: "clip".into(), image: image.clone() },
        Task::Generate(Generation { images: vec![image], ..generation("llama4-a", "a mug") }),
        Task::EmbedText { model: "bert-minilm".into(), text },
    ];
    let prepared = bench.engine.prepare(&Request { tasks }).unwrap();
    let answer = bench.engine.infer(prepared).await.unwrap();
    assert_eq!(answer.embeddings.iter().map(Vec::len).collect::<Vec<_>>(), [40, 64, 72]);
    assert_eq!(answer.texts.len(), 1);
    assert!(answer.device_seconds > 0.0 && answer.completion_tokens > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_waits_for_is_cancelled_and_its_blocks_are_free_again() {
    let model = "llama3-tied";
    let bench = Bench::of(&[model], &Options { fast_forward: false, ..small() });
    let wide = json!({ "type": "object", "required": ["text"], "properties": { "text": { "type": "string", "minLength": 900 } } });
    let output = Some(OutputSchema { schema: Arc::new(wide), choices: Vec::new() });
    let long = Generation { output, max_tokens: 1800, ..generation(model, "a mug") };
    let engine = bench.engine.clone();
    let prepared = bench.engine.prepare(&Request { tasks: vec![Task::Generate(long)] }).unwrap();
    let waiting = tokio::spawn(async move { engine.infer(prepared).await });
    while bench.metrics.running_sequences.with_label_values(&[model]).get() == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    while bench.finished(model, "cancelled") == 0 {
        tokio::task::yield_now().await;
    }
    // The next answer plans anew, and what the cancelled one held is not among the used blocks.
    bench.ask(generation(model, "a vase")).await.unwrap();
    bench.engine.shutdown(MINUTE).unwrap();
    assert_eq!(bench.finished(model, "cancelled"), 1);
    let used = bench.metrics.kv_blocks.with_label_values(&[model, "used"]).get();
    assert!(used <= 12, "{used} blocks are held by one short answer");
}

/// A generator that misbehaves where its tokens say so.
struct Odd {
    inner: Box<dyn Generator>,
    not_a_number: u32,
    failing: u32,
    breaking: u32,
    broken: bool,
}

impl Generator for Odd {
    fn shape(&self) -> &GeneratorShape {
        self.inner.shape()
    }

    fn cache(&self, blocks: usize) -> Result<KvStore, ModelError> {
        self.inner.cache(blocks)
    }

    fn see(&mut self, image: &VisionInput, trace: &mut Trace) -> Result<Features, ModelError> {
        self.inner.see(image, trace)
    }

    fn step(&mut self, step: &Step<'_>, cache: &mut KvStore, trace: &mut Trace) -> Result<StepOutput, ModelError> {
        self.broken |= step.tokens.contains(&self.breaking);
        if self.broken || step.tokens.contains(&self.failing) {
            return Err(ModelError::Compute(candle_core::Error::Msg("no kernel".to_owned())));
        }
        let output = self.inner.step(step, cache, trace)?;
        let mut logits = output.logits.into_host()?;
        let size = self.shape().vocabulary;
        let mut first = 0;
        for sequence in step.sequences {
            let rows = first..first + sequence.new;
            let is_odd = step.tokens[rows.clone()].contains(&self.not_a_number);
            let rows_of_logits = step.logits.iter().zip(logits.chunks_exact_mut(size));
            for (_, logits) in rows_of_logits.filter(|(row, _)| is_odd && rows.contains(row)) {
                logits.fill(f32::NAN);
            }
            first = rows.end;
        }
        Ok(StepOutput { logits: StepRows::Host(logits), ..output })
    }
}

/// An engine with a generator that is odd about three letters: no number, failure, death.
fn odd() -> Bench {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/models/llama3-tied");
    let loaded = model::load(&path, Precision::F32, &model::open_device("cpu").unwrap()).unwrap();
    let GeneratorParts { processor, generator } = loaded.generator.unwrap();
    let mark = |letter: &str| *processor.text(letter).unwrap().ids.last().unwrap();
    let [not_a_number, failing, breaking] = ["\u{1}", "\u{2}", "\u{3}"].map(mark);
    let generator = Box::new(Odd { inner: generator, not_a_number, failing, breaking, broken: false });
    let description = ModelDescription {
        name: "odd".to_owned(),
        architecture: "Odd".to_owned(),
        fingerprint: "0".repeat(16),
        dimensions: 96,
        embeds: false,
        generates: true,
    };
    let generator = Some(GeneratorParts { processor, generator });
    let model = LoadedModel { description, encoder: None, generator, blocks: 256 };
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::with_models(&small(), vec![model], metrics.clone()).unwrap();
    Bench { engine: Arc::new(engine), metrics }
}

#[tokio::test(flavor = "multi_thread")]
async fn logits_that_are_no_numbers_and_steps_that_fail_cost_their_own_answer_alone() {
    let bench = odd();
    let ask = |text: &str| generation("odd", text);
    let all = [ask("a mug"), ask("a vase \u{1}"), ask("a cup \u{2}"), ask("a dish")];
    let expected = Bench::of(&["llama3-tied"], &small());
    let answers = bench.ask_all(&all).await;
    for index in [0, 3] {
        let model = Generation { model: "llama3-tied".into(), ..all[index].clone() };
        assert_eq!(answers[index].as_ref().unwrap().texts, expected.ask(model).await.unwrap().texts);
    }
    for index in [1, 2] {
        let refusal = answers[index].as_ref().unwrap_err();
        assert_eq!(refusal.asset_reason(), Some("model_output"), "{refusal}");
    }
    assert!(bench.engine.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_on_everything_ends_the_engine_and_blames_no_asset() {
    let bench = odd();
    let answers = bench.ask_all(&[generation("odd", "a mug"), generation("odd", "the end \u{3}")]).await;
    for answer in answers {
        assert!(matches!(&answer, Err(InferenceError::Dead { detail }) if detail.contains("no kernel")), "{answer:?}");
    }
    assert!(!bench.engine.is_alive());
}
