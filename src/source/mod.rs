//! Where records come from: a Kafka consumer group, or JSON-lines files with the same meaning of partition and offset.

mod api;

pub use api::{Flow, Rebalance, Record, Source, SourceError, Streams};
