//! The scheduler: which tokens of which sequences the next forward pass computes.
//!
//! Continuous batching after Orca (Yu et al., 2022), a paged cache with preemption by recomputation after vLLM (Kwon et al.,
//! 2023), and prefill in chunks beside decodes after Sarathi-Serve (Agrawal et al., 2024). It knows no model, no device, no
//! text and no clock: time is an argument. Invariants: a running sequence holds blocks for all its tokens when its part is
//! planned; a waiting one holds none; the oldest running sequence is never preempted, and has room to its end once it is
//! alone; sequences begin in order of arrival, except that one may wait for another to compute a prefix that both have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use super::prefix_claims::PrefixClaims;
use super::sequence::{NewSequence, Sequence, SequenceId, blocks_for};
use crate::kv::{BLOCK, BlockPool};

/// Limits of a [`Scheduler`], each at least 1.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens of one step.
    pub step_tokens: usize,
    /// Tokens of one sequence in one step.
    pub prefill_chunk: usize,
    /// Sequences that run together; 1 turns batching off.
    pub max_running: usize,
    /// Positions that the model can tell apart.
    pub context: usize,
    /// Whether sequences share the blocks of equal prefixes.
    pub share: bool,
}

/// Why a sequence can never run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the prompt has no tokens")]
    Empty,
    #[error("a prompt of {prompt} tokens and up to {max_new} new ones do not fit the model's context of {context}")]
    Context { prompt: usize, max_new: usize, context: usize },
    #[error(
        "a prompt of {prompt} tokens and up to {max_new} new ones take {needed} cache blocks of {BLOCK} tokens; \
         the cache has {blocks}"
    )]
    Cache { prompt: usize, max_new: usize, needed: usize, blocks: usize },
}

/// One sequence's part of a step: tokens `start..start + count` of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub id: SequenceId,
    /// Tokens of it that are in the cache already.
    pub start: usize,
    /// At least 1.
    pub count: usize,
}

impl Part {
    /// The tokens to compute.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.count
    }
}

/// What the next step computes, and what became of others meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each sequence at most once; decodes first.
    pub parts: Vec<Part>,
    /// Their deadline has passed; they are gone.
    pub expired: Vec<SequenceId>,
    /// Gave their blocks to older ones; they wait to begin again, with all their tokens.
    pub preempted: Vec<SequenceId>,
}

/// Owns all sequences and the blocks of the cache.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    next_id: u64,
    running: BTreeMap<SequenceId, Sequence>,
    waiting: BTreeMap<SequenceId, Sequence>,
    /// Those of `waiting` that may begin; the others wait for a claimed prefix.
    ready: BTreeSet<SequenceId>,
    claims: PrefixClaims,
    deadlines: BTreeSet<(Instant, SequenceId)>,
    cancelled: Vec<SequenceId>,
}

/// A sequence with so few pending tokens goes before those with more: a sampled token, a run of forced ones, or the rest of
/// a prompt.
const DECODE_TOKENS: usize = BLOCK;

impl Scheduler {
    /// Schedules over a cache of so many blocks.
    pub fn new(limits: Limits, blocks: usize) -> Self {
        Self {
            limits,
            pool: BlockPool::new(blocks),
            next_id: 0,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ready: BTreeSet::new(),
            claims: PrefixClaims::default(),
            deadlines: BTreeSet::new(),
            cancelled: Vec::new(),
        }
    }

    /// Takes in a sequence, behind all others. Fails when it could not run to its end even alone.
    pub fn submit(&mut self, new: NewSequence) -> Result<SequenceId, SubmitError> {
        self.check(&new)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.deadlines.extend(new.deadline.map(|deadline| (deadline, id)));
        self.waiting.insert(id, Sequence::new(id, new, self.limits.share));
        self.ready.insert(id);
        Ok(id)
    }

