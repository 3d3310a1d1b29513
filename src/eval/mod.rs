//! `assay eval`: how right the answers of a job are, held against labels, and what they cost.
//!
//! This room knows labels, the tables through the query room, and the metrics of the public benchmark (MLPerf Inference,
//! `qwen3-vl`). It runs no model and writes no table.

mod answers;
mod arguments;
mod changes;
mod judge;
mod labels;
mod metrics;
mod report;
mod statistics;
mod table;

pub use arguments::{EvalArgs, run};
pub use metrics::{BinaryCount, PathCount, PathScore, brands_match};
