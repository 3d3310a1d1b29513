//! Follows the log of one Delta table: its newest version and how far each application's transactions have come.
//!
//! Knows versions and transactions; knows no rows and never the list of files, so that memory stays flat however large
//! the table grows. Invariant: the transactions of a [`View`] are exactly those of its version, and [`Log::append`] takes
//! effect only as the very next version. Together they are the compare-and-set that fences other writers.
//!
//! The library's own commit builder is not used: it holds every file of the table in memory, gives up after 15 conflicts,
//! and compares transactions only with versions newer than the snapshot it was given.

use std::collections::{BTreeMap, HashMap, VecDeque};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use deltalake::kernel::transaction::TransactionError;
use deltalake::logstore::{CommitOrBytes, LogStoreRef};
use deltalake::{ObjectStoreError, Path};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::store::sink_error;
use crate::sink::api::SinkError;

/// Key in a commit's information that names the batch which made it.
pub(super) const BATCH_KEY: &str = "assayBatch";

/// Commits read at once when the log is read from its checkpoint on.
const READ_AHEAD: u64 = 16;

/// Own commits remembered; a caller repeats at most the last batch, which makes one commit in each table.
const REMEMBERED_COMMITS: usize = 8;

/// Commits looked at in search of the last one with rows; upkeep makes a few in a row.
const LOOK_BACK: u64 = 64;

/// The log of one table.
pub(super) struct Log {
    table: String,
    store: LogStoreRef,
    /// Commits whose batch begins with this are remembered, see [`View::landed`].
    instance: String,
    state: Mutex<Option<State>>,
}

/// What the log said at one version.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) version: u64,
    /// Of the applications asked for, those that have committed.
    pub(super) transactions: HashMap<String, i64>,
    /// The commit of the batch asked for, when it is in the log.
    pub(super) landed: Option<Landed>,
    /// The last version that may have changed schema, partitioning or protocol.
    pub(super) structure_version: u64,
}

/// A commit that is in the log.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) version: u64,
    pub(super) transactions: BTreeMap<String, i64>,
}

/// What became of [`Log::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    Written,
    /// Another commit has this version.
    Taken,
}

#[derive(Default)]
struct State {
    version: u64,
    structure_version: u64,
    transactions: HashMap<String, i64>,
    landed: VecDeque<(String, Landed)>,
}

impl Log {
    pub(super) fn new(table: &str, store: LogStoreRef, instance: &str) -> Self {
        Self { table: table.to_owned(), store, instance: instance.to_owned(), state: Mutex::new(None) }
    }

    /// Reads what is new in the log and answers for the given applications and batch.
    pub(super) async fn view(&self, applications: &[String], batch: &str) -> Result<View, SinkError> {
        let mut guard = self.state.lock().await;
        let hint = self.checkpoint_hint().await?;
        let behind_checkpoint = match (&*guard, &hint) {
            (None, _) => true,
            (Some(state), Some(hint)) => hint.version > state.version,
            (Some(_), None) => false,
        };
        if behind_checkpoint {
            let known = guard.as_ref();
            let state = self.read_from_checkpoint(known, hint.as_ref()).await?;
            *guard = Some(state);
        } else if let Some(state) = guard.as_mut() {
            while let Some(bytes) = self.read(state.version + 1).await? {
                state.apply(&self.parse(state.version + 1, &bytes)?, &self.instance);
            }
        }
        let state = guard.as_ref().expect("the log was read just now");
        let known = |id: &String| state.transactions.get(id).map(|version| (id.clone(), *version));
        Ok(View {
            version: state.version,
            transactions: applications.iter().filter_map(known).collect(),
            landed: state.landed.iter().find(|(id, _)| id == batch).map(|(_, landed)| landed.clone()),
            structure_version: state.structure_version,
        })
    }

    /// The newest version, and the transactions of all applications.
    pub(super) async fn head(&self) -> Result<(u64, HashMap<String, i64>), SinkError> {
        let version = self.view(&[], "").await?.version;
        let guard = self.state.lock().await;
        Ok((version, guard.as_ref().map(|state| state.transactions.clone()).unwrap_or_default()))
    }

