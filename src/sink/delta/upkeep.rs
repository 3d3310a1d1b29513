//! Keeps a job's tables tidy beside running workers: merges small files, writes checkpoints, removes what nobody needs.
//!
//! Runs on its own, never on the commit path, and knows nothing of rows or offsets. Invariant: what a commit in flight, or
//! a reader of a recent version, may still need is not removed.

use std::num::NonZeroU64;
use std::time::Duration;

use arrow::temporal_conversions::try_duration_ms_to_duration;
use deltalake::kernel::transaction::{CommitProperties, TransactionError};
use deltalake::operations::vacuum::VacuumMode;
use deltalake::{DeltaTable, DeltaTableError, checkpoints};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::guard::Guard;
use super::store::{open_store, sink_error};
use crate::retry::{self, Backoff};
use crate::sink::api::SinkError;
use crate::sink::options::{Options, UpkeepOptions};

/// No file is removed earlier, whatever is configured: a commit in flight names files that no version knows yet.
pub(super) const SHORTEST_RETENTION: Duration = Duration::from_secs(3600);

/// Compactions given up after losing this often; the next upkeep tries again.
const COMPACTION_ATTEMPTS: u32 = 10;

/// What upkeep did to both tables of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpkeepReport {
    pub results: TableUpkeep,
    pub rejections: TableUpkeep,
}

/// What upkeep did to one table; all zero when the table does not exist yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableUpkeep {
    /// Small files that were merged.
    pub files_merged: u64,
    /// Files that took their place.
    pub files_written: u64,
    /// The version of the checkpoint, when the table exists.
    pub checkpoint: Option<u64>,
    /// Data files that no version within the retention needs.
    pub files_removed: u64,
    /// Expired files of the log.
    pub log_files_removed: u64,
}

/// Compacts, checkpoints and vacuums the tables of a job. Safe beside running workers, and may be repeated at any time.
pub async fn upkeep(options: &Options, job: &str) -> Result<UpkeepReport, SinkError> {
    Ok(UpkeepReport {
        results: tidy(options, job, "results").await?,
        rejections: tidy(options, job, "rejections").await?,
    })
}

async fn tidy(options: &Options, job: &str, table: &str) -> Result<TableUpkeep, SinkError> {
    let store = open_store(&options.url, job, table, &options.options)?;
    let name = store.root_url().to_string();
    let failed = |error: DeltaTableError| sink_error(&name, error);
    let guard = Guard::new(store);
    let mut table = DeltaTable::new(guard.clone());
    if !table.verify_deltatable_existence().await.map_err(failed)? {
        return Ok(TableUpkeep::default());
    }
    table.load().await.map_err(failed)?;
    let (table, mut done) = compact(table, &guard, &name, &options.upkeep).await?;
    let (mut table, removed) = vacuum(table, &name, &options.upkeep).await?;
    done.files_removed = removed;
    table.update_state().await.map_err(failed)?;
    checkpoints::create_checkpoint(&table, None).await.map_err(failed)?;
    done.checkpoint = table.version();
    done.log_files_removed = checkpoints::cleanup_metadata(&table, None).await.map_err(failed)? as u64;
    tracing::info!(table = %name, ?done, "table tidied");
    Ok(done)
}

/// `guard` is the table's log store.
pub(super) async fn compact(
    mut table: DeltaTable,
    guard: &Guard,
    name: &str,
    options: &UpkeepOptions,
) -> Result<(DeltaTable, TableUpkeep), SinkError> {
    let target = NonZeroU64::new(options.target_file_size.as_u64()).ok_or_else(|| SinkError::Configuration {
        table: name.to_owned(),
        detail: "tables.upkeep.target_file_size is 0".to_owned(),
    })?;
    let mut backoff = Backoff::new(retry::Options::default());
    loop {
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        guard.plan_at(table.version().unwrap_or_default());
        let attempt = table.clone().optimize().with_target_size(target).with_writer_properties(properties);
        match attempt.with_commit_properties(commit_only()).await {
            Ok((table, metrics)) => {
                let done = TableUpkeep {
                    files_merged: metrics.num_files_removed,
                    files_written: metrics.num_files_added,
                    ..TableUpkeep::default()
                };
                return Ok((table, done));
            }
            Err(error) if is_conflict(&error) && backoff.attempts() < COMPACTION_ATTEMPTS => {
                tracing::info!(table = name, %error, "compaction lost against another commit, trying again");
                backoff.wait(None).await;
                table.update_state().await.map_err(|error| sink_error(name, error))?;
            }
            Err(error) => return Err(sink_error(name, error)),
        }
    }
}

async fn vacuum(table: DeltaTable, name: &str, options: &UpkeepOptions) -> Result<(DeltaTable, u64), SinkError> {
    let retention = options.retention.max(SHORTEST_RETENTION);
    let retention =
        i64::try_from(retention.as_millis()).ok().and_then(try_duration_ms_to_duration).ok_or_else(|| {
            let detail = "tables.upkeep.retention is longer than time can tell".to_owned();
            SinkError::Configuration { table: name.to_owned(), detail }
        })?;
    let mut backoff = Backoff::new(retry::Options::default());
    loop {
        // Full: files of commits that failed are named by no version, so only a look at the folder finds them.
        let attempt = table
            .clone()
            .vacuum()
            .with_mode(VacuumMode::Full)
            .with_retention_period(retention)
            .with_enforce_retention_duration(false)
            .with_commit_properties(commit_only());
        match attempt.await {
            Ok((table, metrics)) => return Ok((table, metrics.files_deleted.len() as u64)),
            Err(error) if is_conflict(&error) && backoff.attempts() < COMPACTION_ATTEMPTS => backoff.wait(None).await,
            Err(error) => return Err(sink_error(name, error)),
        }
    }
}

/// The library's commits otherwise write checkpoints and clean the log on their way.
fn commit_only() -> CommitProperties {
    CommitProperties::default().with_create_checkpoint(false).with_cleanup_expired_logs(Some(false))
}

fn is_conflict(error: &DeltaTableError) -> bool {
    matches!(
        error,
        DeltaTableError::VersionAlreadyExists(_)
            | DeltaTableError::Transaction {
                source: TransactionError::CommitConflict(_)
                    | TransactionError::MaxCommitAttempts(_)
                    | TransactionError::VersionAlreadyExists(_)
            }
    )
}
