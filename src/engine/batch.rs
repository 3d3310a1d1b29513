//! Packing: which waiting items make the next batch, and when it is due.
//!
//! Pure: it knows no clock (time is an argument), no device and nothing of what it packs. Invariants: items leave in the
//! order in which they came, each exactly once and whole; a batch stays within the token budget unless it is one item
//! that is larger by itself; a batch is due no later than `max_wait` after its oldest item came, so nothing starves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

struct Waiting<T> {
    item: T,
    tokens: u32,
    arrived: Instant,
}

/// Items that wait for a batch.
pub struct Batcher<T> {
    budget: u32,
    max_wait: Duration,
    waiting: VecDeque<Waiting<T>>,
    tokens: u64,
}

impl<T> Batcher<T> {
    /// `budget` is the most tokens of a batch, `max_wait` the longest that an item waits for company.
    pub fn new(budget: u32, max_wait: Duration) -> Self {
        Self { budget, max_wait, waiting: VecDeque::new(), tokens: 0 }
    }

    pub fn push(&mut self, item: T, tokens: u32, arrived: Instant) {
        self.tokens += u64::from(tokens);
        self.waiting.push_back(Waiting { item, tokens, arrived });
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the next batch is due: `None` while nothing waits; a time not after `now` means at once.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        let oldest = self.waiting.front()?;
        let full = self.tokens >= u64::from(self.budget);
        Some(if full { now } else { oldest.arrived + self.max_wait })
    }

    /// Whether the next batch should run at `now`.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due_at(now).is_some_and(|due| due <= now)
    }

    /// Takes the next batch, due or not: the longest prefix within the budget, at least one item if any waits.
    pub fn take(&mut self) -> Vec<T> {
        let mut batch = Vec::new();
        let mut used = 0_u64;
        while let Some(next) = self.waiting.front() {
            let tokens = u64::from(next.tokens);
            if !batch.is_empty() && used + tokens > u64::from(self.budget) {
                break;
            }
            used += tokens;
            self.tokens -= tokens;
            batch.extend(self.waiting.pop_front().map(|waiting| waiting.item));
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_WAIT: Duration = Duration::from_millis(5);

    proptest! {
        #[test]
        fn every_item_leaves_once_in_order_and_within_the_budget(
            costs in prop::collection::vec(0_u32..300, 0..60),
            budget in 1_u32..200,
            takes in prop::collection::vec(any::<bool>(), 60),
        ) {
            let now = Instant::now();
            let mut batcher = Batcher::new(budget, MAX_WAIT);
            let mut left = Vec::new();
            let mut check = |batch: Vec<usize>| {
                let total: u32 = batch.iter().map(|item| costs[*item]).sum();
                prop_assert!(batch.len() == 1 || total <= budget, "{batch:?} costs {total}");
                left.extend(batch);
                Ok(())
            };
            for (item, cost) in costs.iter().enumerate() {
                batcher.push(item, *cost, now);
                if takes[item] {
                    check(batcher.take())?;
                }
            }
            while !batcher.is_empty() {
                let batch = batcher.take();
                prop_assert!(!batch.is_empty());
                check(batch)?;
            }
            prop_assert!(batcher.take().is_empty());
            prop_assert_eq!(left, (0..costs.len()).collect::<Vec<_>>());
        }

        #[test]
        fn a_batch_takes_all_that_fits(costs in prop::collection::vec(1_u32..50, 1..40), budget in 1_u32..200) {
            let now = Instant::now();
            let mut batcher = Batcher::new(budget, MAX_WAIT);
            costs.iter().enumerate().for_each(|(item, cost)| batcher.push(item, *cost, now));
            let batch = batcher.take();
            let total: u32 = batch.iter().map(|item| costs[*item]).sum();
            if let Some(next) = costs.get(batch.len()) {
                prop_assert!(total + next > budget);
            }
        }

        #[test]
        fn a_batch_is_due_when_full_or_when_its_oldest_item_has_waited(
            arrivals in prop::collection::vec((1_u32..100, 0_u64..20), 1..30),
            budget in 1_u32..400,
            later in 0_u64..30,
        ) {
            let start = Instant::now();
            let mut batcher = Batcher::new(budget, MAX_WAIT);
            let mut arrived = start;
            for (cost, pause) in &arrivals {
                arrived += Duration::from_millis(*pause);
                batcher.push((), *cost, arrived);
            }
            let oldest = start + Duration::from_millis(arrivals[0].1);
            let now = start + Duration::from_millis(later);
            let full = arrivals.iter().map(|(cost, _)| *cost).sum::<u32>() >= budget;
            prop_assert_eq!(batcher.is_due(now), full || now >= oldest + MAX_WAIT);
            prop_assert!(batcher.due_at(now).unwrap() <= now.max(oldest + MAX_WAIT));
        }
    }

    #[test]
    fn nothing_is_due_while_nothing_waits() {
        let mut batcher = Batcher::new(10, MAX_WAIT);
        assert_eq!(batcher.due_at(Instant::now()), None);
        batcher.push('a', 3, Instant::now());
        batcher.take();
        assert!(!batcher.is_due(Instant::now() + MAX_WAIT * 2));
    }
}
