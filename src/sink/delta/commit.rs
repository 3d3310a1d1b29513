//! Appends rows to one table together with the transactions of the partitions they came from.
//!
//! Knows claims and rows of one table; the order of the two tables is [`super::sink`]'s. Invariant: a claim is written
//! only as the direct successor of a version in which its expectation held (compare-and-set), and at most once per batch.

use std::time::{Duration, Instant};

use deltalake::kernel::{Action, Add};
use serde_json::{Value as Json, json};

use super::log::{Appended, Landed, View};
use super::store::sink_error;
use super::table::{Table, commit_info};
use super::writer::write_files;
use crate::domain::Row;
use crate::retry::{self, Backoff};
use crate::sink::api::SinkError;

/// Files that waited longer for their commit are written anew, long before a vacuum may take them for orphans.
const FILES_EXPIRE_AFTER: Duration = Duration::from_secs(20 * 60);

/// How long a writer that lost a version steps back; the winner needs only one more request.
const CONFLICT_WAIT: retry::Options =
    retry::Options { initial: Duration::from_millis(5), maximum: Duration::from_millis(500) };

/// One partition's part of a commit: application ids with the versions they must have before and get after.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) expect: Vec<(String, Option<i64>)>,
    pub(super) write: Vec<(String, i64)>,
}

impl Claim {
    fn holds(&self, view: &View) -> bool {
        self.expect.iter().all(|(id, version)| view.transactions.get(id) == version.as_ref())
    }

    fn is_part_of(&self, landed: &Landed) -> bool {
        self.write.iter().all(|(id, version)| landed.transactions.get(id) == Some(version))
    }
}

/// What a batch wants of one table. Each row belongs to a claim, by position.
pub(super) struct Work<'a> {
    pub(super) table: &'a Table,
    /// Names the batch; the same for every attempt to write it.
    pub(super) batch: &'a str,
    pub(super) claims: Vec<Claim>,
    pub(super) rows: Vec<(usize, &'a Row)>,
}

/// Which claims are durable, and since which version; the others are fenced.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) done: Vec<bool>,
    pub(super) version: Option<u64>,
}

struct Files {
    live: Vec<bool>,
    structure_version: u64,
    written: Instant,
    adds: Vec<Add>,
}

impl Work<'_> {
    /// Writes every claim whose expectation holds. Conflicts with other partitions' writers are retried for as long as
    /// the store answers; `on_conflict` hears of each.
    pub(super) async fn settle(&self, on_conflict: impl Fn()) -> Result<Settled, SinkError> {
        let applications: Vec<String> =
            self.claims.iter().flat_map(|claim| claim.expect.iter().map(|(id, _)| id.clone())).collect();
        let mut files: Option<Files> = None;
        let mut backoff = Backoff::new(CONFLICT_WAIT);
        loop {
            let view = self.table.log.view(&applications, self.batch).await?;
            if let Some(landed) = &view.landed {
                let done = self.claims.iter().map(|claim| claim.is_part_of(landed)).collect();
                return Ok(Settled { done, version: Some(landed.version) });
            }
            let live: Vec<bool> = self.claims.iter().map(|claim| claim.holds(&view)).collect();
            if !live.contains(&true) {
                return Ok(Settled { done: live, version: None });
            }
            let ready = match files.take() {
                Some(ready) if ready.fits(&live, &view) => ready,
                _ => self.write(live, &view).await?,
            };
            let version = view.version + 1;
            match self.table.log.append(version, &self.lines(&ready)?).await? {
                Appended::Written => return Ok(Settled { done: ready.live, version: Some(version) }),
                Appended::Taken => {
                    tracing::debug!(table = %self.table.name, version, "version taken, trying the next");
                    files = Some(ready);
                    on_conflict();
                    backoff.wait(None).await;
                }
            }
        }
    }

    async fn write(&self, live: Vec<bool>, view: &View) -> Result<Files, SinkError> {
        let structure = self.table.structure(view.structure_version).await?;
        let rows: Vec<&Row> = self.rows.iter().filter(|(claim, _)| live[*claim]).map(|(_, row)| *row).collect();
        let written = Instant::now();
        let adds = write_files(self.table, &structure, &rows).await?;
        Ok(Files { live, structure_version: structure.table.version(), written, adds })
    }

    fn lines(&self, files: &Files) -> Result<Vec<Json>, SinkError> {
        let mut lines = vec![commit_info("WRITE", json!({"mode": "Append"}), Some(self.batch))];
        for (claim, _) in self.claims.iter().zip(&files.live).filter(|(_, live)| **live) {
            for (id, version) in &claim.write {
                lines.push(json!({"txn": {"appId": id, "version": version}}));
            }
        }
        for add in &files.adds {
            let line = serde_json::to_value(Action::Add(add.clone()));
            lines.push(line.map_err(|error| sink_error(&self.table.name, error))?);
        }
        Ok(lines)
    }
}

impl Files {
    fn fits(&self, live: &[bool], view: &View) -> bool {
        self.live == live
            && self.structure_version >= view.structure_version
            && self.written.elapsed() < FILES_EXPIRE_AFTER
    }
}
