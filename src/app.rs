//! The composition root: builds every part from configuration and jobs, runs the pipelines, drains them.
//!
//! Everything is put together here and nowhere else; rooms below never build each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SourceKind, hub_options};
use crate::domain::Blame;
use crate::engine::{Engine, Inference, ModelDescription, ModelOptions};
use crate::job::{EmbeddingInput, JobCatalog, JobSpec, rejections_schema, results_schema};
use crate::media::{MediaStore, RemoteMedia};
use crate::metrics::Metrics;
use crate::model;
use crate::pipeline::{self, Mode, Parts, PipelineError, Progress, Snapshot};
use crate::progress_line::ProgressLine;
use crate::retry::Backoff;
use crate::server::{self, Health};
use crate::sink::{DeltaSink, Sink, register_stores};
use crate::source::{KafkaSource, ReplaySource, Source, SourceError};
use crate::traces::Tracer;

/// What `assay run` was asked to do.
#[derive(Debug, Clone)]
pub struct Run {
    /// Names of the jobs; empty means all.
    pub jobs: Vec<String>,
    pub mode: Mode,
    /// Whether to serve `/metrics` and the probes.
    pub serve: bool,
    /// Whether to draw a progress line on standard error.
    pub progress_line: bool,
}

/// What each job has done, in the order of the request.
pub type Report = Vec<(String, Snapshot)>;

/// Runs jobs until they end or `shutdown` is cancelled.
///
/// # Errors
/// Configuration and jobs that do not fit together, or the first pipeline that could not go on (a
/// [`pipeline::PipelineError`] somewhere in the chain); the other pipelines are drained first.
pub async fn run(config: &Config, run: Run, shutdown: CancellationToken) -> Result<Report> {
    let jobs = select_jobs(config, &run.jobs)?;
    register_stores();
    let metrics = Arc::new(Metrics::new());
    let health = Health::new();
    let server = if run.serve { Some(start_server(config, &metrics, &health, &shutdown).await?) } else { None };
    let engine = Arc::new(start_engine(config, &jobs, &metrics).await?);
    health.set_started();
    metrics.start_timestamp_seconds.set(unix_seconds());
    let media: Arc<dyn MediaStore> = Arc::new(RemoteMedia::new(&config.media, metrics.clone())?);

    let (tracer, exporting) = Tracer::start(&config.traces).context("traces")?;

    let mut all_parts = Vec::new();
    for job in jobs {
        let inference: Arc<dyn Inference> = engine.clone();
        let building = shutdown.run_until_cancelled(build(config, job, &media, &inference, &metrics));
        let parts = building
            .await
            .ok_or(PipelineError::StoppedEarly)
            .context("stopped before the tables could be opened")??;
        all_parts.push(Parts { tracer: tracer.clone(), ..parts });
    }
    drop(tracer);
    let stop = shutdown.child_token();
    let result = run_all(&all_parts, run, &stop, &health, engine.as_ref()).await;
    health.set_ready(false);
    if let Err(error) = engine.shutdown(config.run.grace) {
        tracing::warn!(%error, "the device thread did not end in time");
    }
    if let Some(server) = server {
        shutdown.cancel();
        let _ = server.await;
    }
    let report = all_parts.iter().map(|parts| (parts.job.name.clone(), parts.progress.snapshot())).collect();
    // With the last tracer goes the exporter, once it has sent what is left.
    drop(all_parts);
    exporting.end().await;
    result.map(|()| report)
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn select_jobs(config: &Config, names: &[String]) -> Result<Vec<Arc<JobSpec>>> {
    let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
    if names.is_empty() {
        let all: Vec<_> = catalog.jobs().cloned().map(Arc::new).collect();
        if all.is_empty() {
            bail!("there is no job file in {}", config.jobs.display());
        }
        return Ok(all);
    }
    names.iter().map(|name| Ok(Arc::new(catalog.get(name)?.clone()))).collect()
}

async fn start_server(
    config: &Config,
    metrics: &Arc<Metrics>,
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<tokio::task::JoinHandle<std::io::Result<()>>> {
    let listener = server::bind(config.server.address).await?;
    let (metrics, health, shutdown) = (metrics.clone(), health.clone(), shutdown.clone());
    Ok(tokio::spawn(async move { server::serve(listener, metrics, health, shutdown.cancelled_owned()).await }))
}

/// Loads the models that the jobs name.
async fn start_engine(config: &Config, jobs: &[Arc<JobSpec>], metrics: &Arc<Metrics>) -> Result<Engine> {
    let wanted = |name: &str| jobs.iter().any(|job| job.models().iter().any(|model| **model == *name));
    let models: BTreeMap<_, _> = config
        .models
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, model)| (name.clone(), model.clone()))
        .collect();
    for job in jobs {
        if let Some(missing) = job.models().iter().find(|model| !models.contains_key(&***model)) {
            bail!("job {} needs model {missing:?}; list it in the configuration under [models.{missing}]", job.name);
        }
    }
    let (options, metrics) = (config.engine.clone(), metrics.clone());
    let start = move || -> Result<Engine> { Ok(Engine::start(&options, &located(models)?, metrics)?) };
    let engine = tokio::task::spawn_blocking(start).await??;
    for job in jobs {
        check_abilities(job, engine.models())?;
    }
    Ok(engine)
}

