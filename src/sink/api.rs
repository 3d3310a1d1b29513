//! The boundary of the sink: rows and the offsets they came from become durable together, or not at all.
//!
//! The sink knows tables, columns and ranges of offsets; it does not know what a job or an asset is.
//! Invariant: a range is written only when the table's log ends exactly where the range begins (compare-and-set).

use async_trait::async_trait;

use crate::domain::{Blame, Row, TopicPartition};

/// The offsets of one partition that a commit covers: `(from, to]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub partition: TopicPartition,
    /// The last offset committed before this range; none when nothing was.
    pub from: Option<i64>,
    /// The last offset of this range.
    pub to: i64,
    /// What [`Resume::rejections`] said, or the last commit's answer.
    pub rejections: RejectionMark,
}

/// Where the rejections table stands for one partition. It is written before the results table, so it may be ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RejectionMark {
    /// Counts the commits that wrote rejections of this partition: the second half of its compare-and-set.
    pub commits: i64,
    /// The offset of the last rejection written.
    pub last_offset: Option<i64>,
}

/// A contiguous prefix of each of several partitions.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub ranges: Vec<Range>,
    /// Rows of the results table; each belongs to one of the ranges.
    pub results: Vec<Row>,
    /// Rows of the rejections table with partition and offset; each belongs to one of the ranges.
    pub rejections: Vec<(TopicPartition, i64, Row)>,
}

/// Where to go on with a partition, as the tables' logs say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    pub partition: TopicPartition,
    /// The last offset that the results table contains; reading goes on behind it.
    pub committed: Option<i64>,
    pub rejections: RejectionMark,
    /// Offsets behind `committed` whose rejection is already written (a worker died between the two tables). They must be
    /// passed over without doing the work again.
    pub already_rejected: Vec<i64>,
}

/// What a commit did, partition by partition.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// Ranges that are durable, with the mark for the next commit.
    pub done: Vec<(TopicPartition, RejectionMark)>,
    /// Partitions whose log does not end where the range begins: another worker owns them now. Nothing of them was written.
    pub fenced: Vec<TopicPartition>,
    /// Version of the results table after the commit; none when everything was fenced.
    pub version: Option<u64>,
}

/// The tables of one job.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Creates missing tables and adds missing columns. Called once before anything else.
    async fn open(&self) -> Result<(), SinkError>;

    /// Takes the partitions over from whoever had them, and reads from the logs where each of them stands.
    async fn resume(&self, partitions: &[TopicPartition]) -> Result<Vec<Resume>, SinkError>;

    /// Reads where each partition ends in the results table, in the order asked for, and takes nothing over.
    async fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, SinkError>;

    /// Makes the batch durable. Retries conflicts with other partitions' writers itself.
    /// On an error with [`Blame::World`] the same batch may be given again: what is already written is recognised.
    async fn commit(&self, batch: &Batch) -> Result<Committed, SinkError>;
}

/// Why the tables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("table {table}: {detail}")]
    Configuration { table: String, detail: String },
    #[error("table {table} cannot be reached for now: {detail}")]
    Unavailable { table: String, detail: String },
    /// The table holds something that this version cannot continue, for example a column of another type.
    #[error("table {table} does not fit: {detail}")]
    Incompatible { table: String, detail: String },
    #[error("row does not fit column {column}: {detail}")]
    Encoding { column: String, detail: String },
}

impl SinkError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unavailable { .. } => Blame::World,
            Self::Configuration { .. } | Self::Incompatible { .. } | Self::Encoding { .. } => Blame::Us,
        }
    }
}