    /// Plans the next step. Run it and call [`Self::complete`]; when it failed, plan again without, and the same tokens
    /// come again. Empty parts mean that nothing waits or that all who run have nothing to compute.
    pub fn plan(&mut self, now: Instant) -> Plan {
        for id in std::mem::take(&mut self.cancelled) {
            self.finish(id);
        }
        let expired = self.expire(now);
        let preempted = self.grow_running();
        let mut parts = Vec::with_capacity(self.running.len());
        let mut left = self.limits.step_tokens;
        for decodes in [true, false] {
            let is_due = |sequence: &&Sequence| (sequence.pending() <= DECODE_TOKENS) == decodes;
            for sequence in self.running.values().filter(is_due) {
                self.serve(sequence, &mut left, &mut parts);
            }
        }
        while left > 0 && self.running.len() < self.limits.max_running {
            let Some(id) = self.begin_next() else { break };
            self.serve(&self.running[&id], &mut left, &mut parts);
        }
        Plan { parts, expired, preempted }
    }

    /// The step of this plan was computed: the keys and values of its tokens are in the cache.
    pub fn complete(&mut self, plan: &Plan) {
        for part in &plan.parts {
            let sequence = self.running.get_mut(&part.id).filter(|sequence| sequence.computed() == part.start);
            let Some(sequence) = sequence else { continue };
            for (block, key) in sequence.advance(part.count) {
                self.pool.publish(block, key);
                let waited = self.claims.computed(&key);
                self.ready.extend(waited.into_iter().filter(|id| self.waiting.contains_key(id)));
            }
        }
    }

    /// Adds sampled or forced tokens, as many as `max_new` leaves room for. Returns how many; 0 for a sequence that is gone.
    pub fn extend(&mut self, id: SequenceId, tokens: &[u32]) -> usize {
        let sequence = self.running.get_mut(&id).or_else(|| self.waiting.get_mut(&id));
        sequence.map_or(0, |sequence| sequence.extend(tokens))
    }

    /// Ends a sequence, wherever it stands, and frees its blocks.
    pub fn finish(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = match self.running.remove(&id) {
            Some(mut sequence) => {
                self.stop(&mut sequence);
                sequence
            }
            None => self.waiting.remove(&id)?,
        };
        self.ready.remove(&id);
        if let Some(deadline) = sequence.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        Some(sequence)
    }

    /// Ends a sequence with the next plan, so that a step under way still finds its blocks.
    pub fn cancel(&mut self, id: SequenceId) {
        self.cancelled.push(id);
    }

    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.get(&id).or_else(|| self.waiting.get(&id))
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that have not begun, or have to begin again.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    fn check(&self, new: &NewSequence) -> Result<(), SubmitError> {
        let (prompt, max_new, context) = (new.tokens.len(), new.max_new, self.limits.context);
        let most = prompt.saturating_add(max_new);
        let (needed, blocks) = (blocks_for(most), self.pool.total());
        match () {
            () if prompt == 0 => Err(SubmitError::Empty),
            () if most > context => Err(SubmitError::Context { prompt, max_new, context }),
            () if needed > blocks => Err(SubmitError::Cache { prompt, max_new, needed, blocks }),
            () => Ok(()),
        }
    }

