//! How the stages of one job's pipeline are joined. Read this first.
//!
//! ```text
//! source -> coordinator -> decode -> fetch -> prepare -> infer
//!               ^  |                                       |
//!               |  +-> commit -> sink                      |
//!               +------------ outcomes (any stage) <-------+
//! ```
//!
//! Every channel is bounded. The first stage's and the outcomes' are as wide as the permits, so the coordinator never waits for a
//! stage and no stage waits to settle.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::domain::{Blame, TopicPartition};
use crate::engine::Inference;
use crate::job::{JobSpec, MessageDecoder};
use crate::media::MediaStore;
use crate::metrics::Metrics;
use crate::retry::{self, Backoff};
use crate::sink::{CommitOptions, Sink};
use crate::source::{Source, SourceError, Streams};
use crate::traces::Tracer;

use super::admission::Admission;
use super::commit::Committer;
use super::coordinator::{Coordinator, Inputs, Policy};
use super::error::PipelineError;
use super::finish::Finish;
use super::options::Options;
use super::progress::Progress;
use super::rows::RowWriter;
use super::{decode, fetch, infer, prepare};

/// Wide enough to keep the next stage busy, small enough to stop early.
const BETWEEN_STAGES: usize = 128;

/// The same for the last stage, which gets several assets at once.
const HANDED_OVER: usize = BETWEEN_STAGES / prepare::TOGETHER;

/// Whether a run ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Until it is asked to stop.
    Continuous,
    /// Until everything that was in the topics at the start is durable.
    Once,
}

/// Everything that a pipeline is made of.
#[derive(Clone)]
pub struct Parts {
    pub job: Arc<JobSpec>,
    pub source: Arc<dyn Source>,
    pub media: Arc<dyn MediaStore>,
    pub inference: Arc<dyn Inference>,
    pub sink: Arc<dyn Sink>,
    pub metrics: Arc<Metrics>,
    pub progress: Arc<Progress>,
    pub tracer: Tracer,
    pub options: Options,
    pub commit: CommitOptions,
    /// How to wait for a store that is down.
    pub retry: retry::Options,
    /// Media read at once.
    pub fetch_concurrency: usize,
    /// Requests that may be with the engine at once.
    pub inference_window: usize,
    /// How long a drain may take.
    pub grace: Duration,
}

/// Runs the pipeline of one job to its end.
///
/// # Errors
/// Only what ends the process: the source, the tables or the engine cannot go on, or the grace was too short. Bad assets are rows
/// of the rejections table; a dependency that is down is waited for.
pub async fn run(parts: Parts, mode: Mode, shutdown: CancellationToken) -> Result<(), PipelineError> {
    let ends = match mode {
        Mode::Continuous => None,
        Mode::Once => match ends(&parts, &shutdown).await? {
            Some(ends) => Some(ends),
            None => return Err(PipelineError::StoppedEarly),
        },
    };
    let Streams { flow, rebalances, failure } = parts.source.start()?;
    let permits = parts.options.assets.max(1);
    let (outcomes, settled) = mpsc::channel(permits);
    let (first_stage, records) = mpsc::channel(permits);
    let (fatal_sender, fatal) = mpsc::channel(1);
    let mut stages = start_stages(&parts, records, fatal_sender.clone());
    let coordinator = Coordinator {
        job: parts.job.name.clone(),
        source: parts.source.clone(),
        committer: Arc::new(committer(&parts)),
        policy: policy(&parts),
        metrics: parts.metrics.clone(),
        progress: parts.progress.clone(),
        tracer: parts.tracer.clone(),
        admission: Admission::new(&parts.options, parts.job.pictures()),
        finish: Finish::new(ends),
        first_stage,
        outcomes,
        state: Default::default(),
    };
    let inputs = Inputs { flow, rebalances, failure, outcomes: settled, fatal, shutdown };
    let result = coordinator.run(inputs).await;
    drop(fatal_sender);
    if result.is_err() {
        // Nobody listens to the source any more, so no callback waits; leaving lets others take over at once.
        parts.source.close().await;
    }
    stages.shutdown().await;
    result
}

fn start_stages(
    parts: &Parts,
    records: mpsc::Receiver<super::tracked::Tracked<Arc<crate::source::Record>>>,
    fatal: mpsc::Sender<PipelineError>,
) -> JoinSet<()> {
    let threads = parts.options.cpu_threads();
    let decoder = Arc::new(MessageDecoder::new(parts.job.kind));
    let (to_fetch, decoded) = mpsc::channel(BETWEEN_STAGES);
    let (to_prepare, fetched) = mpsc::channel(BETWEEN_STAGES);
    let (to_infer, prepared) = mpsc::channel(HANDED_OVER);
    let fetcher = fetch::Fetcher {
        job: parts.job.clone(),
        store: parts.media.clone(),
        retry: parts.retry,
        concurrency: parts.fetch_concurrency,
    };
    let preparer = prepare::Preparer {
        job: parts.job.clone(),
        inference: parts.inference.clone(),
        metrics: parts.metrics.clone(),
        threads,
        fatal: fatal.clone(),
    };
    let mut stages = JoinSet::new();
    stages.spawn(decode::run(records, to_fetch, decoder, threads));
    stages.spawn(fetch::run(decoded, to_prepare, Arc::new(fetcher)));
    stages.spawn(prepare::run(fetched, to_infer, Arc::new(preparer)));
    let inferrer = infer::Inferrer { job: parts.job.clone(), inference: parts.inference.clone(), fatal };
    stages.spawn(infer::run(prepared, parts.inference_window.max(1), Arc::new(inferrer)));
    stages
}

fn committer(parts: &Parts) -> Committer {
    let named = parts.job.models();
    let models = parts.inference.models().iter().filter(|model| named.iter().any(|name| **name == *model.name));
    let rows = RowWriter {
        job: parts.job.name.clone(),
        job_fingerprint: parts.job.fingerprint(),
        kind: parts.job.kind,
        models: models.map(|model| (model.name.clone(), model.fingerprint.clone())).collect(),
        value_columns: parts.job.embeddings.len()
            + parts.job.annotate.as_ref().map_or(0, |annotate| annotate.columns.len()),
    };
    Committer { sink: parts.sink.clone(), rows, retry: parts.retry }
}

fn policy(parts: &Parts) -> Policy {
    Policy {
        // Rows waiting for a commit hold their permits, so a batch larger than half of them would stop the line.
        commit_rows: parts.commit.rows.min(parts.options.assets / 2).max(1),
        commit_bytes: usize::try_from(parts.commit.bytes.as_u64()).unwrap_or(usize::MAX),
        commit_interval: parts.commit.interval,
        deadline: parts.job.limits.deadline,
        grace: parts.grace,
        retry: parts.retry,
    }
}

/// Where the topics end now; none when asked to stop before the broker answered.
async fn ends(parts: &Parts, shutdown: &CancellationToken) -> Result<Option<Vec<(TopicPartition, i64)>>, SourceError> {
    let mut backoff = Backoff::new(parts.retry);
    loop {
        match parts.source.ends().await {
            Ok(ends) => return Ok(Some(ends)),
            Err(error) if error.blame() == Blame::World => {
                tracing::warn!(job = parts.job.name, %error, "the ends of the topics cannot be read for now");
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = backoff.wait(None) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}