    /// When rows were last committed at or before a version, in milliseconds since the Unix epoch; none when no commit of
    /// rows is among the last ones that are still there.
    pub(super) async fn last_batch(&self, version: u64) -> Result<Option<u64>, SinkError> {
        for version in (version.saturating_sub(LOOK_BACK)..=version).rev() {
            let Some(bytes) = self.read(version).await? else { return Ok(None) };
            let commit = self.parse(version, &bytes)?;
            if commit.batch.is_some() {
                return Ok(commit.timestamp);
            }
        }
        Ok(None)
    }

    /// Puts a commit as the given version, or nothing when that version exists.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] leaves open whether the commit is in the log: look for it in a later [`View::landed`].
    pub(super) async fn append(&self, version: u64, lines: &[serde_json::Value]) -> Result<Appended, SinkError> {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let bytes = CommitOrBytes::LogBytes(Bytes::from(lines.join("\n")));
        match self.store.write_commit_entry(version, bytes, Default::default()).await {
            Ok(()) => Ok(Appended::Written),
            Err(TransactionError::VersionAlreadyExists(_)) => Ok(Appended::Taken),
            Err(error) => Err(sink_error(&self.table, error)),
        }
    }

    /// The newest checkpoint as far as the log's hint file tells; commits before it may be gone.
    async fn checkpoint_hint(&self) -> Result<Option<CheckpointHint>, SinkError> {
        let path = Path::from("_delta_log/_last_checkpoint");
        let bytes = match self.store.object_store(None).get(&path).await {
            Ok(found) => found.bytes().await.map_err(|error| sink_error(&self.table, error))?,
            Err(ObjectStoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(sink_error(&self.table, error)),
        };
        // A torn or foreign hint file is no reason to stop: the log itself tells the same, only slower.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// The state from the checkpoint and everything behind it; own commits before the checkpoint are looked for as well.
    async fn read_from_checkpoint(
        &self,
        known: Option<&State>,
        hint: Option<&CheckpointHint>,
    ) -> Result<State, SinkError> {
        let mut state = State::default();
        let mut next = 0;
        if let Some(hint) = hint {
            state.transactions = self.checkpoint_transactions(hint).await?;
            state.structure_version = hint.version;
            state.version = hint.version;
            next = hint.version + 1;
        }
        if let Some(known) = known {
            state.landed.clone_from(&known.landed);
            for version in known.version + 1..next {
                if let Some(bytes) = self.read(version).await? {
                    state.remember(&self.parse(version, &bytes)?, &self.instance);
                }
            }
        }
        let mut end = false;
        while !end {
            let window: Vec<(u64, Option<Bytes>)> = futures::stream::iter(next..next + READ_AHEAD)
                .map(|version| async move { Ok::<_, SinkError>((version, self.read(version).await?)) })
                .buffered(READ_AHEAD as usize)
                .try_collect()
                .await?;
            for (version, bytes) in window {
                match bytes {
                    Some(bytes) if !end => {
                        state.apply(&self.parse(version, &bytes)?, &self.instance);
                        next = version + 1;
                    }
                    _ => end = true,
                }
            }
        }
        if next == 0 {
            let detail = "its log begins nowhere: version 0 and the checkpoint hint are missing".to_owned();
            return Err(SinkError::Incompatible { table: self.table.clone(), detail });
        }
        Ok(state)
    }

    async fn read(&self, version: u64) -> Result<Option<Bytes>, SinkError> {
        self.store.read_commit_entry(version).await.map_err(|error| sink_error(&self.table, error))
    }

    fn parse(&self, version: u64, bytes: &[u8]) -> Result<Commit, SinkError> {
        let mut commit =
            Commit { version, batch: None, timestamp: None, transactions: BTreeMap::new(), structural: false };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        for line in lines {
            let line: LogLine = serde_json::from_slice(line).map_err(|error| SinkError::Incompatible {
                table: self.table.clone(),
                detail: format!("version {version} of its log cannot be read: {error}"),
            })?;
            if let Some(transaction) = line.txn {
                commit.transactions.insert(transaction.app_id, transaction.version);
            }
            commit.structural |= line.metadata.is_some() || line.protocol.is_some();
            if let Some(info) = line.commit_info {
                commit.batch = commit.batch.or(info.batch);
                commit.timestamp = commit.timestamp.or(info.timestamp);
            }
        }
        Ok(commit)
    }

    async fn checkpoint_transactions(&self, hint: &CheckpointHint) -> Result<HashMap<String, i64>, SinkError> {
        let failed = |error: parquet::errors::ParquetError| sink_error(&self.table, error);
        let mut transactions = HashMap::new();
        for path in hint.paths() {
            let found = self.store.object_store(None).get(&Path::from(path.as_str())).await;
            let bytes = match found {
                Ok(found) => found.bytes().await.map_err(|error| sink_error(&self.table, error))?,
                Err(error) => return Err(sink_error(&self.table, error)),
            };
            let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(failed)?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), ["txn.appId", "txn.version"]);
            for batch in builder.with_projection(mask).build().map_err(failed)? {
                let batch = batch.map_err(|error| sink_error(&self.table, error))?;
                let Some(column) = batch.column_by_name("txn").and_then(|column| column.as_struct_opt()) else {
                    continue;
                };
                let unreadable = || SinkError::Incompatible {
                    table: self.table.clone(),
                    detail: format!("the transactions of checkpoint {path} have another form"),
                };
                let ids = column.column_by_name("appId").ok_or_else(unreadable)?;
                let ids = ids.as_string_opt::<i32>().ok_or_else(unreadable)?;
                let versions = column.column_by_name("version").ok_or_else(unreadable)?;
                let versions = versions.as_primitive_opt::<Int64Type>().ok_or_else(unreadable)?;
                let rows = (0..batch.num_rows()).filter(|row| column.is_valid(*row) && ids.is_valid(*row));
                transactions.extend(rows.map(|row| (ids.value(row).to_owned(), versions.value(row))));
            }
        }
        Ok(transactions)
    }
}

