//! The command line: verbs, flags and exit codes. Scripts rely on them.
//!
//! Results go to standard output, everything else to standard error. No verb does its work here; each is one call into the
//! house.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::ask;
use crate::bench;
use crate::check;
use crate::config::Config;
use crate::demo;
use crate::dlq;
use crate::engine::InferenceError;
use crate::eval;
use crate::inspect;
use crate::job::UnknownJob;
use crate::metrics::Metrics;
use crate::model::Precision;
use crate::pipeline::{Mode, PipelineError};
use crate::query;
use crate::server;
use crate::status;
use crate::submit;
use crate::telemetry::{self, LogFormat};
use crate::tryout;
use crate::upkeep;

/// Distinct exit codes, so that a supervisor can tell what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success = 0,
    /// Anything without a code of its own.
    Failure = 1,
    /// The command line, the configuration or a job is wrong. Also what clap uses.
    Usage = 2,
    /// The device thread died; replace the process.
    DeviceDead = 3,
    /// The source cannot go on: topic missing, not authorised.
    Source = 4,
    /// The tables cannot be written: another schema, wrong settings.
    Tables = 5,
    /// Stopped before everything was written; the next worker goes on.
    Unfinished = 6,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 other failure, 2 wrong command line, configuration or job, 3 device thread \
died, 4 source cannot go on, 5 tables cannot be written, 6 stopped before everything was written.";

/// Annotates and embeds product and ad assets from Kafka into Delta tables, exactly once.
#[derive(Debug, Parser)]
#[command(name = "assay", version, about, after_help = EXIT_CODES)]
struct Cli {
    /// Configuration file; without it ./assay.toml or ./config.toml, if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log, as tracing filters; `info` for run, else `warn`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the whole way once on this machine: broker, catalogue, model, tables, SQL.
    #[command(after_help = "Example: assay demo --dir my-demo --assets 500 --seed 7")]
    Demo(DemoArgs),
    /// Check configuration, jobs and schemas together, without network.
    #[command(after_help = "Example: assay check --config config.toml")]
    Check,
    /// Work on the topics of one or more jobs.
    #[command(after_help = "Example: assay run --job product-embedding --once --config config.toml")]
    Run(RunArgs),
    /// Enqueue assets from JSON lines, CSV or folders of pictures.
    #[command(after_help = "Example: assay submit --topic products catalogue.jsonl more.csv pictures/")]
    Submit(SubmitArgs),
    /// Ask the tables in SQL; without a query, at a prompt.
    #[command(
        after_help = "Example: assay query --format csv \"SELECT reason, count(*) FROM rejections GROUP BY reason\""
    )]
    Query(QueryArgs),
    /// Say where jobs stand: lag, rate, last commit, workers, rejections; from Kafka and the tables alone.
    #[command(after_help = "Example: assay status --job product-embedding --watch 5s")]
    Status(StatusArgs),
    /// Ask the worker on this machine whether it is alive; for a container's health check.
    #[command(after_help = "Example: assay health --config config.toml")]
    Health,
    /// List the metrics of a worker: name, type, unit, labels, meaning.
    #[command(after_help = "Example: assay metrics | grep commit")]
    Metrics,
    /// Compact, checkpoint and vacuum the tables of the jobs.
    #[command(after_help = "Example: assay upkeep --job product-embedding")]
    Upkeep(JobsArgs),
    /// List, show and retry dead letters: rejections that nothing has cured since.
    #[command(after_help = "Example: assay dlq retry --job product-embedding --reason media_not_found")]
    Dlq {
        #[command(subcommand)]
        what: dlq::DlqVerb,
    },
    /// Judge the answers of a job by labels, and compare two runs.
    #[command(after_help = "Example: assay eval --job product-annotation --labels labels.jsonl --against other-prompt")]
    Eval(eval::EvalArgs),
    /// Look at a model, or try it out.
    #[command(after_help = "Example: assay model inspect models/demo-clip")]
    Model {
        #[command(subcommand)]
        what: ModelVerb,
    },
    /// Measure this machine.
    #[command(after_help = "Example: assay bench pipeline --assets 100000")]
    Bench {
        #[command(subcommand)]
        what: BenchVerb,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example: assay completions bash > /etc/bash_completion.d/assay")]
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Where everything of the run goes; must be new or empty.
    #[arg(long, value_name = "DIR", default_value = "assay-demo")]
    dir: PathBuf,
    /// How many products and ads to draw, 400 without it; of a cold-start study how many products, 2000 without it.
    #[arg(long, value_name = "N")]
    assets: Option<usize>,
    /// The same seed draws the same catalogue.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compare how well products that nobody has clicked on are found for users: by the embedding of the generator, by
    /// separate encoders, by CLIP, by popularity.
    #[arg(long, conflicts_with_all = ["catalogue", "split", "masks"])]
    cold_start: bool,
    /// Only write a generated catalogue of this many assets, to train and judge models with: messages, pictures, labels,
    /// interactions.
    #[arg(long, value_name = "N", conflicts_with = "assets")]
    catalogue: Option<usize>,
    /// Of which split the catalogue is; splits share no seed and no brand.
    #[arg(long, value_enum, default_value_t = demo::SplitName::Training, requires = "catalogue")]
    split: demo::SplitName,
    /// Write a mask for each picture of the catalogue.
    #[arg(long, requires = "catalogue")]
    masks: bool,
}

