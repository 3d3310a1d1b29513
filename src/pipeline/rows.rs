//! From an outcome and its record to a row of the results or the rejections table.
//!
//! The order of values here is the order of columns in `job::results_schema` and `job::rejections_schema`; a test holds
//! the two together.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::{Annotation, AssetKind, Origin, Rejection, Row, Value};
use crate::source::Record;

/// What is the same in every row of a run.
#[derive(Debug, Clone)]
pub(super) struct RowWriter {
    pub(super) job: String,
    pub(super) job_fingerprint: String,
    pub(super) kind: AssetKind,
    /// Model name to fingerprint.
    pub(super) models: Vec<(String, String)>,
    /// How many annotation and embedding columns the job has.
    pub(super) value_columns: usize,
}

impl RowWriter {
    pub(super) fn annotated(&self, record: &Record, annotation: Annotation) -> Row {
        let mut row = self.opening(&record.origin, Value::Text(annotation.asset_id), Some(annotation.event_time));
        row.push(Value::Boolean(false));
        row.push(Value::List(annotation.media_hashes.into_iter().map(Value::Text).collect()));
        row.extend(annotation.values);
        row.push(Value::Integer(annotation.prompt_tokens.into()));
        row.push(Value::Integer(annotation.completion_tokens.into()));
        row.push(Value::Float(annotation.device_seconds));
        row.push(Value::Text(annotation.finish_reason.to_owned()));
        row
    }

    /// A tombstone: its time is the record's, and everything that inference would say is null.
    pub(super) fn removed(&self, record: &Record, asset_id: String) -> Row {
        let mut row = self.opening(&record.origin, Value::Text(asset_id), record.origin.message_time);
        row.push(Value::Boolean(true));
        row.extend(std::iter::repeat_n(Value::Null, 1 + self.value_columns + 4));
        row
    }

    fn opening(&self, origin: &Origin, asset_id: Value, event_time: Option<i64>) -> Row {
        let mut row = Vec::with_capacity(18 + self.value_columns);
        row.push(asset_id);
        row.extend(self.place(origin));
        row.push(Value::integer(origin.message_time));
        row.push(Value::integer(event_time));
        row.extend(self.run(origin));
        row
    }

    pub(super) fn rejected(&self, record: &Record, rejection: Rejection) -> Row {
        let origin = &record.origin;
        let mut row = Vec::with_capacity(19);
        row.push(Value::text(rejection.asset_id.or_else(|| origin.key.clone())));
        row.extend(self.place(origin));
        row.push(Value::text(origin.key.clone()));
        row.push(Value::integer(origin.message_time));
        row.extend(self.run(origin));
        row.push(Value::Text(rejection.stage.as_str().to_owned()));
        row.push(Value::Text(rejection.reason.to_owned()));
        row.push(Value::Text(rejection.detail));
        row.push(Value::Text(rejection.blame.as_str().to_owned()));
        row.push(Value::Integer(rejection.attempts.into()));
        row.push(record.payload.as_ref().map_or(Value::Null, |payload| Value::Bytes(payload.to_vec())));
        row
    }

    /// kind, topic, partition, offset
    fn place(&self, origin: &Origin) -> [Value; 4] {
        [
            Value::Text(self.kind.as_str().to_owned()),
            Value::Text(origin.partition.topic.to_string()),
            Value::Integer(origin.partition.partition.into()),
            Value::Integer(origin.offset),
        ]
    }

    /// processed_time, headers, job, job_fingerprint, models
    fn run(&self, origin: &Origin) -> [Value; 5] {
        let models = self.models.iter().map(|(name, fingerprint)| (name.clone(), Some(fingerprint.clone()))).collect();
        [
            Value::Integer(now_micros()),
            Value::Map(origin.headers.clone()),
            Value::Text(self.job.clone()),
            Value::Text(self.job_fingerprint.clone()),
            Value::Map(models),
        ]
    }
}

fn now_micros() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}
