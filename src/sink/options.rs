//! The configuration of the tables: where they lie, when a commit is due, how they are kept tidy.
//!
//! Knows no job. Store options may hold secrets, so their values are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::retry;

/// Section `[tables]`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The folder of all tables: `file:///`, `s3://`, `gs://`, `az://`. Tables lie at `{url}/{job}/results` and
    /// `{url}/{job}/rejections`.
    pub url: String,
    /// Keys of the object store's builder, for example `aws_region`; they win over the environment.
    pub options: BTreeMap<String, String>,
    /// Columns of the results table that become its partition columns; scalar columns only.
    pub partition_by: Vec<String>,
    pub commit: CommitOptions,
    /// How the caller backs off before it gives an interrupted commit again.
    pub retry: retry::Options,
    pub upkeep: UpkeepOptions,
}

/// Section `[tables.commit]`: a commit is due when one of the three is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommitOptions {
    pub rows: usize,
    /// Size of the rows in memory.
    pub bytes: ByteSize,
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

/// Section `[tables.upkeep]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpkeepOptions {
    /// What smaller files are merged into.
    pub target_file_size: ByteSize,
    /// How long files that no version needs any more are kept, at least one hour: readers and commits may still use them.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "file:///var/lib/assay/tables".to_owned(),
            options: BTreeMap::new(),
            partition_by: Vec::new(),
            commit: CommitOptions::default(),
            retry: retry::Options::default(),
            upkeep: UpkeepOptions::default(),
        }
    }
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self { rows: 10_000, bytes: ByteSize::mib(64), interval: Duration::from_secs(5) }
    }
}

impl Default for UpkeepOptions {
    fn default() -> Self {
        Self { target_file_size: ByteSize::mib(256), retention: Duration::from_secs(7 * 24 * 3600) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redacted: BTreeMap<&str, &str> = self.options.keys().map(|key| (key.as_str(), "***")).collect();
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("options", &redacted)
            .field("partition_by", &self.partition_by)
            .field("commit", &self.commit)
            .field("retry", &self.retry)
            .field("upkeep", &self.upkeep)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed() {
        let mut options = Options::default();
        options.options.insert("aws_secret_access_key".to_owned(), "hunter2".to_owned());
        let printed = format!("{options:?}");
        assert!(printed.contains("aws_secret_access_key"), "{printed}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn keys_are_in_human_units_and_unknown_ones_are_refused() {
        let text = "url = \"memory:///\"\n[commit]\nbytes = \"1MiB\"\ninterval = \"2s\"\n[upkeep]\nretention = \"3d\"";
        let options: Options = toml::from_str(text).unwrap();
        assert_eq!(options.commit.bytes, ByteSize::mib(1));
        assert_eq!(options.upkeep.retention, Duration::from_secs(3 * 24 * 3600));
        assert_eq!(options.commit.rows, 10_000);
        assert!(toml::from_str::<Options>("uri = \"memory:///\"").is_err());
    }
}
