//! Where records come from: a Kafka consumer group, or JSON-lines files with the same meaning of partition and offset.

mod api;
mod kafka;
mod lines;
mod replay;

pub use api::{Flow, GroupMember, Rebalance, Record, Source, SourceError, Streams};
pub use kafka::{EmbeddedBroker, KafkaOptions, KafkaSource, SubmitError, Submitter};
pub use replay::{ReplayOptions, ReplaySource};