    fn expire(&mut self, now: Instant) -> Vec<SequenceId> {
        let mut expired = Vec::new();
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            self.finish(id);
            expired.push(id);
        }
        expired
    }

    /// Gives every running sequence blocks for all its tokens, the oldest first; the youngest pay for it.
    fn grow_running(&mut self) -> Vec<SequenceId> {
        let short = |sequence: &&Sequence| sequence.missing_blocks() > 0;
        let short: Vec<SequenceId> = self.running.values().filter(short).map(Sequence::id).collect();
        let mut preempted = Vec::new();
        for id in short {
            // Gone once it had to give way itself, being the youngest.
            while let Some(sequence) = self.running.get_mut(&id) {
                if let Some(blocks) = self.pool.take(sequence.missing_blocks()) {
                    sequence.grow(blocks);
                    break;
                }
                preempted.extend(self.preempt_youngest());
            }
        }
        preempted
    }

    fn preempt_youngest(&mut self) -> Option<SequenceId> {
        let (id, mut sequence) = self.running.pop_last()?;
        self.stop(&mut sequence);
        self.waiting.insert(id, sequence);
        self.ready.insert(id);
        Some(id)
    }

    /// Frees the blocks of a sequence that does not run any more.
    fn stop(&mut self, sequence: &mut Sequence) {
        let waited = self.claims.abandon(sequence.id(), sequence.uncomputed_keys());
        self.ready.extend(waited.into_iter().filter(|id| self.waiting.contains_key(id)));
        // Last block first: a block is found only through those before it, so these are to be evicted later.
        sequence.reset().into_iter().rev().for_each(|block| self.pool.release(block));
    }

    /// Plans a sequence's next tokens, as far as the step has room.
    fn serve(&self, sequence: &Sequence, left: &mut usize, parts: &mut Vec<Part>) {
        let count = sequence.pending().min(self.limits.prefill_chunk).min(*left);
        if count > 0 {
            *left -= count;
            parts.push(Part { id: sequence.id(), start: sequence.computed(), count });
        }
    }

    /// Lets the oldest sequence begin that need not wait for another's prefix. None when none is left or the oldest finds
    /// too few blocks: younger ones do not overtake it then.
    fn begin_next(&mut self) -> Option<SequenceId> {
        loop {
            let id = *self.ready.first()?;
            let sequence = &self.waiting[&id];
            let keys = sequence.keys();
            let found: Vec<u32> = keys.iter().map_while(|key| self.pool.holders(key)).collect();
            if let Some(key) = self.claims.awaited(&keys[found.len()..]) {
                self.ready.remove(&id);
                self.claims.wait(id, &key);
                continue;
            }
            let lacking = sequence.missing_blocks() - found.len();
            let idle = found.iter().filter(|holders| **holders == 0).count();
            // One block more for each who runs: else the next one to grow would take this one's blocks away again.
            let fits = lacking + idle + self.running.len() <= self.pool.available();
            return fits.then(|| self.begin(id, found.len(), lacking));
        }
    }

    /// Moves a sequence to those that run, with its first `shared` blocks from the cache and `lacking` new ones.
    fn begin(&mut self, id: SequenceId, shared: usize, lacking: usize) -> SequenceId {
        self.ready.remove(&id);
        let mut sequence = self.waiting.remove(&id).expect("a sequence that is ready waits");
        sequence.begin(sequence.keys()[..shared].iter().filter_map(|key| self.pool.share(key)).collect());
        sequence.grow(self.pool.take(lacking).expect("the available blocks were counted before"));
        self.claims.claim(id, sequence.uncomputed_keys());
        self.running.insert(id, sequence);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::sequence::SequencePicture;
    use super::*;
    use crate::kv::BlockId;

    const LIMITS: Limits =
        Limits { step_tokens: 64, prefill_chunk: usize::MAX, max_running: 16, context: 4096, share: true };

    fn prompt(tokens: impl IntoIterator<Item = u32>, max_new: usize) -> NewSequence {
        let tokens = tokens.into_iter().collect();
        NewSequence { tokens, pictures: Vec::new(), max_new, shareable: None, deadline: None }
    }

    /// An instruction of so many tokens, then what only this asset has.
    fn asset(number: u32, instruction: u32, own: u32) -> NewSequence {
        prompt((0..instruction).chain((0..own).map(|token| 1_000_000 + number * 1_000 + token)), 4)
    }

    /// What stands for the keys and values of each position: a digest of all that they depend on.
    fn digests(before: u64, from: usize, tokens: &[u32], pictures: &[SequencePicture]) -> Vec<u64> {
        let mut digest = before;
        let step = |(index, token): (usize, &u32)| {
            let mut hasher = DefaultHasher::new();
            (digest, token).hash(&mut hasher);
            for picture in pictures {
                let places = picture.places.iter().cloned().flatten();
                places.enumerate().filter(|(_, place)| *place == from + index).for_each(|(row, _)| {
                    (picture.hash, row).hash(&mut hasher);
                });
            }
            digest = hasher.finish();
            digest
        };
        tokens.iter().enumerate().map(step).collect()
    }

    /// A device, a sampler and a client around the scheduler, as simple as can be.
    struct World {
        scheduler: Scheduler,
        now: Instant,
        /// What was last written to each slot of the cache.
        cache: Vec<[u64; BLOCK]>,
        /// What the cache should hold for each sequence that has not ended.
        expected: HashMap<SequenceId, Vec<u64>>,
        computed_tokens: usize,
        steps: usize,
        preemptions: usize,
        sampled: u32,
        finished: Vec<Sequence>,
    }

    impl World {
        fn new(limits: Limits, blocks: usize) -> Self {
            Self {
                scheduler: Scheduler::new(limits, blocks),
                now: Instant::now(),
                cache: vec![[0; BLOCK]; blocks],
                expected: HashMap::new(),
                computed_tokens: 0,
                steps: 0,
                preemptions: 0,
                sampled: 0,
                finished: Vec::new(),
            }
        }

        fn submit(&mut self, new: NewSequence) -> Result<SequenceId, SubmitError> {
            let expected = digests(0, 0, &new.tokens, &new.pictures);
            let id = self.scheduler.submit(new)?;
            self.expected.insert(id, expected);
            Ok(id)
        }

        fn submit_assets(&mut self, count: u32, instruction: u32, own: u32) -> Vec<SequenceId> {
            (0..count).map(|number| self.submit(asset(number, instruction, own)).unwrap()).collect()
        }

        /// Plans a step, computes it, and adds a token to each sequence that is due one or ends it.
        fn step(&mut self) -> Plan {
            let oldest = self.scheduler.running.keys().copied().collect::<Vec<_>>();
            let plan = self.scheduler.plan(self.now);
            self.steps += 1;
            self.now += Duration::from_millis(1);
            self.preemptions += plan.preempted.len();
            self.expected.retain(|id, _| self.scheduler.sequence(*id).is_some());
            let oldest = oldest.into_iter().find(|id| self.scheduler.sequence(*id).is_some());
            assert!(
                oldest.is_none_or(|oldest| self.scheduler.running.contains_key(&oldest)),
                "the oldest is preempted"
            );
            self.check_plan(&plan);
            self.compute(&plan);
            self.scheduler.complete(&plan);
            self.check_blocks();
            for part in &plan.parts {
                if self.scheduler.running[&part.id].pending() == 0 {
                    self.sample(part.id);
                }
            }
            plan
        }

        fn check_plan(&self, plan: &Plan) {
            let Limits { step_tokens, prefill_chunk, max_running, .. } = self.scheduler.limits;
            assert!(plan.parts.iter().map(|part| part.count).sum::<usize>() <= step_tokens, "over the budget");
            assert!(plan.parts.iter().all(|part| (1..=prefill_chunk).contains(&part.count)));
            assert_eq!(plan.parts.iter().map(|part| part.id).collect::<HashSet<_>>().len(), plan.parts.len());
            assert!(self.scheduler.running() <= max_running);
            assert!(self.scheduler.is_empty() || !plan.parts.is_empty(), "nothing moves");
            assert!(self.scheduler.waiting.values().all(|sequence| sequence.blocks().is_empty()));
        }

        /// Every token reads from the cache what its own sequence's earlier tokens left there.
        fn compute(&mut self, plan: &Plan) {
            for part in &plan.parts {
                assert_eq!(part.start, self.scheduler.running[&part.id].computed());
                self.check_cache(part.id, part.start);
                let table = self.scheduler.running[&part.id].blocks();
                for position in part.range() {
                    let BlockId(block) = table[position / BLOCK];
                    self.cache[block as usize][position % BLOCK] = self.expected[&part.id][position];
                }
                self.computed_tokens += part.count;
            }
            plan.parts.iter().for_each(|part| self.check_cache(part.id, part.range().end));
        }

        fn check_cache(&self, id: SequenceId, until: usize) {
            let table = self.scheduler.running[&id].blocks();
            for (position, expected) in self.expected[&id][..until].iter().enumerate() {
                let cached = self.cache[table[position / BLOCK].0 as usize][position % BLOCK];
                assert_eq!(cached, *expected, "{id:?} reads something else at {position}");
            }
        }

        /// A block is in one table, or in several as the same full block of an equal prefix.
        fn check_blocks(&self) {
            let mut places: HashMap<BlockId, (usize, u64)> = HashMap::new();
            for (id, sequence) in &self.scheduler.running {
                for (index, block) in sequence.blocks().iter().enumerate() {
                    let end = (index + 1) * BLOCK;
                    let digest = if end <= sequence.computed() { self.expected[id][end - 1] } else { id.0 };
                    let first = *places.entry(*block).or_insert((index, digest));
                    assert_eq!(first, (index, digest), "{block:?} is given twice");
                }
            }
            assert_eq!(self.scheduler.pool.held(), places.len(), "held blocks are those in the tables");
        }

        fn sample(&mut self, id: SequenceId) {
            self.sampled += 1;
            let sequence = &self.scheduler.running[&id];
            // Now and then a grammar forces a run of tokens.
            let count = if self.sampled.is_multiple_of(5) { self.sampled % 40 } else { 1 };
            let tokens = vec![self.sampled; count.max(1) as usize];
            if sequence.room() == 0 {
                self.finish(id);
                return;
            }
            let length = sequence.tokens().len();
            let added = self.scheduler.extend(id, &tokens);
            assert_eq!(added, tokens.len().min(added + self.scheduler.running[&id].room()));
            let expected = self.expected.get_mut(&id).unwrap();
            let last = *expected.last().unwrap();
            expected.extend(digests(last, length, &tokens[..added], &[]));
        }

        fn finish(&mut self, id: SequenceId) {
            self.expected.remove(&id);
            self.finished.extend(self.scheduler.finish(id));
        }

        /// Steps until nothing is left.
        fn drain(&mut self) {
            let tokens: usize = self.scheduler.running.values().chain(self.scheduler.waiting.values()).map(most).sum();
            // Each token alone in a step, each sequence begun again for each token: far more than any fair schedule needs.
            let bound = self.steps + 100 + 50 * tokens;
            while !self.scheduler.is_empty() {
                self.step();
                assert!(self.steps < bound, "{} sequences never end", self.expected.len());
            }
            assert_eq!(self.scheduler.pool.held(), 0, "blocks are lost");
            assert_eq!(self.scheduler.pool.available(), self.scheduler.pool.total());
            assert!(self.scheduler.deadlines.is_empty() && self.scheduler.ready.is_empty());
            assert_eq!(format!("{:?}", self.scheduler.claims), format!("{:?}", PrefixClaims::default()));
        }
    }

    fn most(sequence: &Sequence) -> usize {
        sequence.tokens().len() + sequence.room()
    }

    #[test]
    fn a_prefix_that_many_share_is_computed_once_even_when_they_arrive_together() {
        for (prefill_chunk, step_tokens) in [(usize::MAX, 4096), (48, 64), (7, 16)] {
            let mut world = World::new(Limits { step_tokens, prefill_chunk, max_running: 64, ..LIMITS }, 4096);
            world.submit_assets(64, 320, 20);
            world.drain();
            assert_eq!(world.computed_tokens, 320 + 64 * (20 + 4), "steps of {step_tokens}");
            assert_eq!(world.scheduler.pool.hits(), 63 * 20);
        }
    }

    #[test]
    fn without_sharing_every_token_is_computed() {
        let mut world = World::new(Limits { share: false, ..LIMITS }, 4096);
        world.submit_assets(8, 320, 20);
        world.drain();
        assert_eq!(world.computed_tokens, 8 * (320 + 20 + 4));
    }

    #[test]
    fn a_prefix_is_still_found_after_its_sequence_ended() {
        let mut world = World::new(LIMITS, 100);
        world.submit(asset(0, 320, 20)).unwrap();
        world.drain();
        let before = world.computed_tokens;
        world.submit(asset(1, 320, 20)).unwrap();
        world.drain();
        assert_eq!(world.computed_tokens - before, 24);
    }

    #[test]
    fn only_the_shareable_tokens_come_from_the_cache() {
        let mut world = World::new(LIMITS, 100);
        world.submit(asset(0, 320, 20)).unwrap();
        world.drain();
        let before = world.computed_tokens;
        world.submit(NewSequence { shareable: Some(100), ..asset(0, 320, 20) }).unwrap();
        world.drain();
        assert_eq!(world.computed_tokens - before, 340 - 96 + 4);
    }

    #[test]
    fn equal_tokens_with_different_pictures_share_only_what_comes_before_the_picture() {
        let mut world = World::new(LIMITS, 100);
        for hash in [[1; 32], [2; 32], [1; 32]] {
            let pictures = vec![SequencePicture { hash, places: vec![40..60, 60..140] }];
            world.submit(NewSequence { pictures, ..asset(0, 180, 0) }).unwrap();
        }
        world.drain();
        let repeated = 180 - 176;
        assert_eq!(world.computed_tokens, 180 + (180 - 32) + repeated + 3 * 4);
    }

    #[test]
    fn when_the_one_that_computes_a_prefix_is_cancelled_the_next_one_does() {
        let mut world = World::new(LIMITS, 100);
        let ids = world.submit_assets(3, 320, 20);
        assert_eq!(world.step().parts, [Part { id: ids[0], start: 0, count: 64 }]);
        world.scheduler.cancel(ids[0]);
        assert!(world.scheduler.sequence(ids[0]).is_some(), "a step under way finds it");
        assert_eq!(world.step().parts, [Part { id: ids[1], start: 64, count: 64 }]);
        assert!(world.scheduler.sequence(ids[0]).is_none());
        world.drain();
        assert_eq!(world.finished.len(), 2);
    }

    #[test]
    fn decodes_come_before_prefills_and_prefills_in_chunks() {
        let mut world = World::new(Limits { prefill_chunk: 40, ..LIMITS }, 100);
        let long = world.submit(prompt(0..100, 4)).unwrap();
        let short = world.submit(prompt(500..510, 4)).unwrap();
        let first = world.step().parts;
        assert_eq!(first, [Part { id: long, start: 0, count: 40 }, Part { id: short, start: 0, count: 10 }]);
        let second = world.step().parts;
        assert_eq!(second, [Part { id: short, start: 10, count: 1 }, Part { id: long, start: 40, count: 40 }]);
    }

    #[test]
    fn the_youngest_gives_its_blocks_to_the_oldest_and_begins_again_with_its_tokens() {
        let mut world = World::new(LIMITS, 6);
        let old = world.submit(prompt(0..16, 60)).unwrap();
        let young = world.submit(prompt(100..140, 20)).unwrap();
        while world.preemptions == 0 {
            world.step();
        }
        assert!(world.scheduler.running.contains_key(&old) && world.scheduler.waiting.contains_key(&young));
        let kept = world.scheduler.sequence(young).unwrap();
        assert!(!kept.generated().is_empty() && kept.computed() == 0);
        let kept = kept.tokens().to_vec();
        world.drain();
        let young = world.finished.iter().find(|sequence| sequence.id() == young).unwrap();
        assert_eq!((&young.tokens()[..kept.len()], young.generated().len()), (&kept[..], 20));
    }

    #[test]
    fn a_big_one_is_not_overtaken_by_small_ones_behind_it() {
        let mut world = World::new(LIMITS, 8);
        let running = world.submit(prompt(0..64, 10)).unwrap();
        world.step();
        let big = world.submit(prompt(100..196, 10)).unwrap();
        let small = world.submit(prompt(300..302, 2)).unwrap();
        while world.scheduler.sequence(running).is_some() {
            assert_eq!(world.scheduler.running(), 1);
            world.step();
        }
        let begun: Vec<_> = world.step().parts.iter().map(|part| part.id).collect();
        assert_eq!(begun[0], big);
        world.drain();
        assert_eq!(world.finished.iter().filter(|sequence| sequence.id() == small).count(), 1);
    }

    #[test]
    fn an_old_long_prompt_ends_under_a_steady_stream_of_short_ones() {
        let mut world = World::new(Limits { step_tokens: 16, ..LIMITS }, 200);
        let long = world.submit(prompt(0..1000, 10)).unwrap();
        let mut arrivals = 0;
        while world.scheduler.sequence(long).is_some() {
            for _ in 0..3 {
                arrivals += 1;
                world.submit(prompt((0..4).map(|token| 10_000 + arrivals * 4 + token), 6)).unwrap();
            }
            world.step();
            assert!(world.steps < 1000, "the long prompt starves");
        }
    }

    #[test]
    fn with_one_running_sequence_they_take_turns_in_order_of_arrival() {
        let mut world = World::new(Limits { max_running: 1, ..LIMITS }, 100);
        world.submit_assets(5, 100, 20);
        world.drain();
        assert!(world.finished.is_sorted_by_key(Sequence::id));
        assert_eq!(world.computed_tokens, 120 + 4 + 4 * (120 - 96 + 4), "prefixes are found all the same");
    }

    #[test]
    fn whoever_is_late_is_gone_with_its_blocks() {
        let mut world = World::new(LIMITS, 100);
        let deadline = Some(world.now + Duration::from_millis(2));
        let late: Vec<_> =
            (0..20).map(|_| world.submit(NewSequence { deadline, ..prompt(0..200, 50) }).unwrap()).collect();
        let patient = world.submit(prompt(0..200, 50)).unwrap();
        assert!(world.step().expired.is_empty() && world.step().expired.is_empty());
        assert_eq!(world.step().expired, late);
        assert_eq!((world.scheduler.running(), world.scheduler.sequence(patient).is_some()), (1, true));
        world.drain();
    }

    #[test]
    fn a_step_that_failed_is_planned_again() {
        let mut world = World::new(LIMITS, 100);
        world.submit_assets(3, 0, 20);
        let failed = world.scheduler.plan(world.now);
        assert_eq!(world.scheduler.plan(world.now).parts, failed.parts);
        world.drain();
    }

    #[test]
    fn what_can_never_fit_is_refused_with_its_numbers() {
        let mut scheduler = Scheduler::new(LIMITS, 100);
        assert_eq!(scheduler.submit(prompt([], 4)), Err(SubmitError::Empty));
        let error = scheduler.submit(prompt(0..4000, 97)).unwrap_err();
        assert_eq!(error, SubmitError::Context { prompt: 4000, max_new: 97, context: 4096 });
        let error = scheduler.submit(prompt(0..1500, 101)).unwrap_err();
        assert_eq!(error, SubmitError::Cache { prompt: 1500, max_new: 101, needed: 101, blocks: 100 });
        assert!(error.to_string().contains("101 cache blocks of 16 tokens; the cache has 100"));
        assert!(matches!(scheduler.submit(prompt(0..4, usize::MAX)), Err(SubmitError::Context { .. })));
        assert!(scheduler.submit(prompt(0..1500, 100)).is_ok());
        assert_eq!(scheduler.waiting(), 1);
    }

    /// One event of a random history.
    #[derive(Debug, Clone)]
    enum Event {
        Submit(Arrival),
        Step,
        Cancel { pick: usize },
        Finish { pick: usize },
    }

    #[derive(Debug, Clone)]
    struct Arrival {
        instruction: usize,
        own: usize,
        /// Few values, so that assets come twice.
        number: u32,
        picture: Option<u8>,
        max_new: usize,
        patience: Option<u64>,
    }

    impl Arrival {
        fn sequence(&self, now: Instant) -> NewSequence {
            let own = (0..self.own).map(|token| 1000 * self.number + token as u32);
            let tokens: Vec<u32> = std::iter::repeat_n(7, self.instruction).chain(own).collect();
            let (from, to) = (tokens.len() / 3, tokens.len() / 2);
            let picture = |number| SequencePicture {
                hash: [number; 32],
                places: vec![from..from + 2, from + 3..to.max(from + 3)],
            };
            NewSequence {
                pictures: self.picture.map(picture).into_iter().collect(),
                tokens,
                max_new: self.max_new,
                shareable: (self.number == 0).then_some(self.instruction),
                deadline: self.patience.map(|patience| now + Duration::from_millis(patience)),
            }
        }
    }

    fn arrival() -> impl Strategy<Value = Arrival> {
        let instruction = prop_oneof![Just(0), Just(40), Just(64)];
        let patience = prop::option::weighted(0.2, 0..40_u64);
        (instruction, 0..80_usize, 0..3_u32, prop::option::of(0..2_u8), 0..50_usize, patience).prop_map(
            |(instruction, own, number, picture, max_new, patience)| Arrival {
                instruction,
                own,
                number,
                picture,
                max_new,
                patience,
            },
        )
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => arrival().prop_map(Event::Submit),
            8 => Just(Event::Step),
            1 => any::<usize>().prop_map(|pick| Event::Cancel { pick }),
            1 => any::<usize>().prop_map(|pick| Event::Finish { pick }),
        ]
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let chunk = prop_oneof![1..40_usize, Just(usize::MAX)];
        (1..120_usize, chunk, 1..12_usize, any::<bool>()).prop_map(
            |(step_tokens, prefill_chunk, max_running, share)| Limits {
                step_tokens,
                prefill_chunk,
                max_running,
                context: 180,
                share,
            },
        )
    }

    proptest! {
        #[test]
        fn in_any_history_every_token_reads_its_own_past_and_every_sequence_ends(
            limits in limits(),
            blocks in 1..30_usize,
            events in prop::collection::vec(event(), 1..150),
        ) {
            let mut world = World::new(limits, blocks);
            for event in events {
                let mut known: Vec<SequenceId> = world.expected.keys().copied().collect();
                known.sort_unstable();
                match event {
                    Event::Submit(arrival) => {
                        let new = arrival.sequence(world.now);
                        let most = new.tokens.len() + new.max_new;
                        let fits = !new.tokens.is_empty() && most <= limits.context && blocks_for(most) <= blocks;
                        prop_assert_eq!(world.submit(new).is_ok(), fits);
                    }
                    Event::Step => drop(world.step()),
                    Event::Cancel { pick } if !known.is_empty() => world.scheduler.cancel(known[pick % known.len()]),
                    Event::Finish { pick } if !known.is_empty() => world.finish(known[pick % known.len()]),
                    Event::Cancel { .. } | Event::Finish { .. } => {}
                }
            }
            world.drain();
        }

        #[test]
        fn a_crowd_with_one_instruction_computes_it_once_and_its_own_tokens_once(
            owns in prop::collection::vec(1..60_u32, 1..40),
            step_tokens in 1..300_usize,
            prefill_chunk in 1..100_usize,
            instruction in 1..20_u32,
        ) {
            let instruction = instruction * BLOCK as u32;
            let mut world = World::new(Limits { step_tokens, prefill_chunk, max_running: 40, ..LIMITS }, 2000);
            for (number, own) in owns.iter().enumerate() {
                world.submit(asset(number as u32, instruction, *own)).unwrap();
            }
            world.drain();
            let own: usize = owns.iter().map(|own| *own as usize + 4).sum();
            prop_assert_eq!(world.computed_tokens, instruction as usize + own);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn a_thousand_sequences_come_and_go_within_the_pool(
            arrivals in prop::collection::vec(arrival(), 1000),
            gaps in prop::collection::vec(0..4_usize, 1000),
        ) {
            let mut world = World::new(Limits { max_running: 12, context: 256, ..LIMITS }, 40);
            let mut patient = 0;
            for (arrival, gap) in arrivals.into_iter().zip(gaps) {
                let new = NewSequence { deadline: None, ..arrival.sequence(world.now) };
                patient += usize::from(world.submit(new).is_ok());
                (0..gap).for_each(|_| drop(world.step()));
            }
            world.drain();
            prop_assert!(patient > 900);
            prop_assert_eq!(world.finished.len(), patient);
        }
    }
}
