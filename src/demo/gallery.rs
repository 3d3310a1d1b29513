//! gallery.html: what became of each asset of a demo, on one page that needs nothing else.
//!
//! It reads the folder that a demo leaves, its tables by SQL like anybody else, and computes neighbours. It draws and decodes
//! nothing. Invariant: what assets say goes into the page as data, never as markup.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::query::{Object, QueryError, QuerySession, objects};

use super::files::{PARTITIONS, TOPICS};

/// The jobs of a demo.
const JOBS: [&str; 2] = ["product-annotation", "ad-annotation"];

const PAGE: &str = include_str!("gallery.html");
/// Where the data go in the page.
const PLACE: &str = "/*DATA*/";
/// Neighbours shown of each asset.
const NEIGHBOURS: usize = 4;

/// The texts of a message that are shown, by their field and their label.
const TEXTS: [(&str, &str); 8] = [
    ("title", "Title"),
    ("description", "Description"),
    ("attributes", "Attributes"),
    ("candidate_categories", "Candidate categories"),
    ("headline", "Headline"),
    ("body", "Body"),
    ("call_to_action", "Call to action"),
    ("landing_page", "Landing page"),
];

/// What the page says of the run itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct About {
    pub seed: u64,
    pub seconds: f64,
}

/// Writes the page of a demo folder.
///
/// # Errors
/// Files of the folder that cannot be read, tables that cannot be asked.
pub(super) async fn write(session: &QuerySession, dir: &Path, about: About) -> Result<()> {
    let messages = messages(dir)?;
    let truths = truths(dir)?;
    let mut rows = Vec::new();
    let mut rejections = Vec::new();
    for job in JOBS {
        let schema = job.replace('-', "_");
        let latest = format!("SELECT * FROM {schema}.latest ORDER BY asset_id");
        rows.extend(objects(session.run(&latest).await?).await?);
        let rejected = format!("SELECT asset_id, \"key\", kind, stage, reason, detail FROM {schema}.rejections");
        match session.run(&rejected).await {
            // A job that has rejected nothing has no such table.
            Err(QueryError::NothingWritten { .. }) => {}
            answer => rejections.extend(objects(answer?).await?),
        }
    }
    let embeddings: Vec<Vec<f32>> = rows.iter().map(|row| unit(&row["embedding"])).collect();
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["asset_id"].as_str()).collect();
    let assets: Vec<Value> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| asset(row, &messages, &truths, nearest(index, &embeddings, &ids), dir))
        .collect::<Result<_>>()?;
    let data = json!({
        "title": "Assay demo",
        "model": "models/demo",
        "seed": about.seed,
        "seconds": (about.seconds * 10.0).round() / 10.0,
        "assets": assets,
        "rejections": rejections.into_iter().map(rejection).collect::<Vec<_>>(),
    });
    let path = dir.join("gallery.html");
    fs::write(&path, page(&data)).with_context(|| path.display().to_string())
}

/// The page with its data. Nothing in them can end the element that holds them.
fn page(data: &Value) -> String {
    PAGE.replacen(PLACE, &data.to_string().replace('<', "\\u003c"), 1)
}

fn asset(
    row: &Object,
    messages: &HashMap<String, Value>,
    truths: &HashMap<String, Object>,
    neighbours: Vec<(String, f32)>,
    dir: &Path,
) -> Result<Value> {
    let id = row["asset_id"].as_str().unwrap_or_default();
    let message = messages.get(id).unwrap_or(&Value::Null);
    let fixed = ["embedding", "prompt_tokens", "completion_tokens", "device_seconds", "finish_reason"];
    let start = row.keys().position(|name| name == "media_hashes").map_or(0, |at| at + 1);
    let annotation: Object = row
        .iter()
        .skip(start)
        .filter(|(name, _)| !fixed.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut truth = Map::new();
    if let Some(known) = truths.get(id) {
        let shared = annotation.keys().filter_map(|name| Some((name.clone(), known.get(name)?.clone())));
        truth.extend(shared);
    }
    Ok(json!({
        "id": id,
        "kind": row["kind"],
        "picture": picture(message, dir)?,
        "texts": TEXTS.iter().filter_map(|(field, label)| Some(json!([label, text(&message[*field])?]))).collect::<Vec<_>>(),
        "annotation": annotation,
        "truth": truth,
        "finish_reason": row["finish_reason"],
        "tokens": { "prompt": row["prompt_tokens"], "answer": row["completion_tokens"] },
        "neighbours": neighbours,
    }))
}

fn rejection(row: Object) -> Value {
    let id = [&row["asset_id"], &row["key"]].into_iter().find(|id| id.is_string()).cloned();
    json!({
        "id": id.unwrap_or_else(|| "without a key".into()),
        "kind": row["kind"],
        "stage": row["stage"],
        "reason": row["reason"],
        "detail": row["detail"],
        "picture": null,
    })
}

/// A field as one line; none when there is nothing in it.
fn text(value: &Value) -> Option<String> {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = match value {
        Value::Null => return None,
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}: {}", plain(value))).collect::<Vec<_>>().join("; ")
        }
        other => plain(other),
    };
    (!text.is_empty()).then_some(text)
}

