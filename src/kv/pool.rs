//! The block pool: which blocks are held, by how many, and which can be found again by their content.
//!
//! It knows block numbers and keys; no tensor, no sequence and no clock. Invariants: a block is either free, idle (nobody
//! holds it, but it is published) or held, and these add up to the pool; a key leads to at most one block; a published
//! block is never given to a new taker while somebody holds it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::block::BlockId;
use super::prefix::PrefixKey;

/// Gives blocks to sequences and lets them share what is computed already.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<BlockState>,
    /// Held by nobody and not published.
    free: Vec<BlockId>,
    published: HashMap<PrefixKey, BlockId>,
    /// Published and held by nobody, by when they were released.
    idle: BTreeMap<u64, BlockId>,
    /// Counts releases; the order of `idle`.
    releases: u64,
    hits: u64,
    evictions: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct BlockState {
    holders: u32,
    key: Option<PrefixKey>,
    /// Its place in `idle`, while it is there.
    idle_since: u64,
}

impl BlockPool {
    /// A pool of so many blocks, all free.
    pub fn new(blocks: usize) -> Self {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![BlockState::default(); blocks as usize],
            free: (0..blocks).rev().map(BlockId).collect(),
            published: HashMap::new(),
            idle: BTreeMap::new(),
            releases: 0,
            hits: 0,
            evictions: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`Self::take`] can give: those that nobody holds, published or not.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that somebody holds; a shared one counts once.
    pub fn held(&self) -> usize {
        self.total() - self.available()
    }

    /// How often a block was shared instead of computed.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// How many published blocks were given to a new taker.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many hold the block published under this key; none when no block is.
    pub fn holders(&self, key: &PrefixKey) -> Option<u32> {
        self.published.get(key).map(|block| self.state(*block).holders)
    }

