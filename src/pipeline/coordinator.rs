//! The one task that owns the ledger: it takes records in, takes outcomes back, and says what may be committed.
//!
//! It never does slow work itself: reading logs, committing and telling the broker run beside it and report back. Invariants:
//! nobody else touches the ledger; a revoked partition's callback is answered only when no commit in flight holds it; nothing of
//! an older epoch enters or leaves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::domain::{Blame, Epoch, Outcome, Rejection, TopicPartition};
use crate::ledger::{Ledger, Settling, Ticket};
use crate::metrics::Metrics;
use crate::retry;
use crate::sink::{RejectionMark, Resume, SinkError};
use crate::source::{Flow, Rebalance, Record, Source, SourceError};
use crate::traces::Tracer;

use super::admission::Admission;
use super::commit::{Committer, Counts, Entry, Finished};
use super::error::PipelineError;
use super::finish::{Finish, Phase};
use super::patience::Patience;
use super::positions::{Advice, positions_elsewhere, read_resumes};
use super::progress::Progress;
use super::tracked::{self, Permits, Settled, Tracked};

/// What comes to the coordinator from outside.
pub(super) struct Inputs {
    pub(super) flow: mpsc::Receiver<Flow>,
    pub(super) rebalances: mpsc::Receiver<Rebalance>,
    pub(super) failure: oneshot::Receiver<SourceError>,
    pub(super) outcomes: mpsc::Receiver<Settled>,
    pub(super) fatal: mpsc::Receiver<PipelineError>,
    pub(super) shutdown: CancellationToken,
}

/// Limits and intervals that the coordinator keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) commit_rows: usize,
    pub(super) commit_bytes: usize,
    pub(super) commit_interval: Duration,
    pub(super) deadline: Duration,
    pub(super) grace: Duration,
    pub(super) retry: retry::Options,
}

/// A partition that is ours.
struct Assignment {
    mark: RejectionMark,
    already_rejected: HashSet<i64>,
}

/// What the ledger keeps beside an open entry.
struct Open {
    patience: Arc<Patience>,
    record: Arc<Record>,
}

/// Reports of work that ran beside the coordinator.
enum Background {
    Resumed { epoch: Epoch, resumes: Vec<Resume>, answer: oneshot::Sender<Vec<(TopicPartition, i64)>> },
    Elsewhere(Vec<(TopicPartition, i64)>),
    Told(Result<(), Vec<(TopicPartition, i64)>>),
    Declined,
    Closed,
    Failed(PipelineError),
}

pub(super) struct Coordinator {
    pub(super) job: String,
    pub(super) source: Arc<dyn Source>,
    pub(super) committer: Arc<Committer>,
    pub(super) policy: Policy,
    pub(super) metrics: Arc<Metrics>,
    pub(super) progress: Arc<Progress>,
    pub(super) admission: Admission,
    pub(super) finish: Finish,
    pub(super) tracer: Tracer,
    pub(super) first_stage: mpsc::Sender<Tracked<Arc<Record>>>,
    pub(super) outcomes: mpsc::Sender<Settled>,
    pub(super) state: State,
}

/// What only the coordinator itself changes.
pub(super) struct State {
    ledger: Ledger<Open, Entry>,
    assignments: HashMap<TopicPartition, Assignment>,
    commit: Option<JoinHandle<Result<Finished, SinkError>>>,
    background: JoinSet<Background>,
    /// Revocations that wait for the commit in flight.
    revocations: Vec<oneshot::Sender<()>>,
    ready_since: Option<Instant>,
    advice: Advice,
    phase: Phase,
    /// Cancelled when the group is being left.
    closing: CancellationToken,
    /// All that `--once` was for is durable.
    reached: bool,
    /// Assets that the grace was too short for.
    incomplete: usize,
    closed: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            ledger: Ledger::default(),
            assignments: HashMap::new(),
            commit: None,
            background: JoinSet::new(),
            revocations: Vec::new(),
            ready_since: None,
            advice: Advice::default(),
            phase: Phase::Running,
            closing: CancellationToken::new(),
            reached: false,
            incomplete: 0,
            closed: false,
        }
    }
}

impl Coordinator {
    /// Runs until the pipeline has drained and the group is left, or until something ends it.
    pub(super) async fn run(mut self, mut inputs: Inputs) -> Result<(), PipelineError> {
        let result = self.work(&mut inputs).await;
        if let Some(commit) = self.state.commit.take() {
            commit.abort();
        }
        result
    }

