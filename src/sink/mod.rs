//! The tables of a job: rows become durable together with the offsets they came from.

mod api;

pub use api::{Batch, Committed, Range, RejectionMark, Resume, Sink, SinkError};
