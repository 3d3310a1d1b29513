//! What a job has answered, read from its tables: the last row of each asset, and which assets have none and why.
//!
//! It knows SQL and output schemas, no labels. Invariant: an answer counts as valid only if it satisfies the job's output
//! schema; columns that are null because the answer left them out do not count against it.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use jsonschema::Validator;
use serde_json::Value;

use crate::job::Annotate;
use crate::query::{Object, QueryError, QuerySession, objects};

/// The row of an asset.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// The annotation columns.
    pub fields: Object,
    /// Whether they satisfy the output schema.
    pub is_valid: bool,
    pub cost: Cost,
    pub job_fingerprint: String,
    /// Name of each model to the fingerprint of its files.
    pub models: BTreeMap<String, String>,
}

/// What one answer has cost; none where the row does not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cost {
    pub prompt_tokens: Option<f64>,
    pub completion_tokens: Option<f64>,
    pub device_seconds: Option<f64>,
    /// From the record's time to that of the row.
    pub latency_seconds: Option<f64>,
    pub finish_reason: Option<String>,
}

/// All that a job's tables say about its assets, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    pub rows: HashMap<String, Answer>,
    /// Reason of the last rejection, also of assets that have a row.
    pub rejected: HashMap<String, String>,
    /// Assets with a tombstone, also those that came again.
    pub removed: HashSet<String>,
}

/// A name that no annotation column can have.
const LATENCY: &str = "latency micros";

const REJECTED: &str =
    "SELECT asset_id, reason FROM rejections WHERE asset_id IS NOT NULL ORDER BY processed_time, \"offset\"";
const REMOVED: &str = "SELECT DISTINCT asset_id FROM results WHERE deleted";

/// Reads the tables of the session's default job.
pub(super) async fn read(session: &QuerySession, annotate: &Annotate) -> Result<Answers> {
    let validator = jsonschema::validator_for(&annotate.output)
        .with_context(|| format!("{} is no schema", annotate.output_file.display()))?;
    let mut rows = HashMap::new();
    for mut row in objects(session.run(&latest(annotate)).await?).await? {
        if let Some(id) = text(&mut row, "asset_id") {
            rows.insert(id, answer(row, annotate, &validator));
        }
    }
    let removed = objects(session.run(REMOVED).await?).await?;
    let rejected = match session.run(REJECTED).await {
        Err(QueryError::NothingWritten { .. }) => Vec::new(),
        answer => objects(answer?).await?,
    };
    Ok(Answers {
        rows,
        rejected: rejected
            .into_iter()
            .filter_map(|mut row| Some((text(&mut row, "asset_id")?, text(&mut row, "reason")?)))
            .collect(),
        removed: removed.into_iter().filter_map(|mut row| text(&mut row, "asset_id")).collect(),
    })
}

fn latest(annotate: &Annotate) -> String {
    let columns: String = annotate.columns.iter().map(|column| format!("\"{}\", ", column.name)).collect();
    format!(
        "SELECT {columns}asset_id, job_fingerprint, models, prompt_tokens, completion_tokens, device_seconds, finish_reason, \
         CAST(processed_time AS BIGINT) - CAST(message_time AS BIGINT) AS \"{LATENCY}\" FROM latest"
    )
}

fn answer(mut row: Object, annotate: &Annotate, validator: &Validator) -> Answer {
    let number = |value: Option<Value>| value.as_ref().and_then(Value::as_f64);
    let cost = Cost {
        prompt_tokens: number(row.remove("prompt_tokens")),
        completion_tokens: number(row.remove("completion_tokens")),
        device_seconds: number(row.remove("device_seconds")),
        latency_seconds: number(row.remove(LATENCY)).map(|micros| micros / 1e6),
        finish_reason: text(&mut row, "finish_reason"),
    };
    let job_fingerprint = text(&mut row, "job_fingerprint").unwrap_or_default();
    let models = match row.remove("models") {
        Some(Value::Object(models)) => {
            models.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect()
        }
        _ => BTreeMap::new(),
    };
    let is_valid = validator.is_valid(&as_answered(&annotate.output, &Value::Object(row.clone())));
    Answer { fields: row, is_valid, cost, job_fingerprint, models }
}

fn text(row: &mut Object, column: &str) -> Option<String> {
    match row.remove(column) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A value without the nulls that stand for properties that were left out: a table has null for both.
fn as_answered(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let given = members.iter().filter(|(name, value)| !value.is_null() || required.contains(&name.as_str()));
            given.map(|(name, value)| (name.clone(), as_answered(&schema["properties"][name], value))).collect()
        }
        Value::Array(items) => items.iter().map(|item| as_answered(&schema["items"], item)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_null_is_left_out_where_the_schema_allows_leaving_out() {
        let maker = json!({"type": "object", "properties": {"name": {"type": "string"}, "town": {"type": "string"}}});
        let schema = json!({
            "type": "object", "required": ["brand"],
            "properties": {"brand": {"type": ["string", "null"]}, "size": {"type": "string"},
                           "makers": {"type": "array", "items": maker}}
        });
        let row = json!({"brand": null, "size": null, "makers": [{"name": "x", "town": null}]});
        let answered = as_answered(&schema, &row);
        assert_eq!(answered, json!({"brand": null, "makers": [{"name": "x"}]}));
        assert!(jsonschema::is_valid(&schema, &answered) && !jsonschema::is_valid(&schema, &row));
    }
}
