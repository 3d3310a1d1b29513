//! Prefix keys: the names under which computed blocks are found again.
//!
//! The key of a full block says all that its keys and values depend on: every token up to its end, and every row of every
//! picture that stands there. Each key is made of the one before it, so equal keys mean equal prefixes. This file knows no
//! pool, no tensor and no sequence. Invariant: different prefixes have different keys (SHA-256), and the place of a
//! picture's rows counts as much as its content.

use sha2::{Digest, Sha256};

use super::block::BLOCK;

/// Names the content of a full block and of all blocks before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixKey([u8; 32]);

/// Rows of a picture's features that stand in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PictureRows {
    /// SHA-256 of the picture.
    pub hash: [u8; 32],
    /// The first slot of the block that they take.
    pub slot: usize,
    /// The first of the picture's rows, and how many.
    pub first: usize,
    pub count: usize,
}

impl PrefixKey {
    /// The key of the block that follows the one of `parent`; none for the first block of a sequence.
    pub fn of_block(parent: Option<&Self>, tokens: &[u32; BLOCK], pictures: &[PictureRows]) -> Self {
        // Every part has a fixed length, so no two blocks are written alike.
        let mut hasher = Sha256::new();
        hasher.update(parent.map_or([0; 32], |parent| parent.0));
        tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        for rows in pictures {
            hasher.update(rows.hash);
            [rows.slot, rows.first, rows.count].iter().for_each(|number| hasher.update((*number as u64).to_le_bytes()));
        }
        Self(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TOKENS: [u32; BLOCK] = [7; BLOCK];

    fn rows(picture: u8, slot: usize, first: usize, count: usize) -> PictureRows {
        PictureRows { hash: [picture; 32], slot, first, count }
    }

    #[test]
    fn equal_prefixes_have_equal_keys() {
        let key = || {
            let parent = PrefixKey::of_block(None, &TOKENS, &[rows(1, 3, 0, 4)]);
            PrefixKey::of_block(Some(&parent), &TOKENS, &[])
        };
        assert_eq!(key(), key());
    }

    #[test]
    fn a_key_tells_apart_tokens_pictures_their_places_and_what_came_before() {
        let mut other_tokens = TOKENS;
        other_tokens[15] = 8;
        let parent = PrefixKey::of_block(None, &TOKENS, &[]);
        let other_parent = PrefixKey::of_block(None, &TOKENS, &[rows(1, 0, 0, 1)]);
        let keys = [
            parent,
            other_parent,
            PrefixKey::of_block(None, &other_tokens, &[]),
            PrefixKey::of_block(Some(&parent), &TOKENS, &[]),
            PrefixKey::of_block(Some(&other_parent), &TOKENS, &[]),
            PrefixKey::of_block(None, &TOKENS, &[rows(2, 0, 0, 1)]),
            PrefixKey::of_block(None, &TOKENS, &[rows(1, 1, 0, 1)]),
            PrefixKey::of_block(None, &TOKENS, &[rows(1, 0, 1, 1)]),
            PrefixKey::of_block(None, &TOKENS, &[rows(1, 0, 0, 2)]),
            PrefixKey::of_block(None, &TOKENS, &[rows(1, 0, 0, 1), rows(2, 1, 0, 1)]),
            PrefixKey::of_block(None, &TOKENS, &[rows(2, 0, 0, 1), rows(1, 1, 0, 1)]),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    }
}
