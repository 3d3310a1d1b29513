//! How far a pipeline is, for the progress line and the summary at its end.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one running pipeline; written by the coordinator, read by anyone.
#[derive(Debug, Default)]
pub struct Progress {
    pub(super) received: AtomicU64,
    pub(super) annotated: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) in_flight: AtomicU64,
}

/// The counters at one moment. Annotated, removed and rejected count rows that are durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub received: u64,
    pub annotated: u64,
    pub removed: u64,
    pub rejected: u64,
    pub in_flight: u64,
}

impl Progress {
    pub fn snapshot(&self) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            received: read(&self.received),
            annotated: read(&self.annotated),
            removed: read(&self.removed),
            rejected: read(&self.rejected),
            in_flight: read(&self.in_flight),
        }
    }
}

impl Snapshot {
    /// Rows written to both tables.
    pub fn written(&self) -> u64 {
        self.annotated + self.removed + self.rejected
    }
}
