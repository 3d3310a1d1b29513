//! Reads drafts, checks them against their schema, sends them, and says how many went out.
//!
//! What is wrong in a file is reported with its place and left out; the exit code then says so.

use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::config::{Config, SourceKind};
use crate::domain::AssetKind;
use crate::job::{JobCatalog, MessageDecoder, check_key};
use crate::source::Submitter;

use super::draft::{Draft, Found, Problem};
use super::{csv_file, folder, json_lines};

/// What `assay submit` was asked to do.
#[derive(Debug, Clone)]
pub struct SubmitOptions {
    pub topic: String,
    /// None: what the jobs on this topic read.
    pub kind: Option<AssetKind>,
    /// Leave out messages that break their schema.
    pub validate: bool,
    pub paths: Vec<PathBuf>,
}

/// Problems printed one by one; more are only counted.
const PRINTED_PROBLEMS: u64 = 20;

/// Enqueues everything that the paths hold.
///
/// # Errors
/// A path that cannot be read, a broker that does not take records, or records that were left out.
pub async fn run(config: &Config, options: SubmitOptions) -> Result<()> {
    if config.source.kind != SourceKind::Kafka {
        bail!(
            "source.kind is not \"kafka\": there is no broker to submit to; append lines to the replay files instead"
        );
    }
    let kind = options.kind.unwrap_or_else(|| kind_of(config, &options.topic));
    let decoder = MessageDecoder::new(kind);
    let submitter = Submitter::new(&config.source.kafka)?;
    let bar = progress_bar();
    let mut refused = 0u64;
    let mut sent = 0u64;
    for path in &options.paths {
        for found in open(path, kind)? {
            match check(found, options.validate.then_some(&decoder)) {
                Ok(draft) => {
                    let Draft { key, payload, headers, .. } = draft;
                    submitter.send(&options.topic, None, key.as_deref(), payload.as_deref(), &headers).await?;
                    sent += 1;
                    bar.inc(1);
                }
                Err(problem) => {
                    refused += 1;
                    if refused <= PRINTED_PROBLEMS {
                        bar.suspend(|| eprintln!("assay: {problem}"));
                    }
                }
            }
        }
    }
    let delivered =
        submitter.flush().await.with_context(|| format!("{sent} records were sent to {}", options.topic))?;
    bar.finish_and_clear();
    println!(
        "{} {kind} records delivered to topic {}, {} left out",
        HumanCount(delivered),
        options.topic,
        HumanCount(refused)
    );
    if refused > PRINTED_PROBLEMS {
        eprintln!("assay: {} further problems are not shown", refused - PRINTED_PROBLEMS);
    }
    if refused > 0 {
        bail!("{refused} records were left out; mend them and submit them again");
    }
    Ok(())
}

fn kind_of(config: &Config, topic: &str) -> AssetKind {
    JobCatalog::load(&config.jobs)
        .ok()
        .and_then(|catalog| catalog.jobs().find(|job| job.topics.iter().any(|name| name == topic)).map(|job| job.kind))
        .unwrap_or(AssetKind::Product)
}

fn open(path: &Path, kind: AssetKind) -> Result<Box<dyn Iterator<Item = Found>>> {
    if path.is_dir() {
        return Ok(Box::new(folder::read(path, kind)?));
    }
    let name = path.display().to_string();
    let reader = BufReader::new(File::open(path).with_context(|| name.clone())?);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Box::new(csv_file::read(name, reader, kind)?)),
        Some("jsonl" | "ndjson" | "json") => Ok(Box::new(json_lines::read(name, reader))),
        _ => bail!("{name}: neither a folder nor a .jsonl, .ndjson, .json or .csv file"),
    }
}

fn check(found: Found, decoder: Option<&MessageDecoder>) -> Found {
    let draft = found?;
    if let (Some(decoder), Some(payload)) = (decoder, &draft.payload) {
        let asset = decoder.decode(payload);
        let checked = asset.and_then(|asset| check_key(&asset, draft.key.as_deref()));
        checked.map_err(|error| Problem { place: draft.place.clone(), message: error.to_string() })?;
    }
    Ok(draft)
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style =
        ProgressStyle::with_template("{spinner} {human_pos} records  {per_sec}").expect("the template is valid");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
