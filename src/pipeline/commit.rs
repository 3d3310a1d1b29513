//! Last stage: a contiguous prefix of each partition becomes durable, rows and offsets together.
//!
//! One commit of a job is in flight at a time. A store that is down is asked again for as long as it takes; a partition that
//! another worker owns by now comes back as fenced. This file knows no Kafka.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::Blame;
use crate::domain::{Epoch, Outcome, TopicPartition};
use crate::ledger::Release;
use crate::retry::{self, Backoff};
use crate::sink::{Batch, Committed, Range, RejectionMark, Sink, SinkError};
use crate::source::Record;

use super::rows::RowWriter;
use super::tracked::Held;

/// What the ledger keeps of a settled record until it is durable.
#[derive(Debug)]
pub(super) enum Entry {
    Outcome {
        record: Arc<Record>,
        outcome: Outcome,
        held: Option<Held>,
    },
    /// Its rejection is in the table since a worker died between the two tables.
    AlreadyRejected,
}

impl Entry {
    /// Roughly the bytes that its row will take.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::AlreadyRejected => 0,
            Self::Outcome { record, outcome, .. } => {
                let payload = record.payload.as_ref().map_or(0, |payload| payload.len());
                match outcome {
                    Outcome::Annotated(annotation) => {
                        256 + annotation.values.iter().map(crate::domain::Value::size).sum::<usize>()
                    }
                    Outcome::Removed { asset_id } => 256 + asset_id.len(),
                    Outcome::Rejected(rejection) => 256 + rejection.detail.len() + payload,
                }
            }
        }
    }
}

/// How many rows of each kind a commit wrote.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) annotated: u64,
    pub(super) removed: u64,
    pub(super) rejected: u64,
}

/// A commit that has ended.
pub(super) struct Finished {
    pub(super) committed: Committed,
    pub(super) epochs: HashMap<TopicPartition, Epoch>,
    pub(super) counts: HashMap<TopicPartition, Counts>,
}

/// Writes batches for one job.
pub(super) struct Committer {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) rows: RowWriter,
    pub(super) retry: retry::Options,
}

impl Committer {
    pub(super) async fn commit(
        self: Arc<Self>,
        releases: Vec<Release<Entry>>,
        marks: HashMap<TopicPartition, RejectionMark>,
    ) -> Result<Finished, SinkError> {
        let epochs = releases.iter().map(|release| (release.partition.clone(), release.epoch)).collect();
        let committer = self.clone();
        let building = tokio::task::spawn_blocking(move || committer.build(releases, &marks));
        let (batch, counts, permits) = building.await.map_err(|error| SinkError::Encoding {
            column: "(any)".to_owned(),
            detail: format!("building rows panicked: {error}"),
        })?;
        let committed = self.write(&batch).await?;
        drop(permits);
        Ok(Finished { committed, epochs, counts })
    }

    async fn write(&self, batch: &Batch) -> Result<Committed, SinkError> {
        let mut backoff = Backoff::new(self.retry);
        loop {
            match self.sink.commit(batch).await {
                Err(error) if error.blame() == Blame::World => {
                    let attempts = backoff.attempts() + 1;
                    tracing::warn!(job = self.rows.job, %error, attempts, "commit will be tried again");
                    backoff.wait(None).await;
                }
                result => return result,
            }
        }
    }

    fn build(
        &self,
        releases: Vec<Release<Entry>>,
        marks: &HashMap<TopicPartition, RejectionMark>,
    ) -> (Batch, HashMap<TopicPartition, Counts>, Vec<Held>) {
        let mut batch = Batch::default();
        let mut counts = HashMap::new();
        let mut permits = Vec::new();
        for release in releases {
            let partition = release.partition;
            let counts: &mut Counts = counts.entry(partition.clone()).or_default();
            for (offset, entry) in release.entries {
                let Entry::Outcome { record, outcome, held } = entry else { continue };
                permits.extend(held);
                match outcome {
                    Outcome::Annotated(annotation) => {
                        counts.annotated += 1;
                        batch.results.push(self.rows.annotated(&record, annotation));
                    }
                    Outcome::Removed { asset_id } => {
                        counts.removed += 1;
                        batch.results.push(self.rows.removed(&record, asset_id));
                    }
                    Outcome::Rejected(rejection) => {
                        counts.rejected += 1;
                        batch.rejections.push((partition.clone(), offset, self.rows.rejected(&record, rejection)));
                    }
                }
            }
            let rejections = marks.get(&partition).copied().unwrap_or_default();
            batch.ranges.push(Range { partition, from: release.from, to: release.to, rejections });
        }
        (batch, counts, permits)
    }
}
