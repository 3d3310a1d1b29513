//! Files outside of the tables that a query was told to read: Parquet, CSV or JSON lines, under a name in the schema `files`.
//!
//! It knows DataFusion's readers. Invariant: only files that were named when the session was opened can be read, whatever a
//! statement says.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionContext};

use super::error::QueryError;

/// The schema of the files.
pub(super) const FILES: &str = "files";

/// A file that queries may read, and its name in SQL; written `NAME=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    pub name: String,
    pub path: PathBuf,
}

impl FromStr for NamedFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("write NAME=FILE, for example labels=labels.jsonl")?;
        let is_plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && name.chars().all(|other| other.is_ascii_lowercase() || other.is_ascii_digit() || other == '_');
        if !is_plain {
            return Err(format!("{name:?} is no name for a table: use lower-case letters, digits and underscores"));
        }
        if path.is_empty() {
            return Err(format!("which file is {name}? Write {name}=FILE"));
        }
        Ok(Self { name: name.to_owned(), path: PathBuf::from(path) })
    }
}

/// The file as a table. Its columns are those that the first rows have.
pub(super) async fn open(context: &SessionContext, file: &NamedFile) -> Result<Arc<dyn TableProvider>, QueryError> {
    let failed = |detail: String| QueryError::File { path: file.path.display().to_string(), detail };
    let path = std::fs::canonicalize(&file.path).map_err(|error| failed(error.to_string()))?;
    if !path.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    let provider = read(context, &path).await.map_err(|error| failed(QueryError::from(error).to_string()))?;
    let provider = provider.ok_or_else(|| failed("its name must end in .parquet, .csv, .jsonl or .json".to_owned()))?;
    if provider.schema().fields().is_empty() {
        return Err(failed("it has no columns".to_owned()));
    }
    Ok(provider)
}

async fn read(context: &SessionContext, path: &Path) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    // A URL, because a bare path may hold characters of a pattern.
    let Ok(url) = url::Url::from_file_path(path) else { return Ok(None) };
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let dotted = format!(".{ending}");
    let frame = match ending {
        "parquet" => context.read_parquet(url.as_str(), ParquetReadOptions::default()).await?,
        "csv" => context.read_csv(url.as_str(), CsvReadOptions::default()).await?,
        "jsonl" | "json" => context.read_json(url.as_str(), JsonReadOptions::default().file_extension(&dotted)).await?,
        _ => return Ok(None),
    };
    Ok(Some(frame.into_view()))
}
