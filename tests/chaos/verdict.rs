//! Compares the tables with the topic: every record has one outcome, the right one, and the log goes forward only.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};

use crate::services::kafka::Stored;
use crate::stage::tables::Warehouse;
use crate::stage::worker::{JOB, pictured, product};

/// What a message is to become.
pub const OUTCOMES: [&str; 3] = ["annotated", "schema_violation", "media_not_found"];

/// The message of a number; some are bad, some have pictures, one kind asks for a picture that is not there.
pub fn message(number: i64) -> Value {
    let id = format!("a{number}");
    match number % 8 {
        3 => json!({ "id": id, "title": 7, "event_time": "2026-01-02T03:04:05Z" }),
        5 => pictured(&id, "s3://assay/media/missing.png"),
        6 => pictured(&id, "s3://assay/media/red.png"),
        _ => product(&id),
    }
}

fn outcome(key: &str) -> &'static str {
    let number: i64 = key.trim_start_matches('a').parse().expect("keys are numbers");
    match number % 8 {
        3 => OUTCOMES[1],
        5 => OUTCOMES[2],
        _ => OUTCOMES[0],
    }
}

/// What is wrong with the tables; nothing is what they should be.
#[derive(Debug, Default)]
pub struct Verdict {
    pub rows: usize,
    pub lost: usize,
    pub doubled: usize,
    pub wrong: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.wrong.is_empty()
    }
}

/// Compares all rows of the tables with all records of the topic.
pub async fn judge(tables: &Warehouse, topic: &[Stored]) -> Verdict {
    let sql = "SELECT partition, \"offset\", asset_id, 'annotated' FROM results \
               UNION ALL SELECT partition, \"offset\", asset_id, reason FROM rejections";
    let rows = tables.ask(JOB, sql).await;
    let mut verdict = Verdict { rows: rows.len(), ..Verdict::default() };
    let mut found: BTreeMap<(i32, i64), Vec<(String, String)>> = BTreeMap::new();
    for row in rows {
        let [partition, offset, asset, outcome] = <[String; 4]>::try_from(row).expect("four columns");
        let place = (partition.parse().expect("a number"), offset.parse().expect("a number"));
        found.entry(place).or_default().push((asset, outcome));
    }
    for record in topic {
        let key = record.key.as_deref().expect("every record has a key");
        let rows = found.remove(&(record.partition, record.offset)).unwrap_or_default();
        verdict.lost += usize::from(rows.is_empty());
        verdict.doubled += rows.len().saturating_sub(1);
        if rows.iter().any(|row| row.0 != key || row.1 != outcome(key)) {
            verdict.wrong.push(format!("{}/{} {key}: {rows:?}", record.partition, record.offset));
        }
    }
    verdict.wrong.extend(found.iter().map(|(place, rows)| format!("no record at {place:?}: {rows:?}")));
    verdict.wrong.extend(steps_back(tables).await);
    verdict
}

/// Commits of either table that did not move a partition forward.
async fn steps_back(tables: &Warehouse) -> Vec<String> {
    let mut builder = AmazonS3Builder::new().with_url(&tables.url);
    for (key, value) in &tables.options {
        builder = builder.with_config(key.parse::<AmazonS3ConfigKey>().expect("a key of S3"), value);
    }
    let store = builder.build().expect("a store");
    let (_, folder) = tables.url.split_once("://assay/").expect("a folder of the bucket");
    let mut found = Vec::new();
    for table in ["results", "rejections"] {
        let log = Path::from(format!("{folder}/{JOB}/{table}/_delta_log"));
        let mut entries: Vec<_> = store.list(Some(&log)).try_collect().await.expect("the log is listed");
        entries.retain(|entry| entry.location.as_ref().ends_with(".json"));
        entries.sort_by(|a, b| a.location.cmp(&b.location));
        let mut positions: BTreeMap<String, i64> = BTreeMap::new();
        for entry in entries {
            let bytes = store.get(&entry.location).await.expect("an entry").bytes().await.expect("its bytes");
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line: Value = serde_json::from_slice(line).expect("the log is JSON");
                let Some(transaction) = line.get("txn") else { continue };
                let id = transaction["appId"].as_str().expect("an id").to_owned();
                let version = transaction["version"].as_i64().expect("a version");
                if positions.insert(id.clone(), version).is_some_and(|before| before >= version) {
                    found.push(format!("{}: {id} goes to {version}", entry.location));
                }
            }
        }
    }
    found
}
