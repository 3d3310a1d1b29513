//! The clock of one asset: how long stages have really worked on it.
//!
//! Waiting in a queue does not count, and neither does waiting for a dependency that is down: a deadline must reject the
//! one slow picture, never a topic. It knows no stage's work; stages hold a [`Work`] while they are at it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::domain::{Outcome, Stage};
use crate::traces::Journey;

/// Shared by the asset on its way and by the coordinator, which reads it.
#[derive(Debug, Default)]
pub(super) struct Patience {
    stage: AtomicU8,
    /// Milliseconds of finished work.
    spent: AtomicU64,
    /// When the present work began, in milliseconds since [`START`] plus one; 0 while nothing works.
    since: AtomicU64,
    /// The asset's partition was revoked or its deadline has passed: its outcome will not be used.
    cancelled: AtomicBool,
    /// Where the asset's way is noted, when it is traced.
    journey: Option<Arc<Journey>>,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    START.elapsed().as_millis() as u64 + 1
}

impl Patience {
    pub(super) fn traced(journey: Option<Arc<Journey>>) -> Self {
        Self { journey, ..Self::default() }
    }

    /// Notes the end of the asset's way.
    pub(super) fn settled(&self, outcome: &Outcome) {
        if let Some(journey) = &self.journey {
            match outcome {
                Outcome::Annotated(_) => journey.settle("annotated", None),
                Outcome::Removed { .. } => journey.settle("removed", None),
                Outcome::Rejected(rejection) => journey.settle("rejected", Some(rejection.reason)),
            }
        }
    }

    /// The time worked on the asset so far.
    pub(super) fn spent(&self) -> Duration {
        let running = match self.since.load(Ordering::Relaxed) {
            0 => 0,
            since => now().saturating_sub(since),
        };
        Duration::from_millis(self.spent.load(Ordering::Relaxed) + running)
    }

    /// The stage that has worked on it last.
    pub(super) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Names the stage that has it.
    pub(super) fn enter(&self, stage: Stage) {
        let index = Stage::ALL.iter().position(|other| *other == stage).expect("ALL lists every stage");
        self.stage.store(index as u8, Ordering::Relaxed);
        if let Some(journey) = &self.journey {
            journey.enter(stage.as_str());
        }
    }

    /// Starts the clock; it stops when the value is dropped.
    pub(super) fn work(self: &Arc<Self>, stage: Stage) -> Work {
        self.enter(stage);
        self.since.store(now(), Ordering::Relaxed);
        Work { patience: self.clone(), counts: true }
    }
}

/// A stage is at work.
#[derive(Debug)]
pub(super) struct Work {
    patience: Arc<Patience>,
    counts: bool,
}

impl Work {
    /// What was worked did not count: a dependency was down.
    pub(super) fn excuse(mut self) {
        self.counts = false;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(journey) = &self.patience.journey {
            journey.leave();
        }
        let since = self.patience.since.swap(0, Ordering::Relaxed);
        if self.counts && since > 0 {
            self.patience.spent.fetch_add(now().saturating_sub(since), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_is_not_excused_counts() {
        let patience = Arc::new(Patience::default());
        let work = patience.work(Stage::Fetch);
        patience.since.store(now().saturating_sub(500).max(1), Ordering::Relaxed);
        work.excuse();
        assert_eq!(patience.spent(), Duration::ZERO);
        patience.spent.store(40, Ordering::Relaxed);
        let work = patience.work(Stage::Prepare);
        assert!(patience.spent() >= Duration::from_millis(40));
        drop(work);
        let spent = patience.spent();
        patience.enter(Stage::Infer);
        assert_eq!((patience.stage(), patience.spent()), (Stage::Infer, spent));
    }
}
