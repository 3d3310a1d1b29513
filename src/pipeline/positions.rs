//! Where partitions stand: what the tables say, which counts, and what the broker is told, which is advice.
//!
//! It knows no assets. Invariant: a position that the broker did not take is told again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::domain::{Blame, TopicPartition};
use crate::retry::{self, Backoff};
use crate::sink::{Resume, Sink, SinkError};
use crate::source::Source;

/// How long to wait after the broker did not take positions.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// A partition and the next offset to be read.
pub(super) type Position = (TopicPartition, i64);

/// What the broker has been told; one message to it is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Advice {
    told: HashMap<TopicPartition, i64>,
    under_way: bool,
    not_before: Option<Instant>,
}

impl Advice {
    /// What the broker does not know yet, to be told now; none when there is nothing or it is not the time.
    pub(super) fn news<'a>(
        &mut self,
        positions: impl Iterator<Item = (&'a TopicPartition, i64)>,
        now: Instant,
    ) -> Option<Vec<Position>> {
        if self.under_way || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let news: Vec<_> = positions
            .filter(|(partition, position)| self.told.get(*partition) != Some(position))
            .map(|(partition, position)| (partition.clone(), position))
            .collect();
        if news.is_empty() {
            return None;
        }
        self.told.extend(news.iter().cloned());
        self.under_way = true;
        Some(news)
    }

    /// The broker has answered; with an error come the positions that it did not take.
    pub(super) fn told(&mut self, result: Result<(), Vec<Position>>, now: Instant) {
        self.under_way = false;
        let Err(refused) = result else { return };
        for (partition, position) in refused {
            if self.told.get(&partition) == Some(&position) {
                self.told.remove(&partition);
            }
        }
        self.not_before = Some(now + TELL_AGAIN);
    }

    /// The partition is no longer ours.
    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.told.remove(partition);
    }
}

/// Reads where the partitions stand, for as long as it takes.
pub(super) async fn read_resumes(
    sink: &dyn Sink,
    partitions: &[TopicPartition],
    retry: retry::Options,
) -> Result<Vec<Resume>, SinkError> {
    let mut backoff = Backoff::new(retry);
    loop {
        match sink.resume(partitions).await {
            Err(error) if error.blame() == Blame::World => {
                tracing::warn!(%error, "offsets cannot be read from the tables for now");
                backoff.wait(None).await;
            }
            result => return result,
        }
    }
}

/// What the group has told the broker, as far as the tables have anything of these partitions: the broker alone is advice.
pub(super) async fn positions_elsewhere(source: &dyn Source, sink: &dyn Sink) -> Option<Vec<(TopicPartition, i64)>> {
    let told = source.committed().await;
    let told =
        told.inspect_err(|error| tracing::warn!(%error, "positions of the group cannot be read for now")).ok()?;
    let partitions: Vec<_> = told.iter().map(|(partition, _)| partition.clone()).collect();
    let written = sink.committed(&partitions).await;
    let written = written.inspect_err(|error| tracing::warn!(%error, "offsets cannot be read for now")).ok()?;
    Some(told.into_iter().zip(written).filter(|(_, written)| written.is_some()).map(|(told, _)| told).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_that_the_broker_did_not_take_are_told_again_a_little_later() {
        let partition = TopicPartition::new("assets", 0);
        let (mut advice, now) = (Advice::default(), Instant::now());
        let positions = || [(&partition, 7)].into_iter();
        let news = advice.news(positions(), now).unwrap();
        assert!(advice.news([(&partition, 8)].into_iter(), now).is_none(), "one message at a time");
        advice.told(Err(news), now);
        assert!(advice.news(positions(), now).is_none());
        let later = now + TELL_AGAIN;
        assert_eq!(advice.news(positions(), later), Some(vec![(partition.clone(), 7)]));
        advice.told(Ok(()), later);
        assert!(advice.news(positions(), later).is_none(), "nothing new");
        advice.forget(&partition);
        assert!(advice.news(positions(), later).is_some());
    }
}