    async fn work(&mut self, inputs: &mut Inputs) -> Result<(), PipelineError> {
        let mut settled = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.state.closed {
            self.advance();
            self.commit_if_due();
            let running = self.state.phase == Phase::Running;
            tokio::select! {
                biased;
                Some(error) = inputs.fatal.recv() => return Err(error),
                Some(rebalance) = inputs.rebalances.recv() => self.on_rebalance(rebalance),
                finished = join(&mut self.state.commit) => self.on_commit(finished)?,
                Some(report) = self.state.background.join_next() => self.on_background(report)?,
                _ = inputs.outcomes.recv_many(&mut settled, 512) => self.on_settled(&mut settled)?,
                () = inputs.shutdown.cancelled(), if running => self.drain(),
                _ = tick.tick() => self.on_tick(),
                (record, permits) = self.admission.next(), if running => self.send_on(record, permits),
                flow = inputs.flow.recv(), if running && !self.admission.is_waiting() => match flow {
                    Some(flow) => self.on_flow(flow),
                    None => return Err(ended((&mut inputs.failure).await)),
                },
            }
        }
        match self.state.incomplete {
            _ if self.state.reached => Ok(()),
            0 if self.finish.ends.is_none() => Ok(()),
            0 => Err(PipelineError::StoppedEarly),
            open => Err(PipelineError::DrainIncomplete { open }),
        }
    }

    fn on_flow(&mut self, flow: Flow) {
        match flow {
            Flow::EndReached { partition, epoch, next } => self.state.ledger.end_reached(&partition, epoch, next),
            Flow::Record(record) => {
                let origin = &record.origin;
                if self.state.ledger.epoch(&origin.partition) != Some(record.epoch) {
                    return;
                }
                let assignment = self.state.assignments.get_mut(&origin.partition);
                if assignment.is_some_and(|ours| ours.already_rejected.remove(&origin.offset)) {
                    self.pass_over(record);
                } else if let Some((record, permits)) = self.admission.admit(record) {
                    self.send_on(record, permits);
                } else {
                    self.metrics.flow_paused.with_label_values(&[&self.job]).set(1);
                }
            }
        }
    }

    /// A record whose rejection is already durable takes its place in the ledger and nothing else.
    fn pass_over(&mut self, record: Record) {
        let (partition, offset) = (record.origin.partition.clone(), record.origin.offset);
        let open = Open { patience: Arc::default(), record: Arc::new(record) };
        let epoch = open.record.epoch;
        if let Some(ticket) = self.state.ledger.open(&partition, epoch, offset, open) {
            self.state.ledger.settle(&ticket, Entry::AlreadyRejected, 0);
        }
    }

    fn send_on(&mut self, record: Record, mut permits: Permits) {
        self.metrics.flow_paused.with_label_values(&[&self.job]).set(0);
        let record = Arc::new(record);
        let origin = &record.origin;
        permits.held.journey = tracked::journey(&self.tracer, &self.job, origin);
        let patience = Arc::new(Patience::traced(permits.held.journey.clone()));
        let open = Open { patience: patience.clone(), record: record.clone() };
        let Some(ticket) = self.state.ledger.open(&origin.partition, record.epoch, origin.offset, open) else {
            return;
        };
        self.progress.received.fetch_add(1, Ordering::Relaxed);
        self.metrics.records_total.with_label_values(&[&self.job]).inc();
        let tracked = Tracked::new(ticket, record, patience, permits, self.outcomes.clone());
        // The first stage's channel is as wide as the permits; when it is closed the asset reports itself as abandoned.
        let _ = self.first_stage.try_send(tracked);
    }

    fn on_settled(&mut self, settled: &mut Vec<Settled>) -> Result<(), PipelineError> {
        for Settled { ticket, outcome, record, stage, held } in settled.drain(..) {
            let Some(outcome) = outcome else {
                if self.state.ledger.is_open(&ticket) {
                    return Err(PipelineError::Abandoned { ticket, stage: stage.as_str() });
                }
                continue;
            };
            self.settle(&ticket, Entry::Outcome { record, outcome, held });
        }
        Ok(())
    }

    /// Enters an outcome into the ledger, which drops it when it comes too late.
    fn settle(&mut self, ticket: &Ticket, entry: Entry) {
        let rejected = match &entry {
            Entry::Outcome { outcome: Outcome::Rejected(Rejection { stage, reason, detail, .. }), .. } => {
                tracing::debug!(job = self.job, %ticket, stage = stage.as_str(), reason, detail, "asset rejected");
                Some((stage.as_str(), *reason))
            }
            _ => None,
        };
        let weight = entry.weight();
        match self.state.ledger.settle(ticket, entry, weight) {
            Settling::Accepted => {
                if let Some((stage, reason)) = rejected {
                    self.metrics.rejections_total.with_label_values(&[self.job.as_str(), stage, reason]).inc();
                }
            }
            Settling::Stale | Settling::Repeated => tracing::trace!(%ticket, "late outcome dropped"),
        }
    }

