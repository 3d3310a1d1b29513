//! `assay bench engine`: a workload of structured answers through the engine, whole and with its parts switched off, beside
//! Hugging Face transformers.
//!
//! Every case runs in a process of its own, in turns, so that memory is its own and a slow moment of the machine hits all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::memory::peak_mebibytes;
use super::process::{Scratch, median_by, said, torch_dtype};
use super::random_model::RandomModel;
use super::workload::Workload;
use crate::engine::{Engine, Generation, Inference, ModelOptions, Options, Request, Task};
use crate::metrics::Metrics;
use crate::model::{self, Message, Part, Precision, Role};

/// The same work in Python.
const REFERENCE: &str = include_str!("reference_engine.py");

/// The name of the model in the engine.
const MODEL: &str = "bench";

/// What to measure.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// A workload file; without it 64 products with a shared instruction of 600 tokens.
    #[arg(value_name = "FILE")]
    workload: Option<PathBuf>,
    /// A model directory; without it one with random weights.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The family of the random model.
    #[arg(long, value_enum, default_value = "llama4")]
    random: RandomModel,
    /// Number formats to compare; the first one is also measured with parts of the engine switched off.
    #[arg(long, value_delimiter = ',', default_value = "f32,q8_0")]
    dtypes: Vec<Precision>,
    /// Which parts to switch off, one case each. Without it: each by itself, and all.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    off: Vec<Off>,
    /// Requests of the cases with parts switched off, if fewer.
    #[arg(long, default_value_t = 8)]
    off_assets: usize,
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The most tokens of one step; a GPU wants thousands.
    #[arg(long, default_value_t = Options::default().step_tokens)]
    step_tokens: usize,
    /// The most answers that are written side by side.
    #[arg(long, default_value_t = Options::default().sequences)]
    sequences: usize,
    /// How often each case is measured; the median counts.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// A Python with torch and transformers, to measure these on the same weights and prompts, too.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Measure once in this process; used by the command itself.
    #[arg(long, hide = true)]
    once: bool,
}

/// A part of the engine that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Off {
    /// One answer at a time.
    Batching,
    PrefixCache,
    /// Forced tokens are decoded one by one.
    FastForward,
    All,
}

impl Off {
    fn is(self, part: Self) -> bool {
        self == part || self == Self::All
    }
}

/// One case, measured once.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    case: String,
    assets_per_second: f64,
    /// Of prompts and of answers, as they are asked and answered, whether computed or shared.
    prompt_tokens_per_second: f64,
    answer_tokens_per_second: f64,
    /// Mean of an answer.
    answer_tokens: f64,
    forced_share: f64,
    prefix_hit_share: f64,
    /// Of steps with prompts alone, with answers alone, and with both.
    prefill_seconds: f64,
    decode_seconds: f64,
    mixed_seconds: f64,
    /// What steps waited for masks, beyond their own time.
    mask_seconds: f64,
    vision_seconds: f64,
    seconds: f64,
    peak_mebibytes: f64,
}

/// Measures every case and prints medians and ratios. Blocking; needs an async runtime around it.
pub fn engine(args: &EngineArgs) -> Result<()> {
    if args.rounds == 0 || args.step_tokens == 0 || args.sequences == 0 || args.dtypes.is_empty() {
        bail!("--rounds, --step-tokens and --sequences must be at least 1, and --dtypes name at least one");
    }
    let workload = Workload::load(args.workload.as_deref())?;
    if args.once {
        let case = measure(args, &workload)?;
        println!("{}", serde_json::to_string(&case)?);
        return Ok(());
    }
    let scratch = Scratch::new("engine")?;
    let directory = args.random.unless_given(args.model.as_deref(), &scratch)?;
    let mut rounds: Vec<Vec<Measured>> = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        rounds.push(one_round(args, &workload, &directory, scratch.path())?);
    }
    let medians: Vec<Measured> = (0..rounds[0].len()).map(|case| median(&rounds, case)).collect();
    if args.json {
        for case in &medians {
            println!("{}", serde_json::to_string(case)?);
        }
    } else {
        print_table(&medians);
    }
    Ok(())
}

fn one_round(args: &EngineArgs, workload: &Workload, directory: &Path, scratch: &Path) -> Result<Vec<Measured>> {
    let mut cases = Vec::new();
    for dtype in &args.dtypes {
        cases.push(in_own_process(args, directory, *dtype, None)?);
    }
    let each = [Off::Batching, Off::PrefixCache, Off::FastForward, Off::All];
    for off in if args.off.is_empty() { &each } else { &args.off[..] } {
        cases.push(in_own_process(args, directory, args.dtypes[0], Some(*off))?);
    }
    if let Some(python) = &args.python {
        let tokens = cases[0].answer_tokens.round() as usize;
        cases.push(in_python(python, args, workload, (directory, scratch), tokens)?);
    }
    Ok(cases)
}