    /// Gives `count` blocks to a new holder, all or none. Free ones first, then the idle ones that were released first;
    /// these cannot be found any more.
    pub fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        (count <= self.available()).then(|| (0..count).map(|_| self.take_one()).collect())
    }

    /// Adds a holder to the block published under this key.
    pub fn share(&mut self, key: &PrefixKey) -> Option<BlockId> {
        let block = *self.published.get(key)?;
        let state = &mut self.blocks[block.0 as usize];
        if state.holders == 0 {
            self.idle.remove(&state.idle_since);
        }
        state.holders += 1;
        self.hits += 1;
        Some(block)
    }

    /// Makes a held, full block findable. When another one was published under this key first, that one stays and this
    /// one remains unknown.
    pub fn publish(&mut self, block: BlockId, key: PrefixKey) {
        let state = &mut self.blocks[block.0 as usize];
        debug_assert!(state.holders > 0, "only a holder publishes a block");
        if state.key.is_none()
            && let Entry::Vacant(place) = self.published.entry(key)
        {
            place.insert(block);
            state.key = Some(key);
        }
    }

    /// Ends one holder's hold. To keep beginnings longer than ends, which are found through them alone, a sequence
    /// releases its last block first.
    pub fn release(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.0 as usize];
        state.holders = state.holders.checked_sub(1).expect("only a holder releases a block");
        if state.holders > 0 {
            return;
        }
        if state.key.is_some() {
            self.releases += 1;
            state.idle_since = self.releases;
            self.idle.insert(self.releases, block);
        } else {
            self.free.push(block);
        }
    }

    fn take_one(&mut self) -> BlockId {
        let block = self.free.pop().unwrap_or_else(|| self.evict());
        self.blocks[block.0 as usize].holders = 1;
        block
    }

    fn evict(&mut self) -> BlockId {
        let (_, block) = self.idle.pop_first().expect("the available blocks were counted before");
        let key = self.blocks[block.0 as usize].key.take().expect("an idle block is published");
        self.published.remove(&key);
        self.evictions += 1;
        block
    }

    fn state(&self, block: BlockId) -> &BlockState {
        &self.blocks[block.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::block::BLOCK;
    use super::*;

    fn key(number: u32) -> PrefixKey {
        PrefixKey::of_block(None, &[number; BLOCK], &[])
    }

    /// Takes one block, publishes it and releases it.
    fn leave_idle(pool: &mut BlockPool, number: u32) -> BlockId {
        let block = pool.take(1).unwrap()[0];
        pool.publish(block, key(number));
        pool.release(block);
        block
    }

    #[test]
    fn blocks_are_given_all_or_none() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.take(4), None);
        assert_eq!(pool.available(), 3);
        assert_eq!(pool.take(3).map(|blocks| blocks.into_iter().collect::<HashSet<_>>().len()), Some(3));
        assert_eq!(pool.take(1), None);
        assert_eq!(pool.take(0), Some(vec![]));
    }

    #[test]
    fn a_published_block_that_nobody_holds_is_still_found() {
        let mut pool = BlockPool::new(2);
        let block = leave_idle(&mut pool, 1);
        assert_eq!((pool.held(), pool.holders(&key(1))), (0, Some(0)));
        assert_eq!(pool.share(&key(1)), Some(block));
        assert_eq!((pool.held(), pool.hits()), (1, 1));
        assert_eq!(pool.share(&key(2)), None);
    }

    #[test]
    fn the_block_released_first_is_evicted_first_and_free_ones_go_before_it() {
        let mut pool = BlockPool::new(3);
        leave_idle(&mut pool, 1);
        let second = pool.take(1).unwrap()[0];
        pool.publish(second, key(2));
        let shared = pool.share(&key(1)).unwrap();
        pool.release(second);
        pool.release(shared);
        pool.take(1).unwrap();
        assert_eq!(pool.evictions(), 0, "one block was free");
        pool.take(1).unwrap();
        assert_eq!((pool.holders(&key(1)), pool.holders(&key(2))), (Some(0), None), "2 was released before 1");
        assert_eq!(pool.evictions(), 1);
    }

    #[test]
    fn a_shared_block_is_free_only_when_the_last_holder_let_go() {
        let mut pool = BlockPool::new(1);
        let block = pool.take(1).unwrap()[0];
        pool.publish(block, key(1));
        pool.share(&key(1)).unwrap();
        pool.release(block);
        assert_eq!(pool.take(1), None);
        pool.release(block);
        assert_eq!(pool.take(1), Some(vec![block]));
    }

    #[test]
    fn the_first_to_publish_a_key_wins() {
        let mut pool = BlockPool::new(2);
        let blocks = pool.take(2).unwrap();
        pool.publish(blocks[0], key(1));
        pool.publish(blocks[1], key(1));
        assert_eq!(pool.share(&key(1)), Some(blocks[0]));
        pool.release(blocks[1]);
        assert_eq!(pool.take(1), Some(vec![blocks[1]]), "the later one is simply free");
    }

    #[derive(Debug, Clone)]
    enum Act {
        Take { count: usize },
        Share { key: u32 },
        Publish { pick: usize, key: u32 },
        Release { pick: usize },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0..5_usize).prop_map(|count| Act::Take { count }),
            3 => (0..8_u32).prop_map(|key| Act::Share { key }),
            3 => (any::<usize>(), 0..8_u32).prop_map(|(pick, key)| Act::Publish { pick, key }),
            6 => any::<usize>().prop_map(|pick| Act::Release { pick }),
        ]
    }

    proptest! {
        #[test]
        fn any_history_conserves_blocks_and_gives_none_twice(
            total in 0..12_usize,
            acts in prop::collection::vec(act(), 1..200),
        ) {
            let mut pool = BlockPool::new(total);
            // One entry for each hold, with what its holder last published the block as, if it was findable then.
            let mut holds: Vec<BlockId> = Vec::new();
            let mut content: HashMap<BlockId, u32> = HashMap::new();
            for act in acts {
                match act {
                    Act::Take { count } => {
                        let available = pool.available();
                        let taken = pool.take(count);
                        prop_assert_eq!(taken.is_some(), count <= available);
                        for block in taken.unwrap_or_default() {
                            prop_assert!(!holds.contains(&block), "{:?} is held already", block);
                            content.remove(&block);
                            holds.push(block);
                        }
                    }
                    Act::Share { key: number } => {
                        if let Some(block) = pool.share(&key(number)) {
                            prop_assert_eq!(content.get(&block), Some(&number), "a key leads to its own content");
                            holds.push(block);
                        }
                    }
                    Act::Publish { pick, key: number } if !holds.is_empty() => {
                        let block = holds[pick % holds.len()];
                        // A block's content is written once, by its taker.
                        let number = *content.entry(block).or_insert(number);
                        pool.publish(block, key(number));
                        prop_assert!(pool.holders(&key(number)).is_some());
                    }
                    Act::Release { pick } if !holds.is_empty() => {
                        let block = holds.swap_remove(pick % holds.len());
                        pool.release(block);
                    }
                    Act::Publish { .. } | Act::Release { .. } => {}
                }
                prop_assert_eq!(pool.held(), holds.iter().collect::<HashSet<_>>().len());
                prop_assert_eq!(pool.held() + pool.available(), total);
            }
            holds.drain(..).for_each(|block| pool.release(block));
            prop_assert_eq!(pool.take(total).map(|blocks| blocks.len()), Some(total), "nothing is lost");
        }
    }
}
