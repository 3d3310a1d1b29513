//! Which prefixes are being computed right now, by whom, and who waits for them.
//!
//! When many sequences with one instruction arrive at once, the first one claims the blocks of it that nobody has computed;
//! the others wait for these instead of computing them, too. This file knows keys and ids, no blocks. Invariant: whoever
//! waits is told when the block it waits for is computed, or when the sequence that claimed it stops.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::sequence::SequenceId;
use crate::kv::PrefixKey;

/// Claims of running sequences on blocks that they are about to compute.
#[derive(Debug, Default)]
pub struct PrefixClaims {
    claims: HashMap<PrefixKey, Claim>,
}

#[derive(Debug)]
struct Claim {
    by: SequenceId,
    waiting: Vec<SequenceId>,
}

impl PrefixClaims {
    /// Claims those of `keys` that are not claimed yet.
    pub fn claim(&mut self, by: SequenceId, keys: &[PrefixKey]) {
        for key in keys {
            self.claims.entry(*key).or_insert_with(|| Claim { by, waiting: Vec::new() });
        }
    }

    /// What a sequence should wait for that lacks these blocks: the last one of those that are being computed without a
    /// gap. None when it would gain nothing.
    pub fn awaited(&self, lacking: &[PrefixKey]) -> Option<PrefixKey> {
        lacking.iter().take_while(|key| self.claims.contains_key(key)).last().copied()
    }

    /// Lets `id` wait for a claimed block.
    pub fn wait(&mut self, id: SequenceId, key: &PrefixKey) {
        if let Some(claim) = self.claims.get_mut(key) {
            claim.waiting.push(id);
        }
    }

    /// The block is computed. Returns who waited for it.
    pub fn computed(&mut self, key: &PrefixKey) -> Vec<SequenceId> {
        self.claims.remove(key).map(|claim| claim.waiting).unwrap_or_default()
    }

    /// A sequence stops before it computed these blocks. Returns who waited for them.
    pub fn abandon(&mut self, by: SequenceId, keys: &[PrefixKey]) -> Vec<SequenceId> {
        let mut waited = Vec::new();
        for key in keys {
            if let Entry::Occupied(claim) = self.claims.entry(*key)
                && claim.get().by == by
            {
                waited.extend(claim.remove().waiting);
            }
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BLOCK;

    const FIRST: SequenceId = SequenceId(1);
    const SECOND: SequenceId = SequenceId(2);

    fn keys() -> [PrefixKey; 3] {
        [1, 2, 3].map(|number| PrefixKey::of_block(None, &[number; BLOCK], &[]))
    }

    #[test]
    fn the_last_block_of_the_claimed_run_is_awaited() {
        let keys = keys();
        let mut claims = PrefixClaims::default();
        assert_eq!(claims.awaited(&keys), None);
        claims.claim(FIRST, &keys[..2]);
        assert_eq!(claims.awaited(&keys), Some(keys[1]));
        assert_eq!(claims.awaited(&keys[2..]), None, "nobody computes the third");
        claims.computed(&keys[0]);
        assert_eq!(claims.awaited(&keys), None, "the first must be found or computed before");
    }

    #[test]
    fn whoever_waits_is_told_when_the_block_is_there_or_its_sequence_stops() {
        let keys = keys();
        let mut claims = PrefixClaims::default();
        claims.claim(FIRST, &keys);
        claims.claim(SECOND, &keys);
        claims.wait(SECOND, &keys[1]);
        assert_eq!(claims.computed(&keys[0]), []);
        assert_eq!(claims.abandon(SECOND, &keys), [], "the first one came first");
        assert_eq!(claims.abandon(FIRST, &keys[1..]), [SECOND]);
        claims.claim(SECOND, &keys);
        claims.wait(FIRST, &keys[2]);
        assert_eq!(claims.computed(&keys[2]), [FIRST]);
    }
}
