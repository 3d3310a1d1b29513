//! The boundary of the source: records come in order per partition, assignments come and go.
//!
//! A source never interprets a payload and knows nothing of tables. Two streams leave it: [`Flow`] carries what
//! happened inside partitions, in order; [`Rebalance`] carries changes of the assignment and must be answered.
//! Invariant: between an `Assigned` and its answer no record of that epoch is delivered, and after a `Revoked` has
//! been answered none of the older epoch is delivered any more.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::domain::{Blame, Epoch, Origin, TopicPartition};

/// One record as it was read.
#[derive(Debug, Clone)]
pub struct Record {
    pub origin: Origin,
    pub epoch: Epoch,
    /// None for a tombstone.
    pub payload: Option<Arc<[u8]>>,
}

/// What happens inside the assigned partitions; in offset order within each partition.
#[derive(Debug)]
pub enum Flow {
    Record(Record),
    /// All records before `next` have been delivered, and none is there yet at or after it. `next` may lie behind the
    /// last record by more than one where transaction markers or compaction left gaps.
    EndReached {
        partition: TopicPartition,
        epoch: Epoch,
        next: i64,
    },
}

/// A change of the assignment. The source waits for the answer; answer soon.
#[derive(Debug)]
pub enum Rebalance {
    /// The partitions are ours from now on. The answer gives, for each, the offset to start from; a partition that is
    /// missing in the answer starts at its earliest record.
    Assigned { partitions: Vec<TopicPartition>, epoch: Epoch, resume: oneshot::Sender<Vec<(TopicPartition, i64)>> },
    /// The partitions are no longer ours once this is answered. Answer when no commit in flight holds them.
    Revoked { partitions: Vec<TopicPartition>, done: oneshot::Sender<()> },
}

/// One member of a consumer group, as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The broker's name for it.
    pub id: String,
    pub host: String,
    /// What it is assigned, in order.
    pub partitions: Vec<TopicPartition>,
}

/// Both streams of a started source. Each ends when the source has ended.
#[derive(Debug)]
pub struct Streams {
    pub flow: mpsc::Receiver<Flow>,
    pub rebalances: mpsc::Receiver<Rebalance>,
    /// The reason, when the source ended by itself.
    pub failure: oneshot::Receiver<SourceError>,
}

/// An unbounded, partitioned stream of records with positions that can be committed.
#[async_trait]
pub trait Source: Send + Sync {
    /// Joins and starts to deliver. May be called once.
    fn start(&self) -> Result<Streams, SourceError>;

    /// Stops (`false`) or resumes (`true`) the delivery of records. Liveness towards the broker goes on.
    fn set_flowing(&self, flowing: bool);

    /// Gives the partitions a new epoch: they are announced as `Assigned` again and start from the answer. Partitions
    /// that are no longer ours are passed over.
    fn reassign(&self, partitions: Vec<TopicPartition>);

    /// Whether this worker belongs to its group now, be it without a partition. A source without groups always does.
    fn is_member(&self) -> bool {
        true
    }

    /// Tells the broker how far each partition is done: the next offset to be read. Advice only; the tables know better.
    async fn commit(&self, positions: Vec<(TopicPartition, i64)>) -> Result<(), SourceError>;

    /// For every partition of the topics, whether assigned or not: the offset that the next record would get; 0 for one that
    /// holds no record.
    async fn ends(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError>;

    /// What was last told by `commit`, by any member of the group, for every partition of the topics.
    async fn committed(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError>;

    /// Who belongs to the group now. A source without groups has no members.
    async fn members(&self) -> Result<Vec<GroupMember>, SourceError> {
        Ok(Vec::new())
    }

    /// Leaves the group (which revokes what is assigned) and ends both streams.
    async fn close(&self);
}

/// Why the source could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The settings cannot work; trying again will not help.
    #[error("source is not configured correctly: {detail}")]
    Configuration { detail: String },
    /// The topic does not exist, or the user may not read it.
    #[error("topic {topic:?} cannot be read: {detail}")]
    Topic { topic: String, detail: String },
    /// A file of the replay source is not what it should be.
    #[error("{file}, line {line}: {detail}")]
    Replay { file: String, line: u64, detail: String },
    /// The broker is unreachable or refuses for now.
    #[error("Kafka: {detail}")]
    Unavailable { detail: String },
    /// The source has been closed.
    #[error("the source is closed")]
    Closed,
}

impl SourceError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unavailable { .. } => Blame::World,
            Self::Configuration { .. } | Self::Topic { .. } | Self::Replay { .. } | Self::Closed => Blame::Us,
        }
    }
}
