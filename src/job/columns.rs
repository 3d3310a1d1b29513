//! The columns that a results table has whatever its job: where a row came from, and what it has cost.
//!
//! It knows no job; the job's own columns stand between the two groups.

use crate::domain::{Column, ColumnType};

/// The columns that every results table has, whatever the job.
pub(super) fn fixed_result_columns() -> Vec<Column> {
    let mut columns = origin_of_results();
    columns.extend(cost_of_results());
    columns
}

/// Where a row came from.
pub(super) fn origin_of_results() -> Vec<Column> {
    vec![
        Column::required("asset_id", ColumnType::Text),
        Column::required("kind", ColumnType::Text),
        Column::required("topic", ColumnType::Text),
        Column::required("partition", ColumnType::Int32),
        Column::required("offset", ColumnType::Int64),
        Column::optional("message_time", ColumnType::Timestamp),
        Column::optional("event_time", ColumnType::Timestamp),
        Column::required("processed_time", ColumnType::Timestamp),
        Column::optional("headers", ColumnType::Map),
        Column::required("job", ColumnType::Text),
        Column::required("job_fingerprint", ColumnType::Text),
        Column::optional("models", ColumnType::Map),
        Column::required("deleted", ColumnType::Boolean),
        Column::optional("media_hashes", ColumnType::List(Box::new(ColumnType::Text))),
    ]
}

/// What a row has cost.
pub(super) fn cost_of_results() -> Vec<Column> {
    vec![
        Column::optional("prompt_tokens", ColumnType::Int32),
        Column::optional("completion_tokens", ColumnType::Int32),
        Column::optional("device_seconds", ColumnType::Float64),
        Column::optional("finish_reason", ColumnType::Text),
    ]
}
