//! One partition's part of the ledger, under one epoch.
//!
//! Entries stand in offset order. Invariant: entries before `ready` are settled, the entry at `ready` (if any) is
//! open, and everything up to `committed` (or up to `releasing`, while a commit is in flight) has left the queue.

use std::collections::VecDeque;

use crate::domain::Epoch;

/// A received record that no commit has taken yet.
#[derive(Debug)]
struct Entry<O, S> {
    offset: i64,
    slot: Slot<O, S>,
}

#[derive(Debug)]
enum Slot<O, S> {
    Open(O),
    Settled { value: S, weight: usize },
}

/// What a [`PartitionBook::settle`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Settled,
    NotOpen,
}

#[derive(Debug)]
pub(super) struct PartitionBook<O, S> {
    pub(super) epoch: Epoch,
    /// The last offset in the table; none when the table has nothing of this partition.
    pub(super) committed: Option<i64>,
    /// The last offset of the commit in flight.
    pub(super) releasing: Option<i64>,
    entries: VecDeque<Entry<O, S>>,
    /// How many entries from the front are settled without a gap.
    ready: usize,
    /// Sum of the weights of the ready entries.
    ready_weight: usize,
    /// The highest offset ever received in this epoch.
    received: Option<i64>,
    /// Where reading stands when the end was reached; may lie behind gaps.
    end: Option<i64>,
}

impl<O, S> PartitionBook<O, S> {
    pub(super) fn new(epoch: Epoch, committed: Option<i64>) -> Self {
        Self {
            epoch,
            committed,
            releasing: None,
            entries: VecDeque::new(),
            ready: 0,
            ready_weight: 0,
            received: committed,
            end: None,
        }
    }

    /// Takes in a record; false when its offset is not behind everything seen before.
    pub(super) fn open(&mut self, offset: i64, open: O) -> bool {
        if self.received.is_some_and(|received| offset <= received) {
            return false;
        }
        self.received = Some(offset);
        self.entries.push_back(Entry { offset, slot: Slot::Open(open) });
        true
    }

    pub(super) fn settle(&mut self, offset: i64, value: S, weight: usize) -> Found {
        let Ok(index) = self.entries.binary_search_by_key(&offset, |entry| entry.offset) else {
            return Found::NotOpen;
        };
        let entry = &mut self.entries[index];
        if !matches!(entry.slot, Slot::Open(_)) {
            return Found::NotOpen;
        }
        entry.slot = Slot::Settled { value, weight };
        while let Some(Entry { slot: Slot::Settled { weight, .. }, .. }) = self.entries.get(self.ready) {
            self.ready_weight += weight;
            self.ready += 1;
        }
        Found::Settled
    }

    pub(super) fn is_open(&self, offset: i64) -> bool {
        self.entries
            .binary_search_by_key(&offset, |entry| entry.offset)
            .is_ok_and(|index| matches!(self.entries[index].slot, Slot::Open(_)))
    }

    pub(super) fn end_reached(&mut self, next: i64) {
        self.end = self.end.max(Some(next));
    }

    pub(super) fn ready(&self) -> (usize, usize) {
        if self.releasing.is_some() { (0, 0) } else { (self.ready, self.ready_weight) }
    }

    pub(super) fn open_entries(&self) -> impl Iterator<Item = (i64, &O)> {
        self.entries.iter().skip(self.ready).filter_map(|entry| match &entry.slot {
            Slot::Open(open) => Some((entry.offset, open)),
            Slot::Settled { .. } => None,
        })
    }

    /// Hands out the ready prefix, at most `most` entries; empty while a commit is in flight or nothing is ready.
    pub(super) fn release(&mut self, most: usize) -> Vec<(i64, S)> {
        if self.releasing.is_some() {
            return Vec::new();
        }
        let count = self.ready.min(most);
        let mut released = Vec::with_capacity(count);
        for Entry { offset, slot } in self.entries.drain(..count) {
            if let Slot::Settled { value, weight } = slot {
                self.ready_weight -= weight;
                released.push((offset, value));
            }
        }
        self.ready -= count;
        self.releasing = released.last().map(|(offset, _)| *offset);
        released
    }

    /// The commit in flight is durable.
    pub(super) fn committed(&mut self) {
        if let Some(offset) = self.releasing.take() {
            self.committed = Some(offset);
        }
    }

    /// The next offset that is not yet durable: the first that was received, or where reading stands when there is none.
    pub(super) fn position(&self) -> Option<i64> {
        let behind_committed = self.committed.map(|offset| offset + 1);
        if self.releasing.is_some() {
            return behind_committed;
        }
        match self.entries.front() {
            Some(entry) => Some(entry.offset),
            None => behind_committed.max(self.end),
        }
    }

    /// The next offset that reading would bring.
    pub(super) fn reading(&self) -> Option<i64> {
        self.received.map(|offset| offset + 1).max(self.end)
    }

    pub(super) fn into_open(self) -> Vec<O> {
        let open = |entry: Entry<O, S>| match entry.slot {
            Slot::Open(open) => Some(open),
            Slot::Settled { .. } => None,
        };
        self.entries.into_iter().filter_map(open).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.releasing.is_none()
    }
}