impl State {
    fn apply(&mut self, commit: &Commit, instance: &str) {
        self.version = commit.version;
        self.transactions.extend(commit.transactions.iter().map(|(id, version)| (id.clone(), *version)));
        if commit.structural {
            self.structure_version = commit.version;
        }
        self.remember(commit, instance);
    }

    fn remember(&mut self, commit: &Commit, instance: &str) {
        if let Some(batch) = commit.batch.as_ref().filter(|batch| batch.starts_with(instance)) {
            if self.landed.len() == REMEMBERED_COMMITS {
                self.landed.pop_front();
            }
            let landed = Landed { version: commit.version, transactions: commit.transactions.clone() };
            self.landed.push_back((batch.clone(), landed));
        }
    }
}

/// The parts of one commit that matter here.
struct Commit {
    version: u64,
    batch: Option<String>,
    /// Milliseconds since the Unix epoch.
    timestamp: Option<u64>,
    transactions: BTreeMap<String, i64>,
    structural: bool,
}

#[derive(Deserialize)]
struct LogLine {
    txn: Option<TransactionLine>,
    #[serde(rename = "metaData")]
    metadata: Option<serde::de::IgnoredAny>,
    protocol: Option<serde::de::IgnoredAny>,
    #[serde(rename = "commitInfo")]
    commit_info: Option<CommitInfoLine>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TransactionLine {
    app_id: String,
    version: i64,
}

#[derive(Deserialize)]
struct CommitInfoLine {
    #[serde(rename = "assayBatch")]
    batch: Option<String>,
    timestamp: Option<u64>,
}

#[derive(Deserialize)]
struct CheckpointHint {
    version: u64,
    parts: Option<u32>,
}

impl CheckpointHint {
    fn paths(&self) -> Vec<String> {
        let version = self.version;
        match self.parts {
            None => vec![format!("_delta_log/{version:020}.checkpoint.parquet")],
            Some(parts) => (1..=parts)
                .map(|part| format!("_delta_log/{version:020}.checkpoint.{part:010}.{parts:010}.parquet"))
                .collect(),
        }
    }
}