fn in_own_process(args: &EngineArgs, directory: &Path, dtype: Precision, off: Option<Off>) -> Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--log", "warn", "bench", "engine", "--once", "--device", &args.device, "--model"]).arg(directory);
    command.args(["--dtypes", dtype.name()]);
    command.args(["--step-tokens", &args.step_tokens.to_string(), "--sequences", &args.sequences.to_string()]);
    if let Some(off) = off.and_then(|off| off.to_possible_value()) {
        command.args(["--off", off.get_name(), "--off-assets", &args.off_assets.to_string()]);
    }
    command.args(&args.workload);
    said(command, dtype.name())
}

fn in_python(
    python: &Path,
    args: &EngineArgs,
    workload: &Workload,
    (directory, scratch): (&Path, &Path),
    answer_tokens: usize,
) -> Result<Measured> {
    if workload.pictures > 0 {
        bail!("--python compares texts alone; give a workload without pictures");
    }
    let file = scratch.join("prompts.json");
    std::fs::write(&file, serde_json::to_vec(&prompts(workload, directory)?)?)?;
    let mut command = Command::new(python);
    command.args(["-c", REFERENCE]).arg(directory).arg(&file);
    command.args(["--answer", &answer_tokens.to_string(), "--device", &args.device]);
    command.args(["--dtype", torch_dtype(args.dtypes[0], &args.device)]);
    command.args(["--threads", &rayon::current_num_threads().to_string()]);
    said(command, &python.display().to_string())
}

/// Token ids of every prompt.
fn prompts(workload: &Workload, directory: &Path) -> Result<Vec<Vec<u32>>> {
    let parts = model::outline(directory, Precision::F32)?.generator.context("the model writes nothing")?;
    let ids = |generation: Generation| {
        let system = generation.instruction.as_deref().map(|text| (Role::System, text));
        let messages: Vec<Message<'_>> = system
            .into_iter()
            .chain([(Role::User, generation.prompt.as_str())])
            .map(|(role, text)| Message { role, parts: vec![Part::Text(text)] })
            .collect();
        Ok(parts.processor.prompt(&messages)?.ids)
    };
    workload.generations(MODEL, parts.processor.as_ref())?.into_iter().map(ids).collect()
}

fn measure(args: &EngineArgs, workload: &Workload) -> Result<Measured> {
    let directory = args.model.as_deref().context("--once needs --model")?;
    let dtype = args.dtypes[0];
    let off = |part: Off| args.off.iter().any(|off| off.is(part));
    let assets = if args.off.is_empty() { workload.assets } else { workload.assets.min(args.off_assets.max(1)) };
    let options = Options {
        device: args.device.clone(),
        queue: assets.max(1),
        step_tokens: args.step_tokens,
        sequences: if off(Off::Batching) { 1 } else { args.sequences },
        prefix_cache: !off(Off::PrefixCache),
        fast_forward: !off(Off::FastForward),
        ..Options::default()
    };
    let models = BTreeMap::from([(MODEL.to_owned(), ModelOptions { path: directory.to_owned(), dtype })]);
    let metrics = Arc::new(Metrics::new());
    let parts = model::outline(directory, dtype)?.generator;
    let parts =
        parts.with_context(|| format!("{}: writes nothing; name a model that generates", directory.display()))?;
    let mut generations = workload.generations(MODEL, parts.processor.as_ref())?;
    generations.truncate(assets);
    let engine = Arc::new(Engine::start(&options, &models, metrics.clone())?);
    let runtime = tokio::runtime::Handle::current();
    // The first steps pay for pages and threads; with an instruction of its own it leaves no prefix for the others.
    let warm = Generation { instruction: Some("Warm up.".into()), ..generations[0].clone() };
    runtime.block_on(answers(&engine, vec![warm]))?;
    let before = Reading::of(&metrics);
    let started = Instant::now();
    let answers = runtime.block_on(answers(&engine, generations))?;
    let seconds = started.elapsed().as_secs_f64();
    let after = Reading::of(&metrics);
    engine.shutdown(Duration::from_secs(60))?;
    let case = match args.off.first().and_then(|off| off.to_possible_value()) {
        Some(off) => format!("{} without {}", dtype.name(), off.get_name()),
        None => dtype.name().to_owned(),
    };
    Ok(after.measured(&before, case, answers, seconds))
}

/// Prompt and completion tokens of every answer.
async fn answers(engine: &Arc<Engine>, generations: Vec<Generation>) -> Result<Vec<(u32, u32)>> {
    let window = generations.len();
    let ask = |generation| {
        let engine = engine.clone();
        async move {
            let preparer = engine.clone();
            let request = Request { tasks: vec![Task::Generate(generation)] };
            let prepared = tokio::task::spawn_blocking(move || preparer.prepare(&request)).await??;
            let answer = engine.infer(prepared).await?;
            anyhow::Ok((answer.prompt_tokens, answer.completion_tokens))
        }
    };
    stream::iter(generations).map(ask).buffer_unordered(window).try_collect().await
}

