//! How a pipeline comes to its end: by being asked to, or, with `--once`, by having done what was there at the start.
//!
//! Pure decisions; the coordinator acts on them. Running -> Draining (no new assets, what is open settles, last commit) ->
//! Closing (the group is left) -> done.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::domain::TopicPartition;
use crate::ledger::Ledger;

/// Where the pipeline stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Draining { until: Instant },
    Closing,
}

/// What `--once` waits for.
#[derive(Debug, Default)]
pub(super) struct Finish {
    /// Where each partition ended when the run began; none for a run without end.
    pub(super) ends: Option<Vec<(TopicPartition, i64)>>,
    /// What other members of the group have told the broker.
    elsewhere: HashMap<TopicPartition, i64>,
    asked: Option<Instant>,
    /// A question is out.
    asking: bool,
}

impl Finish {
    pub(super) fn new(ends: Option<Vec<(TopicPartition, i64)>>) -> Self {
        Self { ends, ..Self::default() }
    }

    /// True once every record that was there at the start is durable.
    pub(super) fn is_reached<O, S>(&self, ledger: &Ledger<O, S>) -> bool {
        let Some(ends) = &self.ends else { return false };
        ends.iter().all(|(partition, end)| match ledger.position(partition) {
            Some(position) => position >= *end,
            None => *end == 0 || self.elsewhere.get(partition).is_some_and(|position| position >= end),
        })
    }

    /// True when all that was there at the start has been received and nothing is open: no use in waiting for more rows.
    pub(super) fn wants_commit<O, S>(&self, ledger: &Ledger<O, S>) -> bool {
        let Some(ends) = &self.ends else { return false };
        let read = |(partition, end): &(TopicPartition, i64)| {
            ledger.epoch(partition).is_none() || ledger.reading(partition).is_some_and(|next| next >= *end)
        };
        !ledger.has_open() && ends.iter().all(read)
    }

    /// Whether to ask the broker for the partitions of other members; at most once a second.
    pub(super) fn should_ask<O, S>(&mut self, ledger: &Ledger<O, S>, now: Instant) -> bool {
        let Some(ends) = &self.ends else { return false };
        let missing = ends.iter().any(|(partition, end)| {
            *end > 0
                && ledger.epoch(partition).is_none()
                && self.elsewhere.get(partition).is_none_or(|position| position < end)
        });
        if !missing || self.asking || self.asked.is_some_and(|asked| now < asked + Duration::from_secs(1)) {
            return false;
        }
        self.asked = Some(now);
        self.asking = true;
        true
    }

    pub(super) fn note_elsewhere(&mut self, positions: Vec<(TopicPartition, i64)>) {
        self.asking = false;
        self.elsewhere.extend(positions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Epoch;

    #[test]
    fn a_run_is_done_when_own_and_foreign_partitions_have_passed_their_ends() {
        let partition = |number| TopicPartition::new("assets", number);
        let mut ledger = Ledger::<(), ()>::default();
        let mut finish = Finish::new(Some(vec![(partition(0), 3), (partition(1), 5), (partition(2), 0)]));
        ledger.assign(partition(0), Epoch(1), Some(1));
        assert!(!finish.is_reached(&ledger));
        let ticket = ledger.open(&partition(0), Epoch(1), 2, ()).unwrap();
        assert!(!finish.wants_commit(&ledger));
        ledger.settle(&ticket, (), 0);
        assert!(finish.wants_commit(&ledger));
        ledger.release(9);
        ledger.committed(&partition(0), Epoch(1));
        assert!(!finish.is_reached(&ledger), "partition 1 belongs to another member");
        let now = Instant::now();
        assert!(finish.should_ask(&ledger, now));
        assert!(!finish.should_ask(&ledger, now));
        finish.note_elsewhere(vec![(partition(1), 5)]);
        assert!(finish.is_reached(&ledger));
        assert!(!finish.should_ask(&ledger, now + Duration::from_secs(2)));
    }
}
