//! The ledger of all assigned partitions.
//!
//! It knows offsets and epochs, not what an outcome is: `O` is what the caller keeps beside an open entry, `S` what it
//! settles one with. Invariants: an entry is settled at most once; a release is the contiguous settled prefix of what was
//! really received, so compaction gaps are no holes; one release per partition is in flight at a time; nothing of an
//! older epoch is ever released.

use std::collections::HashMap;

use crate::domain::{Epoch, TopicPartition};

use super::partition::{Found, PartitionBook};
use super::ticket::Ticket;

/// What became of a call to [`Ledger::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settling {
    Accepted,
    /// The partition is not ours any more, or under another epoch.
    Stale,
    /// The entry was settled before, or never opened.
    Repeated,
}

/// A contiguous prefix of one partition, to be written as `(from, to]`.
#[derive(Debug)]
pub struct Release<S> {
    pub partition: TopicPartition,
    pub epoch: Epoch,
    /// The last offset in the table before this release.
    pub from: Option<i64>,
    pub to: i64,
    /// In offset order.
    pub entries: Vec<(i64, S)>,
}

/// The books of all assigned partitions.
#[derive(Debug)]
pub struct Ledger<O, S> {
    partitions: HashMap<TopicPartition, PartitionBook<O, S>>,
}

impl<O, S> Default for Ledger<O, S> {
    fn default() -> Self {
        Self { partitions: HashMap::new() }
    }
}

impl<O, S> Ledger<O, S> {
    /// Starts a fresh book for a partition whose table ends at `committed`. What an older epoch left is forgotten.
    pub fn assign(&mut self, partition: TopicPartition, epoch: Epoch, committed: Option<i64>) {
        self.partitions.insert(partition, PartitionBook::new(epoch, committed));
    }

    /// Forgets a partition: open entries, settled ones and the release in flight. Late tickets become stale.
    /// Returns what was kept beside the open entries.
    pub fn fence(&mut self, partition: &TopicPartition) -> Vec<O> {
        self.partitions.remove(partition).map(PartitionBook::into_open).unwrap_or_default()
    }

    /// Takes in a record. None when the partition is under another epoch or the offset was seen before.
    pub fn open(&mut self, partition: &TopicPartition, epoch: Epoch, offset: i64, open: O) -> Option<Ticket> {
        let book = self.partitions.get_mut(partition).filter(|book| book.epoch == epoch)?;
        book.open(offset, open).then(|| Ticket { partition: partition.clone(), epoch, offset })
    }

    /// Ends an open entry; `weight` counts towards [`Self::ready`], in bytes.
    pub fn settle(&mut self, ticket: &Ticket, value: S, weight: usize) -> Settling {
        match self.partitions.get_mut(&ticket.partition).filter(|book| book.epoch == ticket.epoch) {
            None => Settling::Stale,
            Some(book) => match book.settle(ticket.offset, value, weight) {
                Found::Settled => Settling::Accepted,
                Found::NotOpen => Settling::Repeated,
            },
        }
    }

    pub fn is_open(&self, ticket: &Ticket) -> bool {
        self.partitions
            .get(&ticket.partition)
            .is_some_and(|book| book.epoch == ticket.epoch && book.is_open(ticket.offset))
    }

    /// Notes that all records before `next` were received.
    pub fn end_reached(&mut self, partition: &TopicPartition, epoch: Epoch, next: i64) {
        if let Some(book) = self.partitions.get_mut(partition).filter(|book| book.epoch == epoch) {
            book.end_reached(next);
        }
    }

    /// How many entries a release would hand out, and their weight in bytes.
    pub fn ready(&self) -> (usize, usize) {
        self.partitions
            .values()
            .map(PartitionBook::ready)
            .fold((0, 0), |(count, weight), (more, heavier)| (count + more, weight + heavier))
    }

    /// Hands out the ready prefix of every partition, at most about `most` entries in all, and marks it as in flight.
    pub fn release(&mut self, most: usize) -> Vec<Release<S>> {
        let mut left = most;
        let mut releases = Vec::new();
        for (partition, book) in &mut self.partitions {
            let entries = book.release(left);
            if let Some(to) = entries.last().map(|(offset, _)| *offset) {
                left -= entries.len();
                let (epoch, from) = (book.epoch, book.committed);
                releases.push(Release { partition: partition.clone(), epoch, from, to, entries });
            }
        }
        releases
    }

    /// The release in flight of this partition is durable.
    pub fn committed(&mut self, partition: &TopicPartition, epoch: Epoch) {
        if let Some(book) = self.partitions.get_mut(partition).filter(|book| book.epoch == epoch) {
            book.committed();
        }
    }

