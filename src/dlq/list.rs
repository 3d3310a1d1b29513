//! `assay dlq list` and `assay dlq show`: dead letters for people and scripts, on standard output.
//!
//! Changes nothing.

use std::io::{BufWriter, ErrorKind, Write};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use serde_json::{Map, Value as Json, json};

use super::letters::{Selection, history};
use super::tables;
use crate::config::Config;
use crate::domain::{Row, Value};
use crate::query::{Format, QueryError, QuerySession, rows, write};

/// Longest detail in a list; `show` has the whole.
const SHORT_DETAIL: usize = 60;

/// Prints the letters of each job that are meant, oldest first.
pub async fn list(
    config: &Config,
    jobs: &[String],
    selection: &Selection,
    format: Format,
    limit: Option<usize>,
) -> Result<()> {
    let columns = format!(
        "letter, job, asset_id, stage, reason, blame, attempt, cured, processed_time, left(detail, {SHORT_DETAIL}) AS detail"
    );
    let sql = selection.sql(&columns, limit);
    for job in tables::jobs(config, jobs)? {
        let session = tables::open(config, &job).await?;
        let answer = match session.run(&sql).await {
            Err(error @ QueryError::NothingWritten { .. }) => {
                eprintln!("assay: {error}");
                continue;
            }
            answer => answer?,
        };
        match write(answer, format, &mut BufWriter::new(std::io::stdout())).await {
            Err(QueryError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            result => result.map(drop)?,
        }
    }
    Ok(())
}

/// Prints everything about one letter as JSON: each attempt, and the message itself.
pub async fn show(config: &Config, jobs: &[String], letter: &str) -> Result<()> {
    for job in tables::jobs(config, jobs)? {
        let session = tables::open(config, &job).await?;
        let attempts = attempts(&session, letter).await?;
        if !attempts.is_empty() {
            let text = serde_json::to_string_pretty(&attempts).context("rows are JSON")?;
            return Ok(writeln!(std::io::stdout(), "{text}")?);
        }
    }
    bail!("no job has a letter {letter:?}; `assay dlq list` names them as topic/partition/offset")
}

async fn attempts(session: &QuerySession, letter: &str) -> Result<Vec<Json>> {
    const COLUMNS: [&str; 16] = [
        "letter",
        "attempt",
        "cured",
        "job",
        "topic",
        "partition",
        "offset",
        "key",
        "asset_id",
        "stage",
        "reason",
        "blame",
        "attempts",
        "detail",
        "headers",
        "raw",
    ];
    let columns = COLUMNS.map(|column| format!("\"{column}\"")).join(", ");
    let answer = match session.run(&history(letter, &columns)).await {
        Err(QueryError::NothingWritten { .. }) => return Ok(Vec::new()),
        answer => answer?,
    };
    let batches: Vec<Vec<Row>> = rows(answer).try_collect().await?;
    let object = |row: Row| COLUMNS.iter().map(|name| (*name).to_owned()).zip(row.into_iter().map(in_json)).collect();
    Ok(batches.into_iter().flatten().map(|row| Json::Object(object(row))).collect())
}

/// Bytes are a JSON value if they hold one, else text, else hexadecimal digits.
fn in_json(value: Value) -> Json {
    match value {
        Value::Integer(number) => number.into(),
        Value::Text(text) => text.into(),
        Value::Map(entries) => {
            entries.into_iter().map(|(name, text)| (name, text.into())).collect::<Map<String, Json>>().into()
        }
        Value::Bytes(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|_| match String::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(error) => {
                let digits: String = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                json!({ "hexadecimal": digits })
            }
        }),
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_shown_as_what_it_is() {
        assert_eq!(in_json(Value::Bytes(b"{\"id\":1}".to_vec())), json!({ "id": 1 }));
        assert_eq!(in_json(Value::Bytes(b"{not json".to_vec())), json!("{not json"));
        assert_eq!(in_json(Value::Bytes(vec![0xff, 0])), json!({ "hexadecimal": "ff00" }));
        assert_eq!(in_json(Value::Map(vec![("k".into(), None)])), json!({ "k": null }));
    }
}
