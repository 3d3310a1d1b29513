//! The Kafka source: one consumer-group member per topic, its fences, and what submits records and plays the broker.
//!
//! Read `consumer` (the source), then `polling` (its threads), then `rebalance` (the fence).

mod broker;
mod consumer;
mod decode;
mod inspect;
mod member;
mod options;
mod polling;
mod rebalance;
mod submit;

#[cfg(test)]
mod tests;

pub use broker::EmbeddedBroker;
pub use consumer::KafkaSource;
pub use options::KafkaOptions;
pub use submit::{SubmitError, Submitter};