/// The same with every path on this machine. Blocking: fetches what is not there yet.
fn located(mut models: BTreeMap<String, ModelOptions>) -> Result<BTreeMap<String, ModelOptions>> {
    let hub = hub_options();
    for (name, model) in &mut models {
        model.path = model::locate(&model.path, &hub).with_context(|| format!("models.{name}"))?;
    }
    Ok(models)
}

/// Refuses a job that asks a model for what it cannot do.
fn check_abilities(job: &JobSpec, models: &[ModelDescription]) -> Result<()> {
    let find = |name: &str| models.iter().find(|model| model.name == name);
    if let Some(model) =
        job.annotate.as_ref().and_then(|annotate| find(&annotate.model)).filter(|model| !model.generates)
    {
        let message =
            format!("is {:?}, a {} that writes no texts; name a model that generates", model.name, model.architecture);
        bail!("{}", job.problem("annotate.model", message));
    }
    for (index, embedding) in job.embeddings.iter().enumerate() {
        let own = matches!(embedding.input, EmbeddingInput::Prompt(_));
        if let Some(model) = find(&embedding.model).filter(|model| !own && !model.embeds) {
            let message = format!(
                "is {:?}, a {} that embeds only the prompts it answers; write input = \"prompt\", or name an encoder",
                model.name, model.architecture
            );
            bail!("{}", job.problem(&format!("embeddings[{index}].model"), message));
        }
    }
    Ok(())
}

/// The parts of one job's pipeline; its tables are created when they do not exist.
async fn build(
    config: &Config,
    job: Arc<JobSpec>,
    media: &Arc<dyn MediaStore>,
    inference: &Arc<dyn Inference>,
    metrics: &Arc<Metrics>,
) -> Result<Parts> {
    let dimensions =
        |name: &str| inference.models().iter().find(|model| model.name == name).map(|model| model.dimensions);
    let results = results_schema(&job, dimensions)?;
    let sink = DeltaSink::new(&job.name, &config.tables, results, rejections_schema(), metrics.clone())?;
    open(&sink, config).await.with_context(|| format!("job {}", job.name))?;
    let source = source_of(config, &job, metrics)?;
    Ok(Parts {
        job,
        source,
        media: media.clone(),
        inference: inference.clone(),
        sink: Arc::new(sink),
        metrics: metrics.clone(),
        progress: Arc::new(Progress::default()),
        tracer: Tracer::default(),
        options: config.pipeline.clone(),
        commit: config.tables.commit.clone(),
        retry: config.media.retry,
        fetch_concurrency: config.media.concurrency,
        inference_window: config.engine.queue,
        grace: config.run.grace,
    })
}

/// The source of a job; it connects to nothing before it is started or asked.
pub fn source_of(config: &Config, job: &JobSpec, metrics: &Arc<Metrics>) -> Result<Arc<dyn Source>, SourceError> {
    Ok(match config.source.kind {
        SourceKind::Kafka => {
            Arc::new(KafkaSource::new(&config.source.kafka, &job.group, &job.topics, metrics.clone(), &job.name)?)
        }
        SourceKind::Replay => Arc::new(ReplaySource::new(config.source.replay.clone(), &job.topics)?),
    })
}

/// Opens the tables, waiting for a store that is down.
async fn open(sink: &DeltaSink, config: &Config) -> Result<()> {
    let mut backoff = Backoff::new(config.tables.retry);
    loop {
        match sink.open().await {
            Err(error) if error.blame() == Blame::World => {
                tracing::warn!(%error, "tables cannot be opened for now");
                backoff.wait(None).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Runs all pipelines; when one fails the others drain, and the first failure is the result.
async fn run_all(
    all_parts: &[Parts],
    run: Run,
    stop: &CancellationToken,
    health: &Health,
    engine: &Engine,
) -> Result<()> {
    let mut pipelines = JoinSet::new();
    for parts in all_parts {
        let (parts, stop) = (parts.clone(), stop.clone());
        let job = parts.job.name.clone();
        pipelines
            .spawn(async move { pipeline::run(parts, run.mode, stop).await.with_context(|| format!("job {job}")) });
    }
    let mut line = ProgressLine::new(run.progress_line, all_parts);
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut first_failure = None;
    loop {
        tokio::select! {
            ended = pipelines.join_next() => match ended {
                None => break,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => { first_failure.get_or_insert(error); stop.cancel(); }
                Some(Err(panic)) => { first_failure.get_or_insert(panic.into()); stop.cancel(); }
            },
            () = stop.cancelled(), if health.is_ready() => health.set_ready(false),
            _ = tick.tick() => {
                if !engine.is_alive() {
                    health.set_dead("the device thread has ended");
                }
                let is_member = all_parts.iter().all(|parts| parts.source.is_member());
                health.set_ready(is_member && !stop.is_cancelled());
                line.draw();
            }
        }
    }
    line.finish();
    first_failure.map_or(Ok(()), Err)
}
