//! A log store for compaction: it lets no commit pass that removes a file which another commit has removed meanwhile.
//!
//! The library takes two compactions of the same files for compatible, because each says of itself that it changes no data.
//! Both would add what they merged, and every merged row would be there twice. Here the second is refused as the conflict that
//! it is. Invariant: when an entry is written, the files that it removes were there in the version before it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use deltalake::kernel::Remove;
use deltalake::kernel::transaction::{CommitConflictError, TransactionError};
use deltalake::logstore::{CommitOrBytes, LogStore, LogStoreConfig, LogStoreRef};
use deltalake::{DeltaResult, DeltaTableError};
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Deserialize;
use uuid::Uuid;

/// Wraps the log store of one table.
pub(super) struct Guard {
    inner: LogStoreRef,
    /// The version that the next commit's files were read at.
    read_at: AtomicU64,
}

impl Guard {
    pub(super) fn new(inner: LogStoreRef) -> Arc<Self> {
        Arc::new(Self { inner, read_at: AtomicU64::new(0) })
    }

    /// Commits from now on were planned on this version.
    pub(super) fn plan_at(&self, version: u64) {
        self.read_at.store(version, Ordering::Release);
    }

    /// Refuses an entry that removes what a version between the plan and itself has removed.
    async fn check(&self, version: u64, entry: &[u8]) -> Result<(), TransactionError> {
        let removes = removed(entry)?;
        if removes.is_empty() {
            return Ok(());
        }
        for other in self.read_at.load(Ordering::Acquire) + 1..version {
            let found = self.inner.read_commit_entry(other).await.map_err(failed)?;
            // An entry that is gone was cleaned up behind a checkpoint: nobody can say what it removed.
            let is_same = match found {
                Some(entry) => removed(&entry)?.intersection(&removes).next().is_some(),
                None => true,
            };
            if is_same {
                return Err(TransactionError::CommitConflict(CommitConflictError::ConcurrentDeleteDelete));
            }
        }
        Ok(())
    }
}

/// The files that an entry removes.
fn removed(entry: &[u8]) -> Result<HashSet<String>, TransactionError> {
    #[derive(Deserialize)]
    struct Line {
        remove: Option<Remove>,
    }
    let lines = entry.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let removes = lines.filter_map(|line| serde_json::from_slice::<Line>(line).map(|line| line.remove).transpose());
    removes
        .map(|remove| remove.map(|remove| remove.path))
        .collect::<Result<_, _>>()
        .map_err(|json_err| TransactionError::SerializeLogJson { json_err })
}

fn failed(error: DeltaTableError) -> TransactionError {
    TransactionError::LogStoreError { msg: error.to_string(), source: Box::new(error) }
}

#[async_trait]
impl LogStore for Guard {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn read_commit_entry(&self, version: u64) -> DeltaResult<Option<Bytes>> {
        self.inner.read_commit_entry(version).await
    }

    async fn write_commit_entry(
        &self,
        version: u64,
        commit: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        match &commit {
            CommitOrBytes::LogBytes(bytes) => self.check(version, bytes).await?,
            CommitOrBytes::TmpCommit(path) => {
                let found = self.inner.object_store(Some(operation)).get(path).await?;
                self.check(version, &found.bytes().await?).await?;
            }
        }
        self.inner.write_commit_entry(version, commit, operation).await
    }

    async fn abort_commit_entry(
        &self,
        version: u64,
        commit: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        self.inner.abort_commit_entry(version, commit, operation).await
    }

    async fn get_latest_version(&self, start: u64) -> DeltaResult<u64> {
        self.inner.get_latest_version(start).await
    }

    fn object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.inner.object_store(operation)
    }

    fn root_object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.inner.root_object_store(operation)
    }

    fn config(&self) -> &LogStoreConfig {
        self.inner.config()
    }
}