    fn on_rebalance(&mut self, rebalance: Rebalance) {
        match rebalance {
            Rebalance::Assigned { partitions, epoch, resume } => {
                tracing::info!(job = self.job, partitions = %listed(&partitions), epoch = epoch.0, "partitions assigned");
                partitions.iter().for_each(|partition| self.fence(partition));
                let (sink, retry) = (self.committer.sink.clone(), self.policy.retry);
                let closing = self.state.closing.clone();
                self.state.background.spawn(async move {
                    // A question that is dropped unanswered tells the source to assign nothing.
                    match closing.run_until_cancelled(read_resumes(sink.as_ref(), &partitions, retry)).await {
                        Some(Ok(resumes)) => Background::Resumed { epoch, resumes, answer: resume },
                        Some(Err(error)) => Background::Failed(error.into()),
                        None => Background::Declined,
                    }
                });
            }
            Rebalance::Revoked { partitions, done } => {
                tracing::info!(job = self.job, partitions = %listed(&partitions), "partitions revoked");
                let releasing = partitions.iter().any(|partition| self.state.ledger.is_releasing(partition));
                partitions.iter().for_each(|partition| self.fence(partition));
                if releasing && self.state.commit.is_some() {
                    self.state.revocations.push(done);
                } else {
                    // The receiver is gone when the source has ended meanwhile.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Forgets a partition; assets under way are dropped by the next stage that looks.
    fn fence(&mut self, partition: &TopicPartition) {
        self.state.ledger.fence(partition).iter().for_each(|open| open.patience.cancel());
        self.state.assignments.remove(partition);
        self.state.advice.forget(partition);
    }

    fn on_background(&mut self, report: Result<Background, JoinError>) -> Result<(), PipelineError> {
        match report.map_err(panicked)? {
            Background::Resumed { epoch, resumes, answer } => {
                let mut offsets = Vec::new();
                for Resume { partition, committed, rejections, already_rejected } in resumes {
                    let already_rejected = already_rejected.into_iter().collect();
                    self.state.ledger.assign(partition.clone(), epoch, committed);
                    self.state.assignments.insert(partition.clone(), Assignment { mark: rejections, already_rejected });
                    offsets.extend(committed.map(|committed| (partition, committed + 1)));
                }
                // The receiver is gone when the source has ended meanwhile.
                let _ = answer.send(offsets);
            }
            Background::Elsewhere(positions) => self.finish.note_elsewhere(positions),
            Background::Told(result) => self.state.advice.told(result, Instant::now()),
            Background::Declined => {}
            Background::Closed => self.state.closed = true,
            Background::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn on_commit(&mut self, finished: Result<Result<Finished, SinkError>, JoinError>) -> Result<(), PipelineError> {
        self.state.commit = None;
        for done in self.state.revocations.drain(..) {
            let _ = done.send(());
        }
        let Finished { committed, epochs, counts } = finished.map_err(panicked)??;
        for (partition, mark) in &committed.done {
            self.state.ledger.committed(partition, epochs[partition]);
            if self.state.ledger.epoch(partition) == Some(epochs[partition])
                && let Some(assignment) = self.state.assignments.get_mut(partition)
            {
                assignment.mark = *mark;
            }
            self.count(counts[partition]);
        }
        let fenced: Vec<_> = committed
            .fenced
            .into_iter()
            .filter(|partition| self.state.ledger.epoch(partition) == Some(epochs[partition]))
            .collect();
        if !fenced.is_empty() {
            tracing::warn!(job = self.job, partitions = %listed(&fenced), "another worker has written these partitions");
            fenced.iter().for_each(|partition| self.fence(partition));
            self.source.reassign(fenced);
        }
        self.tell_positions();
        Ok(())
    }

    /// Outcomes count once they are durable.
    fn count(&self, counts: Counts) {
        for (outcome, number, progress) in [
            ("annotated", counts.annotated, &self.progress.annotated),
            ("removed", counts.removed, &self.progress.removed),
            ("rejected", counts.rejected, &self.progress.rejected),
        ] {
            progress.fetch_add(number, Ordering::Relaxed);
            self.metrics.outcomes_total.with_label_values(&[self.job.as_str(), outcome]).inc_by(number);
        }
    }

    fn on_tick(&mut self) {
        self.enforce_deadlines();
        let in_flight = self.admission.in_flight();
        self.progress.in_flight.store(in_flight as u64, Ordering::Relaxed);
        self.metrics.in_flight_assets.with_label_values(&[&self.job]).set(in_flight as i64);
        self.tell_positions();
        if self.finish.should_ask(&self.state.ledger, Instant::now()) {
            let (source, sink) = (self.source.clone(), self.committer.sink.clone());
            self.state.background.spawn(async move {
                Background::Elsewhere(positions_elsewhere(source.as_ref(), sink.as_ref()).await.unwrap_or_default())
            });
        }
    }

    /// Turns assets that took too long into rejections, so that none holds a partition.
    fn enforce_deadlines(&mut self) {
        let deadline = self.policy.deadline;
        let late: Vec<_> = self
            .state
            .ledger
            .open_entries()
            .filter(|(_, open)| open.patience.spent() > deadline)
            .map(|(ticket, open)| (ticket, open.patience.clone(), open.record.clone()))
            .collect();
        for (ticket, patience, record) in late {
            patience.cancel();
            let rejection = Rejection {
                asset_id: record.origin.key.clone(),
                stage: patience.stage(),
                reason: "deadline_exceeded",
                detail: format!(
                    "worked on for more than {}; raise limits.deadline of the job if that is usual",
                    humantime::format_duration(deadline)
                ),
                blame: Blame::Asset,
                attempts: 1,
            };
            self.settle(&ticket, Entry::Outcome { record, outcome: Outcome::Rejected(rejection), held: None });
        }
    }

    /// Tells the broker what has become durable since it was last told.
    fn tell_positions(&mut self) {
        let Some(news) = self.state.advice.news(self.state.ledger.positions(), Instant::now()) else { return };
        let source = self.source.clone();
        self.state.background.spawn(async move {
            let told = source.commit(news.clone()).await;
            Background::Told(told.map_err(|error| {
                tracing::warn!(%error, "the broker did not take our positions; the tables are right all the same");
                news
            }))
        });
    }

    fn commit_if_due(&mut self) {
        if self.state.commit.is_some() {
            return;
        }
        let (rows, bytes) = self.state.ledger.ready();
        if rows == 0 {
            self.state.ready_since = None;
            return;
        }
        let now = Instant::now();
        let since = *self.state.ready_since.get_or_insert(now);
        let policy = &self.policy;
        let due = rows >= policy.commit_rows
            || bytes >= policy.commit_bytes
            || now >= since + policy.commit_interval
            || (matches!(self.state.phase, Phase::Draining { .. }) && !self.state.ledger.has_open())
            || self.finish.wants_commit(&self.state.ledger);
        if !due || self.state.phase == Phase::Closing {
            return;
        }
        let releases = self.state.ledger.release(policy.commit_rows.max(1));
        let mark = |partition: &TopicPartition| Some((partition.clone(), self.state.assignments.get(partition)?.mark));
        let marks = releases.iter().filter_map(|release| mark(&release.partition)).collect();
        self.state.ready_since = None;
        self.state.commit = Some(tokio::spawn(self.committer.clone().commit(releases, marks)));
    }

    fn drain(&mut self) {
        tracing::info!(job = self.job, "draining");
        self.source.set_flowing(false);
        self.admission.forget_waiting();
        self.state.phase = Phase::Draining { until: Instant::now() + self.policy.grace };
    }

    /// Goes on to the next phase when it is time.
    fn advance(&mut self) {
        match self.state.phase {
            Phase::Running if self.finish.is_reached(&self.state.ledger) => self.drain(),
            Phase::Draining { until } => {
                if self.state.commit.is_none() && self.state.ledger.is_idle() {
                    self.close();
                } else if Instant::now() >= until {
                    self.state.incomplete = self.state.ledger.open_entries().count().max(1);
                    self.close();
                }
            }
            Phase::Running | Phase::Closing => {}
        }
    }

    fn close(&mut self) {
        self.state.phase = Phase::Closing;
        self.state.closing.cancel();
        // Leaving the group takes the partitions, and with them what is known of their positions.
        self.state.reached = self.finish.is_reached(&self.state.ledger);
        if let Some(commit) = self.state.commit.take() {
            commit.abort();
            for done in self.state.revocations.drain(..) {
                let _ = done.send(());
            }
        }
        let positions: Vec<_> =
            self.state.ledger.positions().map(|(partition, position)| (partition.clone(), position)).collect();
        let source = self.source.clone();
        self.state.background.spawn(async move {
            if let Err(error) = source.commit(positions).await {
                tracing::warn!(%error, "the broker did not take our last positions; the tables are right all the same");
            }
            source.close().await;
            Background::Closed
        });
    }
}

/// The result of the task, or never when there is none.
async fn join<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

fn ended(failure: Result<SourceError, oneshot::error::RecvError>) -> PipelineError {
    failure.unwrap_or(SourceError::Closed).into()
}

fn panicked(error: JoinError) -> PipelineError {
    PipelineError::Panicked { detail: error.to_string() }
}

fn listed(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