#[derive(Debug, Args)]
struct JobsArgs {
    /// A job's name; may be given several times. Without it, all jobs.
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// A job's name; may be given several times. Without it, all jobs.
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
    /// Ask again and again, this far apart.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "5s", value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A job's name; may be given several times.
    #[arg(long = "job", value_name = "NAME", required = true, num_args = 1..)]
    jobs: Vec<String>,
    /// End with exit code 0 when everything that was in the topics at the start is committed.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Args)]
struct SubmitArgs {
    /// The topic to enqueue to.
    #[arg(long)]
    topic: String,
    /// What the assets are; without it, what the jobs on this topic read, else products.
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Send messages that break their schema, too.
    #[arg(long)]
    no_validate: bool,
    /// .jsonl files, .csv files, or folders of pictures.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Product,
    Ad,
}

#[derive(Debug, Args)]
struct QueryArgs {
    /// The query; without it, a prompt.
    sql: Option<String>,
    #[arg(long, value_enum, default_value_t = FormatArg::Table)]
    format: FormatArg,
    /// Write to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The job whose tables are meant by bare names; not needed when there is one job.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    /// Read this Parquet, CSV or JSON lines file as well, as the table files.NAME; may be given several times. Without it,
    /// a query reads the jobs' tables only.
    #[arg(long = "with", value_name = "NAME=FILE")]
    files: Vec<query::NamedFile>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Table,
    Json,
    Csv,
    Parquet,
}

#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Pipeline overhead: a stand-in for inference answers at once.
    Pipeline(bench::PipelineArgs),
    /// Prefill and decode of a generator by itself, in each number format.
    Model(bench::ModelArgs),
    /// Structured answers through the engine, whole and with its parts switched off.
    Engine(bench::EngineArgs),
}

#[derive(Debug, Subcommand)]
enum ModelVerb {
    /// Say what a model directory is and what it would cost, without loading its weights.
    #[command(after_help = "Example: assay model inspect models/llama --dtype q8_0")]
    Inspect(InspectArgs),
    /// Ask a model once and print its answer while it is written.
    #[command(after_help = "Example: assay model try models/llama --image mug.jpg --prompt \"What is this?\"")]
    Try(tryout::TryArgs),
    /// Say how far each number format leads a model's answers away from f32.
    #[command(after_help = "Example: assay model drift models/llama --dtypes bf16,q8_0 --prompts questions.txt")]
    Drift(bench::DriftArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or hf://org/name[@revision].
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The number format to hold the weights in: f32, f16, bf16, q8_0 or q4k.
    #[arg(long, default_value = "f32")]
    dtype: Precision,
}

/// Parses the command line, runs the verb and says with which code to exit.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = if std::io::stderr().is_terminal() { LogFormat::Pretty } else { LogFormat::Json };
    let usual = if matches!(cli.verb, Verb::Run(_)) { "info" } else { "warn" };
    if let Err(error) = telemetry::init(format, cli.log.as_deref().unwrap_or(usual)) {
        eprintln!("assay: {error}");
        return ExitCode::from(Exit::Usage as u8);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                let forced = CancellationToken::new();
                tokio::select! {
                    result = dispatch(cli, forced.clone()) => result,
                    () = forced.cancelled() => Err(anyhow!("stopped by a second signal; the next worker goes on")),
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(2));
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::from(Exit::Success as u8),
        Err(error) => {
            eprintln!("assay: {}", chain(&error));
            ExitCode::from(exit_for(&error) as u8)
        }
    }
}

