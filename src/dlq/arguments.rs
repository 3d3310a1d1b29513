//! The flags of `assay dlq`, and which function answers which verb.

use std::time::SystemTime;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::letters::Selection;
use super::list::{list, show};
use super::retry::{RetryOptions, retry};
use crate::config::Config;
use crate::query::Format;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqVerb {
    /// List dead letters: rejections that nothing has cured since.
    #[command(after_help = "Example: assay dlq list --stage fetch --since 2h")]
    List {
        #[command(flatten)]
        which: Which,
        /// Names of letters, topic/partition/offset of the record that was rejected first.
        #[arg(value_name = "LETTER")]
        letters: Vec<String>,
        /// List letters that were cured as well.
        #[arg(long)]
        cured: bool,
        /// table, json or csv.
        #[arg(long, default_value = "table")]
        format: Format,
        /// At most this many of each job.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Show each attempt of one letter, with its message, as JSON.
    #[command(after_help = "Example: assay dlq show products/0/1742")]
    Show {
        #[command(flatten)]
        jobs: Jobs,
        /// The letter's name: topic/partition/offset of the record that was rejected first.
        letter: String,
    },
    /// Send the messages of dead letters again, to their partition.
    #[command(after_help = "Example: assay dlq retry --job product-embedding --reason media_not_found")]
    Retry {
        #[command(flatten)]
        which: Which,
        /// Names of letters, topic/partition/offset of the record that was rejected first.
        #[arg(value_name = "LETTER")]
        letters: Vec<String>,
        /// All letters, whatever their reason.
        #[arg(long)]
        all: bool,
        /// Leave letters alone that were worked on this often.
        #[arg(long, default_value_t = 3)]
        max_attempts: i64,
        /// Only count.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct Jobs {
    /// A job's name; may be given several times. Without it, all jobs.
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,
}

/// Conditions on letters; all hold at once.
#[derive(Debug, Args)]
pub struct Which {
    #[command(flatten)]
    jobs: Jobs,
    /// decode, fetch, prepare or infer.
    #[arg(long)]
    stage: Option<String>,
    /// The reason of the last rejection, for example media_not_found.
    #[arg(long)]
    reason: Option<String>,
    /// The id of the asset.
    #[arg(long, value_name = "ID")]
    asset: Option<String>,
    /// Rejected at or after: a time as in RFC 3339, or how long ago ("2h").
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    since: Option<String>,
    /// Rejected before: a time as in RFC 3339, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    until: Option<String>,
}

impl Which {
    fn split(self, letters: Vec<String>, cured: bool) -> (Vec<String>, Selection) {
        let Self { jobs, stage, reason, asset, since, until } = self;
        (jobs.jobs, Selection { stage, reason, asset, letters, since, until, cured })
    }
}

/// Does what the verb says.
pub async fn run(config: &Config, verb: DlqVerb) -> Result<()> {
    match verb {
        DlqVerb::List { format: Format::Parquet, .. } => bail!("--format is table, json or csv"),
        DlqVerb::List { which, letters, cured, format, limit } => {
            let (jobs, selection) = which.split(letters, cured);
            list(config, &jobs, &selection, format, limit).await
        }
        DlqVerb::Show { jobs, letter } => show(config, &jobs.jobs, &letter).await,
        DlqVerb::Retry { which, letters, all, max_attempts, dry_run } => {
            let (jobs, selection) = which.split(letters, false);
            if selection.is_everything() && !all {
                bail!(
                    "say which letters to send again (by name, --stage, --reason, --asset, --since, --until), or --all"
                );
            }
            retry(config, &RetryOptions { jobs, selection, most_attempts: max_attempts, dry_run }).await
        }
    }
}

/// A time as SQL reads it, from RFC 3339 or from how long ago it was.
fn point_in_time(text: &str) -> Result<String, String> {
    let time = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago).ok_or("is longer ago than time can tell")?,
        Err(_) => humantime::parse_rfc3339_weak(text)
            .map_err(|error| format!("{error}; write 2026-01-02T03:04:05Z, or how long ago, such as 2h"))?,
    };
    Ok(humantime::format_rfc3339_micros(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_how_long_ago_it_was() {
        assert_eq!(point_in_time("2026-01-02T03:04:05Z").unwrap(), "2026-01-02T03:04:05.000000Z");
        assert!(point_in_time("2h").unwrap() < humantime::format_rfc3339_micros(SystemTime::now()).to_string());
        assert!(point_in_time("soon").unwrap_err().contains("how long ago"));
    }
}
