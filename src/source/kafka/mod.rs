//! The Kafka source: one consumer-group member per topic, its fences, and what submits records and plays the broker.
//!
//! Read `consumer` (the polling thread), then `rebalance` (the fence), then `member` (what both share).

mod broker;
mod consumer;
mod decode;
mod inspect;
mod member;
mod options;
mod rebalance;
mod submit;

#[cfg(test)]
mod tests;

pub use broker::EmbeddedBroker;
pub use consumer::KafkaSource;
pub use options::KafkaOptions;
pub use submit::{SubmitError, Submitter};