/// The main picture as a data URL. The demo's own pictures are small JPEG files.
fn picture(message: &Value, dir: &Path) -> Result<Option<String>> {
    let Some(url) = message["media"][0]["url"].as_str() else { return Ok(None) };
    let Some(name) = url.rsplit('/').next().filter(|name| name.ends_with(".jpg")) else { return Ok(None) };
    let path = dir.join("media").join(name);
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes))))
}

/// The message that counts of each asset: the one of the latest event.
fn messages(dir: &Path) -> Result<HashMap<String, Value>> {
    let mut messages: HashMap<String, Value> = HashMap::new();
    for topic in TOPICS {
        for partition in 0..PARTITIONS {
            for mut record in lines(&dir.join(format!("topics/{topic}/{partition}.jsonl")))? {
                let (Some(Value::String(key)), Some(value)) = (record.remove("key"), record.remove("value")) else {
                    continue;
                };
                let is_newer = |known: &Value| known["event_time"].as_str() <= value["event_time"].as_str();
                if messages.get(&key).is_none_or(is_newer) {
                    messages.insert(key, value);
                }
            }
        }
    }
    Ok(messages)
}

fn truths(dir: &Path) -> Result<HashMap<String, Object>> {
    let lines = lines(&dir.join("labels.jsonl"))?;
    Ok(lines.into_iter().filter_map(|truth| Some((truth["id"].as_str()?.to_owned(), truth))).collect())
}

fn lines(path: &Path) -> Result<Vec<Object>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    BufReader::new(file).lines().map(|line| serde_json::from_str(&line?).with_context(name)).collect()
}

/// An embedding at length one; empty where there is none.
fn unit(value: &Value) -> Vec<f32> {
    let values: Vec<f32> =
        value.as_array().into_iter().flatten().map(|value| value.as_f64().unwrap_or(0.0) as f32).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    values.into_iter().map(|value| value / length).collect()
}

/// The assets whose embeddings are nearest, with their cosine similarity; the nearest first.
fn nearest(index: usize, embeddings: &[Vec<f32>], ids: &[&str]) -> Vec<(String, f32)> {
    let own = &embeddings[index];
    let similar = |other: &[f32]| own.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
    let mut found: Vec<(usize, f32)> = (0..embeddings.len())
        .filter(|other| *other != index && !own.is_empty() && !embeddings[*other].is_empty())
        .map(|other| (other, similar(&embeddings[other])))
        .collect();
    found.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    found.into_iter().take(NEIGHBOURS).map(|(other, similarity)| (ids[other].to_owned(), similarity)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_end_a_script_stay_data() {
        let data = json!({ "assets": [{ "id": "</script><script>alert(1)</script>" }] });
        let page = page(&data);
        assert!(!page.contains(PLACE) && !page.contains("alert(1)</script>"));
        let start = page.find("{\"assets\"").unwrap();
        let held = &page[start..start + page[start..].find("</script>").unwrap()];
        assert_eq!(serde_json::from_str::<Value>(held).unwrap(), data);
    }

    #[test]
    fn the_page_has_one_place_for_its_data_and_fetches_nothing() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        for fetched in ["http://", "https://", "src=\"", "@import", "fetch("] {
            assert!(!PAGE.contains(fetched), "{fetched}");
        }
    }

    #[test]
    fn the_nearest_come_first_and_an_asset_is_not_its_own_neighbour() {
        let embeddings = [unit(&json!([2, 0])), unit(&json!([1, 1])), unit(&json!([3, 0.1])), unit(&Value::Null)];
        let ids = ["a", "b", "c", "d"];
        let names = |index| nearest(index, &embeddings, &ids).into_iter().map(|found| found.0).collect::<Vec<_>>();
        assert_eq!(names(0), ["c", "b"]);
        assert_eq!(names(1), ["c", "a"]);
        assert!(names(3).is_empty());
    }

    #[test]
    fn a_field_is_shown_as_one_line_and_an_empty_one_not_at_all() {
        assert_eq!(text(&json!(["A > B", "C"])).as_deref(), Some("A > B; C"));
        assert_eq!(text(&json!({ "size": "M", "year": 3 })).as_deref(), Some("size: M; year: 3"));
        assert_eq!((text(&json!([])), text(&Value::Null), text(&json!(""))), (None, None, None));
    }
}