async fn dispatch(cli: Cli, forced: CancellationToken) -> Result<()> {
    let path = cli.config.as_deref();
    let load = || Config::load(path).map_err(check::problems_error);
    match cli.verb {
        Verb::Demo(DemoArgs { dir, catalogue: Some(items), seed, split, masks, .. }) => {
            let options = demo::MarketOptions { dir, items, seed, split, masks };
            blocking(move || demo::write_market(&options)).await
        }
        Verb::Demo(DemoArgs { dir, assets, seed, cold_start: true, .. }) => {
            let options = demo::ColdStartOptions { dir, products: assets.unwrap_or(2_000), seed };
            demo::cold_start(options, on_signal(forced)).await
        }
        Verb::Demo(DemoArgs { dir, assets, seed, .. }) => {
            let options = demo::DemoOptions { dir, assets: assets.unwrap_or(400), seed };
            demo::run(options, on_signal(forced)).await
        }
        Verb::Check => check_command(path),
        Verb::Run(args) => run_command(&load()?, args, on_signal(forced)).await,
        Verb::Submit(args) => {
            let options = submit::SubmitOptions {
                topic: args.topic,
                kind: args.kind.map(KindArg::into_domain),
                validate: !args.no_validate,
                paths: args.paths,
            };
            submit::run(&load()?, options).await
        }
        Verb::Query(args) => {
            let QueryArgs { sql, format, output, job, files } = args;
            let options = ask::QueryOptions { sql, format: format.into_query(), output, files };
            ask::run(&load()?, job.as_deref(), options).await
        }
        Verb::Status(StatusArgs { jobs, json, watch }) => {
            status::run(&load()?, status::StatusOptions { jobs, json, watch }, on_signal(forced)).await
        }
        Verb::Health => {
            println!("{}", server::probe(load()?.server.address).await?);
            Ok(())
        }
        Verb::Metrics => {
            print!("{}", Metrics::new().listing());
            Ok(())
        }
        Verb::Upkeep(args) => upkeep::run(&load()?, &args.jobs).await,
        Verb::Eval(args) => eval::run(&load()?, args).await,
        Verb::Dlq { what } => dlq::run(&load()?, what).await,
        Verb::Model { what: ModelVerb::Inspect(args) } => blocking(move || inspect::run(&args.model, args.dtype)).await,
        Verb::Model { what: ModelVerb::Try(args) } => blocking(move || tryout::run(&args)).await,
        Verb::Model { what: ModelVerb::Drift(args) } => blocking(move || bench::drift(&args)).await,
        Verb::Bench { what: BenchVerb::Pipeline(args) } => bench::pipeline(args).await,
        Verb::Bench { what: BenchVerb::Model(args) } => blocking(move || bench::model(&args)).await,
        Verb::Bench { what: BenchVerb::Engine(args) } => blocking(move || bench::engine(&args)).await,
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "assay", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs what computes on a thread of its own, so that signals are seen meanwhile.
async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work).await?
}

fn check_command(path: Option<&std::path::Path>) -> Result<()> {
    let report = check::check(path).map_err(check::problems_error)?;
    println!("{report}");
    Ok(())
}

async fn run_command(config: &Config, args: RunArgs, shutdown: CancellationToken) -> Result<()> {
    let mode = if args.once { Mode::Once } else { Mode::Continuous };
    let progress_line = std::io::stderr().is_terminal();
    let run = app::Run { jobs: args.jobs, mode, serve: true, progress_line };
    for (job, done) in app::run(config, run, shutdown).await? {
        let (annotated, removed, rejected) = (done.annotated, done.removed, done.rejected);
        tracing::info!(job, annotated, removed, rejected, "done");
    }
    Ok(())
}

/// Cancelled by SIGTERM or Ctrl-C; a second one cancels `forced` and so ends the process at once, which the offsets make safe.
fn on_signal(forced: CancellationToken) -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let graceful = CancellationToken::new();
    let tokens = [graceful.clone(), forced];
    let mut terminate = signal(SignalKind::terminate()).expect("signal handlers can be installed");
    tokio::spawn(async move {
        for token in tokens {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            token.cancel();
        }
    });
    graceful
}

/// The error and its causes, each said once: many errors say their cause themselves.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.contains(&cause) {
        true => told,
        false if told.is_empty() => cause,
        false => format!("{told}: {cause}"),
    })
}

fn exit_for(error: &anyhow::Error) -> Exit {
    if error.downcast_ref::<check::Problems>().is_some() || error.downcast_ref::<UnknownJob>().is_some() {
        return Exit::Usage;
    }
    match error.downcast_ref::<PipelineError>() {
        Some(PipelineError::Inference(InferenceError::Dead { .. })) => Exit::DeviceDead,
        Some(PipelineError::Source(_)) => Exit::Source,
        Some(PipelineError::Sink(_)) => Exit::Tables,
        Some(PipelineError::DrainIncomplete { .. } | PipelineError::StoppedEarly) => Exit::Unfinished,
        _ => Exit::Failure,
    }
}

impl KindArg {
    fn into_domain(self) -> crate::domain::AssetKind {
        match self {
            Self::Product => crate::domain::AssetKind::Product,
            Self::Ad => crate::domain::AssetKind::Ad,
        }
    }
}

impl FormatArg {
    fn into_query(self) -> query::Format {
        match self {
            Self::Table => query::Format::Table,
            Self::Json => query::Format::Json,
            Self::Csv => query::Format::Csv,
            Self::Parquet => query::Format::Parquet,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_verb_has_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example: assay "), "{} has no example", verb.get_name());
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("config.json: no such file").context("models.demo");
        assert_eq!(chain(&error), "models.demo: config.json: no such file");
    }

    #[test]
    fn exit_codes_are_found_under_any_context() {
        let dead = PipelineError::from(InferenceError::Dead { detail: "out of memory".to_owned() });
        let error = Err::<(), _>(dead).context("job a").unwrap_err();
        assert_eq!(exit_for(&error), Exit::DeviceDead);
        assert_eq!(exit_for(&anyhow::anyhow!("else")), Exit::Failure);
        let drain = Err::<(), _>(PipelineError::DrainIncomplete { open: 3 }).context("job b").unwrap_err();
        assert_eq!(exit_for(&drain), Exit::Unfinished);
    }
}
