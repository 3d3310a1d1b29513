//! The tables of a job: rows become durable together with the offsets they came from.

mod api;
mod delta;
mod encode;
mod options;

pub use api::{Batch, Committed, Range, RejectionMark, Resume, Sink, SinkError};
pub use delta::{DeltaSink, TableHead, TableUpkeep, UpkeepReport, register_stores, results_head, upkeep};
pub use options::{CommitOptions, Options, UpkeepOptions};