/// What the engine's metrics say at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    prefill: f64,
    decode: f64,
    mixed: f64,
    mask: f64,
    vision: f64,
    forced: f64,
    sampled: f64,
    hit: f64,
    miss: f64,
}

impl Reading {
    fn of(metrics: &Metrics) -> Self {
        let step = |kind| metrics.engine_step_seconds.with_label_values(&[MODEL, kind]).get_sample_sum();
        let tokens = |kind| metrics.generated_tokens_total.with_label_values(&[MODEL, kind]).get() as f64;
        let prefix = |result| metrics.prefix_cache_tokens_total.with_label_values(&[MODEL, result]).get() as f64;
        Self {
            prefill: step("prefill"),
            decode: step("decode"),
            mixed: step("mixed"),
            mask: metrics.mask_seconds_total.with_label_values(&[MODEL]).get(),
            vision: metrics.vision_seconds_total.with_label_values(&[MODEL]).get(),
            forced: tokens("forced"),
            sampled: tokens("sampled"),
            hit: prefix("hit"),
            miss: prefix("miss"),
        }
    }

    fn measured(&self, before: &Self, case: String, answers: Vec<(u32, u32)>, seconds: f64) -> Measured {
        let since = |part: fn(&Self) -> f64| part(self) - part(before);
        let share = |part: f64, rest: f64| if part + rest > 0.0 { part / (part + rest) } else { 0.0 };
        let prompts: f64 = answers.iter().map(|(prompt, _)| f64::from(*prompt)).sum();
        let written: f64 = answers.iter().map(|(_, answer)| f64::from(*answer)).sum();
        Measured {
            case,
            assets_per_second: answers.len() as f64 / seconds,
            prompt_tokens_per_second: prompts / seconds,
            answer_tokens_per_second: written / seconds,
            answer_tokens: written / answers.len() as f64,
            forced_share: share(since(|reading| reading.forced), since(|reading| reading.sampled)),
            prefix_hit_share: share(since(|reading| reading.hit), since(|reading| reading.miss)),
            prefill_seconds: since(|reading| reading.prefill),
            decode_seconds: since(|reading| reading.decode),
            mixed_seconds: since(|reading| reading.mixed),
            mask_seconds: since(|reading| reading.mask),
            vision_seconds: since(|reading| reading.vision),
            seconds,
            peak_mebibytes: peak_mebibytes().unwrap_or_default(),
        }
    }
}

fn median(rounds: &[Vec<Measured>], case: usize) -> Measured {
    let by = |value: fn(&Measured) -> f64| median_by(rounds.iter().map(|cases| value(&cases[case])));
    Measured {
        case: rounds[0][case].case.clone(),
        assets_per_second: by(|case| case.assets_per_second),
        prompt_tokens_per_second: by(|case| case.prompt_tokens_per_second),
        answer_tokens_per_second: by(|case| case.answer_tokens_per_second),
        answer_tokens: by(|case| case.answer_tokens),
        forced_share: by(|case| case.forced_share),
        prefix_hit_share: by(|case| case.prefix_hit_share),
        prefill_seconds: by(|case| case.prefill_seconds),
        decode_seconds: by(|case| case.decode_seconds),
        mixed_seconds: by(|case| case.mixed_seconds),
        mask_seconds: by(|case| case.mask_seconds),
        vision_seconds: by(|case| case.vision_seconds),
        seconds: by(|case| case.seconds),
        peak_mebibytes: by(|case| case.peak_mebibytes),
    }
}

fn print_table(cases: &[Measured]) {
    println!(
        "{:<32} {:>8} {:>9} {:>7} {:>7} {:>7} | {:>8} {:>7} {:>7} {:>6} {:>7} | {:>8}  ratio to {}",
        "case",
        "assets/s",
        "tokens/s",
        "tokens",
        "forced",
        "prefix",
        "prefill",
        "decode",
        "mixed",
        "mask",
        "vision",
        "MiB",
        cases[0].case
    );
    for case in cases {
        println!(
            "{:<32} {:>8.3} {:>9.1} {:>7.1} {:>6.0}% {:>6.0}% | {:>7.1}s {:>6.1}s {:>6.1}s {:>5.2}s {:>6.2}s | {:>8.0}  {:.2}",
            case.case,
            case.assets_per_second,
            case.answer_tokens_per_second,
            case.answer_tokens,
            100.0 * case.forced_share,
            100.0 * case.prefix_hit_share,
            case.prefill_seconds,
            case.decode_seconds,
            case.mixed_seconds,
            case.mask_seconds,
            case.vision_seconds,
            case.peak_mebibytes,
            case.assets_per_second / cases[0].assets_per_second,
        );
    }
}
