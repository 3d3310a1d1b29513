//! What vision towers made of pictures, kept by the pictures' content under a byte limit.
//!
//! It knows no sequence. Invariant: what is kept never takes more bytes than the limit; what was not used for the longest
//! time goes first.

use std::collections::{BTreeMap, HashMap};

use crate::model::Features;

/// Features by the hash of their picture.
pub struct FeatureCache {
    limit: u64,
    held: u64,
    entries: HashMap<[u8; 32], Entry>,
    /// Hashes by when they were last used.
    order: BTreeMap<u64, [u8; 32]>,
    tick: u64,
}

struct Entry {
    features: Features,
    bytes: u64,
    used: u64,
}

impl FeatureCache {
    /// `limit` in bytes; 0 keeps nothing.
    pub fn new(limit: u64) -> Self {
        Self { limit, held: 0, entries: HashMap::new(), order: BTreeMap::new(), tick: 0 }
    }

    /// The features of a picture that was seen before.
    pub fn get(&mut self, hash: &[u8; 32]) -> Option<Features> {
        self.tick += 1;
        let entry = self.entries.get_mut(hash)?;
        self.order.remove(&entry.used);
        entry.used = self.tick;
        self.order.insert(self.tick, *hash);
        Some(entry.features.clone())
    }

    /// Keeps the features of a picture, if they fit at all.
    pub fn keep(&mut self, hash: [u8; 32], features: &Features) {
        let bytes = features.bytes();
        if bytes > self.limit || self.entries.contains_key(&hash) {
            return;
        }
        while self.held + bytes > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.held -= entry.bytes;
            }
        }
        self.tick += 1;
        self.held += bytes;
        self.order.insert(self.tick, hash);
        self.entries.insert(hash, Entry { features: features.clone(), bytes, used: self.tick });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 bytes.
    fn features() -> Features {
        Features::of_zeros(2, 2)
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let mut cache = FeatureCache::new(40);
        cache.keep([1; 32], &features());
        cache.keep([2; 32], &features());
        assert!(cache.get(&[1; 32]).is_some());
        cache.keep([3; 32], &features());
        let kept: Vec<bool> = (1..=3).map(|hash| cache.get(&[hash; 32]).is_some()).collect();
        assert_eq!(kept, [true, false, true]);
        assert_eq!(cache.held, 32);
    }

    #[test]
    fn what_is_larger_than_the_limit_is_not_kept() {
        let mut cache = FeatureCache::new(15);
        cache.keep([1; 32], &features());
        assert!(cache.get(&[1; 32]).is_none());
        assert_eq!(cache.held, 0);
    }
}
