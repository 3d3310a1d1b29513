//! Where an asset came from: topic, partition, offset, and the assignment under which it was read.
//!
//! An [`Origin`] identifies one record of one topic for ever; an [`Epoch`] identifies one assignment of a
//! partition to this process. Outcomes of an older epoch are never written.

use std::fmt;
use std::sync::Arc;

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Counts the assignments of partitions to this process; rises with every assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The lineage of one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    pub partition: TopicPartition,
    pub offset: i64,
    /// The record key, decoded as UTF-8 with replacement; none when the record has no key.
    pub key: Option<String>,
    /// The broker's or producer's record time, in microseconds since the Unix epoch (UTC).
    pub message_time: Option<i64>,
    /// In record order; values decoded as UTF-8 with replacement, none for a null value.
    pub headers: Vec<(String, Option<String>)>,
}
