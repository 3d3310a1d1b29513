//! What the polling threads of a source and the rest of the process share: wishes in, failures out.
//!
//! Nothing here talks to Kafka. Invariant: whatever waits here is bounded, by the partitions of a topic or by a limit.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::domain::Epoch;
use crate::metrics::Metrics;
use crate::source::api::SourceError;

/// Records that wait for the coordinator at most.
pub const FLOW_CAPACITY: usize = 1024;
/// How long a commit of offsets may take.
pub const COMMIT: Duration = Duration::from_secs(15);
/// Commits that wait for the broker at most, per topic.
const COMMITS_WAITING: usize = 64;

/// What a waiting commit is told.
pub type CommitAnswer = oneshot::Sender<Result<(), SourceError>>;

/// State of the whole source.
pub struct Shared {
    pub job: String,
    pub metrics: Arc<Metrics>,
    epochs: AtomicU64,
    flowing: AtomicBool,
    closing: AtomicBool,
    /// The topics whose group was joined.
    joined: Mutex<BTreeSet<String>>,
    failure: Mutex<Option<oneshot::Sender<SourceError>>>,
}

impl Shared {
    pub fn new(job: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            job: job.to_owned(),
            metrics,
            epochs: AtomicU64::new(0),
            flowing: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            joined: Mutex::default(),
            failure: Mutex::new(None),
        }
    }

    /// An epoch that no partition of any topic had before.
    pub fn next_epoch(&self) -> Epoch {
        Epoch(self.epochs.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub fn set_flowing(&self, flowing: bool) {
        self.flowing.store(flowing, Ordering::Release);
    }

    pub fn flowing(&self) -> bool {
        self.flowing.load(Ordering::Acquire)
    }

    /// Notes that the group of a topic was joined, or that membership was lost.
    pub fn set_joined(&self, topic: &str, joined: bool) {
        let mut topics = lock(&self.joined);
        if joined {
            topics.insert(topic.to_owned());
        } else {
            topics.remove(topic);
        }
    }

    pub fn joined(&self) -> usize {
        lock(&self.joined).len()
    }

    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn report_failures_to(&self, failure: oneshot::Sender<SourceError>) {
        *lock(&self.failure) = Some(failure);
    }

    /// Tells the first failure and closes all members; later failures are consequences.
    pub fn fail(&self, error: SourceError) {
        if let Some(failure) = lock(&self.failure).take() {
            // Without a listener the coordinator is gone, and closing is all that is left.
            let _ = failure.send(error);
        }
        self.close();
    }

    /// Ends the failure channel without a failure.
    pub fn forget_failure(&self) {
        *lock(&self.failure) = None;
    }
}

/// A commit on its way to the broker.
pub struct CommitRequest {
    /// Partition and next offset.
    pub positions: Vec<(i32, i64)>,
    pub answer: CommitAnswer,
}

/// Wishes for the threads of one topic.
#[derive(Default)]
pub struct Mailbox {
    // Spares the polling thread a lock per record.
    filled: AtomicBool,
    reassign: Mutex<BTreeSet<i32>>,
    commits: Mutex<Option<SyncSender<CommitRequest>>>,
}

impl Mailbox {
    pub fn reassign(&self, partition: i32) {
        lock(&self.reassign).insert(partition);
        self.filled.store(true, Ordering::Release);
    }

    /// Takes the partitions to assign anew; none when there is nothing new.
    pub fn take_reassign(&self) -> BTreeSet<i32> {
        if self.filled.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *lock(&self.reassign))
        } else {
            BTreeSet::new()
        }
    }

    /// Lets commits come; the thread that reads them ends after [`Self::shut`].
    pub fn open(&self) -> Receiver<CommitRequest> {
        let (sender, receiver) = sync_channel(COMMITS_WAITING);
        *lock(&self.commits) = Some(sender);
        receiver
    }

    /// Answers later commits with [`SourceError::Closed`].
    pub fn shut(&self) {
        *lock(&self.commits) = None;
    }

    /// Hands a commit over. Answers at once when the mailbox is not open or too many wait already.
    pub fn commit(&self, request: CommitRequest) {
        let (request, error) = match lock(&self.commits).as_ref() {
            None => (request, SourceError::Closed),
            Some(commits) => match commits.try_send(request) {
                Ok(()) => return,
                Err(TrySendError::Disconnected(request)) => (request, SourceError::Closed),
                Err(TrySendError::Full(request)) => {
                    let detail = format!("{COMMITS_WAITING} commits of offsets wait already");
                    (request, SourceError::Unavailable { detail })
                }
            },
        };
        // A commit that nobody waits for needs no answer.
        let _ = request.answer.send(Err(error));
    }
}

/// A panic elsewhere cannot leave these values half written, so a poisoned lock is taken all the same.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_beyond_the_limit_are_refused_at_once() {
        let mailbox = Mailbox::default();
        let waiting = mailbox.open();
        let mut answers: Vec<_> = (0..=COMMITS_WAITING)
            .map(|_| {
                let (answer, outcome) = oneshot::channel();
                mailbox.commit(CommitRequest { positions: vec![(0, 1)], answer });
                outcome
            })
            .collect();
        assert!(answers.pop().unwrap().try_recv().unwrap().is_err());
        assert!(answers.pop().unwrap().try_recv().is_err());
        mailbox.shut();
        assert_eq!(waiting.iter().count(), COMMITS_WAITING);
    }

    #[test]
    fn only_the_first_failure_is_told() {
        let shared = Shared::new("j", Arc::new(Metrics::new()));
        let (sender, mut receiver) = oneshot::channel();
        shared.report_failures_to(sender);
        shared.fail(SourceError::Unavailable { detail: "first".into() });
        shared.fail(SourceError::Closed);
        assert!(receiver.try_recv().unwrap().to_string().contains("first"));
        assert!(shared.closing());
    }
}