    /// The next offset of one partition that is not durable, as far as it is known.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.position()
    }

    /// The same for each partition.
    pub fn positions(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        self.partitions.iter().filter_map(|(partition, book)| Some((partition, book.position()?)))
    }

    /// The next offset that reading would bring, as far as it is known.
    pub fn reading(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.reading()
    }

    /// Every open entry.
    pub fn open_entries(&self) -> impl Iterator<Item = (Ticket, &O)> {
        self.partitions.iter().flat_map(|(partition, book)| {
            book.open_entries()
                .map(|(offset, open)| (Ticket { partition: partition.clone(), epoch: book.epoch, offset }, open))
        })
    }

    /// The epoch of a partition, while it is assigned.
    pub fn epoch(&self, partition: &TopicPartition) -> Option<Epoch> {
        self.partitions.get(partition).map(|book| book.epoch)
    }

    /// Nothing is open, ready or in flight.
    pub fn is_idle(&self) -> bool {
        self.partitions.values().all(PartitionBook::is_idle)
    }

    /// Whether any entry is still open.
    pub fn has_open(&self) -> bool {
        self.partitions.values().any(|book| book.open_entries().next().is_some())
    }

    /// Whether a release is in flight for this partition.
    pub fn is_releasing(&self, partition: &TopicPartition) -> bool {
        self.partitions.get(partition).is_some_and(|book| book.releasing.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("assets", number)
    }

    #[test]
    fn only_the_contiguous_settled_prefix_is_released() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), Epoch(1), None);
        let tickets: Vec<_> = [3, 7, 8].map(|offset| ledger.open(&partition(0), Epoch(1), offset, ()).unwrap()).into();
        ledger.settle(&tickets[1], "b", 1);
        assert!(ledger.release(10).is_empty());
        ledger.settle(&tickets[0], "a", 1);
        let releases = ledger.release(10);
        assert_eq!(releases[0].entries, vec![(3, "a"), (7, "b")]);
        assert_eq!((releases[0].from, releases[0].to), (None, 7));
        ledger.settle(&tickets[2], "c", 1);
        assert!(ledger.release(10).is_empty(), "one release per partition is in flight");
        ledger.committed(&partition(0), Epoch(1));
        assert_eq!(ledger.release(10)[0].from, Some(7));
    }

    #[test]
    fn the_position_lies_behind_gaps_once_everything_is_durable() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), Epoch(1), Some(4));
        assert_eq!(ledger.positions().next(), Some((&partition(0), 5)));
        let ticket = ledger.open(&partition(0), Epoch(1), 9, ()).unwrap();
        assert_eq!(ledger.positions().next(), Some((&partition(0), 9)), "5 to 8 were never there");
        ledger.end_reached(&partition(0), Epoch(1), 12);
        ledger.settle(&ticket, (), 0);
        ledger.release(10);
        assert_eq!(ledger.positions().next(), Some((&partition(0), 5)), "nothing is durable while in flight");
        ledger.committed(&partition(0), Epoch(1));
        assert_eq!(ledger.positions().next(), Some((&partition(0), 12)));
    }

    #[test]
    fn tickets_of_an_older_epoch_are_stale() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), Epoch(1), None);
        let ticket = ledger.open(&partition(0), Epoch(1), 0, ()).unwrap();
        ledger.fence(&partition(0));
        assert_eq!(ledger.settle(&ticket, (), 0), Settling::Stale);
        ledger.assign(partition(0), Epoch(2), None);
        assert_eq!(ledger.settle(&ticket, (), 0), Settling::Stale);
        assert!(ledger.open(&partition(0), Epoch(1), 5, ()).is_none());
        assert!(ledger.is_idle());
    }

    #[test]
    fn an_offset_is_taken_in_once() {
        let mut ledger = Ledger::<(), ()>::default();
        ledger.assign(partition(0), Epoch(1), Some(10));
        assert!(ledger.open(&partition(0), Epoch(1), 10, ()).is_none());
        assert!(ledger.open(&partition(0), Epoch(1), 11, ()).is_some());
        assert!(ledger.open(&partition(0), Epoch(1), 11, ()).is_none());
    }

    /// One step of a random history.
    #[derive(Debug, Clone)]
    enum Step {
        Receive { partition: i32, gap: i64 },
        Settle { pick: usize },
        SettleAgain { pick: usize },
        Release { most: usize },
        Commit,
        LoseCommit,
        Fence { partition: i32 },
        Assign { partition: i32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3, 1..4_i64).prop_map(|(partition, gap)| Step::Receive { partition, gap }),
            6 => any::<usize>().prop_map(|pick| Step::Settle { pick }),
            1 => any::<usize>().prop_map(|pick| Step::SettleAgain { pick }),
            2 => (1..6_usize).prop_map(|most| Step::Release { most }),
            2 => Just(Step::Commit),
            1 => Just(Step::LoseCommit),
            1 => (0..3).prop_map(|partition| Step::Fence { partition }),
            1 => (0..3).prop_map(|partition| Step::Assign { partition }),
        ]
    }

    /// A broker, a table and a worker around the ledger, as simple as can be.
    #[derive(Default)]
    struct World {
        ledger: Ledger<(), i64>,
        epoch: Epoch,
        /// Every offset that exists, by partition; a worker always receives the first one behind where it stands.
        log: BTreeMap<i32, Vec<i64>>,
        reading: BTreeMap<i32, usize>,
        table: BTreeMap<i32, Vec<i64>>,
        tickets: Vec<Ticket>,
        in_flight: Vec<Release<i64>>,
    }

    impl World {
        fn table_end(&self, partition: i32) -> Option<i64> {
            self.table.get(&partition).and_then(|rows| rows.last().copied())
        }

        fn assign(&mut self, number: i32) {
            self.epoch = self.epoch.next();
            let committed = self.table_end(number);
            self.in_flight.retain(|release| release.partition != partition(number));
            self.ledger.assign(partition(number), self.epoch, committed);
            let log = self.log.entry(number).or_default();
            self.reading.insert(number, log.partition_point(|offset| Some(*offset) <= committed));
        }

        fn receive(&mut self, number: i32, gap: i64) {
            let Some(epoch) = self.ledger.epoch(&partition(number)) else { return };
            let log = self.log.entry(number).or_default();
            let reading = self.reading.entry(number).or_default();
            if *reading == log.len() {
                log.push(log.last().map_or(0, |last| last + gap));
            }
            let ticket = self.ledger.open(&partition(number), epoch, log[*reading], ()).expect("a new offset opens");
            *reading += 1;
            self.tickets.push(ticket);
        }

        fn settle(&mut self, pick: usize, again: bool) {
            if self.tickets.is_empty() {
                return;
            }
            let ticket = self.tickets[pick % self.tickets.len()].clone();
            let was_open = self.ledger.is_open(&ticket);
            let settling = self.ledger.settle(&ticket, ticket.offset, 1);
            assert_eq!(settling == Settling::Accepted, was_open, "exactly the open entries are accepted");
            if again {
                assert_ne!(self.ledger.settle(&ticket, ticket.offset, 1), Settling::Accepted);
            }
        }

        fn release(&mut self, most: usize) {
            for release in self.ledger.release(most) {
                let number = release.partition.partition;
                assert_eq!(release.from, self.table_end(number), "a release begins where the table ends");
                assert_eq!(Some(release.epoch), self.ledger.epoch(&release.partition));
                let log = &self.log[&number];
                let first = log.partition_point(|offset| Some(*offset) <= release.from);
                let offsets: Vec<_> = release.entries.iter().map(|(offset, _)| *offset).collect();
                assert_eq!(&log[first..first + offsets.len()], &offsets[..], "no hole and no repetition");
                self.in_flight.push(release);
            }
        }

        fn commit(&mut self) {
            for release in std::mem::take(&mut self.in_flight) {
                let rows = self.table.entry(release.partition.partition).or_default();
                rows.extend(release.entries.iter().map(|(_, value)| *value));
                self.ledger.committed(&release.partition, release.epoch);
            }
        }
    }

    proptest! {
        #[test]
        fn any_interleaving_keeps_the_table_a_prefix_of_the_log(steps in prop::collection::vec(step(), 1..200)) {
            let mut world = World::default();
            for number in 0..3 {
                world.assign(number);
            }
            for step in steps {
                match step {
                    Step::Receive { partition, gap } => world.receive(partition, gap),
                    Step::Settle { pick } => world.settle(pick, false),
                    Step::SettleAgain { pick } => world.settle(pick, true),
                    Step::Release { most } => world.release(most),
                    Step::Commit => world.commit(),
                    Step::LoseCommit => {
                        let lost: BTreeSet<_> =
                            world.in_flight.drain(..).map(|release| release.partition.partition).collect();
                        lost.into_iter().for_each(|number| world.assign(number));
                    }
                    Step::Fence { partition: number } => {
                        world.ledger.fence(&partition(number));
                        world.in_flight.retain(|release| release.partition != partition(number));
                    }
                    Step::Assign { partition } => world.assign(partition),
                }
                for (number, rows) in &world.table {
                    prop_assert_eq!(&world.log[number][..rows.len()], &rows[..]);
                }
                for (at, position) in world.ledger.positions() {
                    prop_assert!(Some(position) > world.table_end(at.partition));
                }
                let (ready, weight) = world.ledger.ready();
                prop_assert_eq!(ready, weight, "every entry of this history weighs one");
            }
        }
    }
}
