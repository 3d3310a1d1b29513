//! A sequence: a prompt and what was written after it, and how much of that the cache holds.
//!
//! It knows tokens and its own blocks; no pool, no other sequence and no text. Invariants: at most `tokens().len()`
//! positions are computed, and each of them lies in a block of the block table; at most `limit` tokens, those that its
//! cache space was promised for; no key reaches the last token of the prompt, so that token is always computed and there
//! are logits to sample from.

use std::ops::Range;
use std::time::Instant;

use crate::kv::{BLOCK, BlockId, PictureRows, PrefixKey};
use crate::model::PromptImage;

/// Names a sequence. Ids rise in order of arrival, which is also the order of priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A picture in a prompt, as far as caching must know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequencePicture {
    pub hash: [u8; 32],
    /// Where its rows of features stand, in order: ranges of the prompt's tokens.
    pub places: Vec<Range<usize>>,
}

impl From<&PromptImage> for SequencePicture {
    fn from(image: &PromptImage) -> Self {
        Self { hash: image.input.hash, places: image.places.clone() }
    }
}

/// A sequence that has not begun.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// The prompt.
    pub tokens: Vec<u32>,
    pub pictures: Vec<SequencePicture>,
    /// The most tokens that may follow the prompt.
    pub max_new: usize,
    /// How many of the first tokens may come from the cache instead of being computed; never the prompt's last one.
    /// None for as many as possible.
    pub shareable: Option<usize>,
    /// When it is given up.
    pub deadline: Option<Instant>,
}

/// A sequence that waits or runs.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    tokens: Vec<u32>,
    prompt_len: usize,
    limit: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    blocks: Vec<BlockId>,
    /// Of the full blocks that may be shared, from the first on.
    keys: Vec<PrefixKey>,
    deadline: Option<Instant>,
}

/// Blocks that so many tokens take.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

impl Sequence {
    /// `share` says whether anything may be shared at all.
    pub fn new(id: SequenceId, new: NewSequence, share: bool) -> Self {
        let NewSequence { tokens, pictures, max_new, shareable, deadline } = new;
        let prompt_len = tokens.len();
        let most = prompt_len.saturating_sub(1);
        let shareable = if share { shareable.map_or(most, |shareable| shareable.min(most)) } else { 0 };
        let keys = chain(&tokens[..shareable], &pictures);
        let limit = prompt_len.saturating_add(max_new);
        Self { id, tokens, prompt_len, limit, computed: 0, blocks: Vec::new(), keys, deadline }
    }

    pub fn id(&self) -> SequenceId {
        self.id
    }

    /// The prompt, then sampled and forced tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What follows the prompt.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// How many tokens may still be added.
    pub fn room(&self) -> usize {
        self.limit - self.tokens.len()
    }

    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens that are still to be computed.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The block table.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Keys of the blocks that may be shared.
    pub(super) fn keys(&self) -> &[PrefixKey] {
        &self.keys
    }

    /// Keys of the blocks that may be shared once they are computed.
    pub(super) fn uncomputed_keys(&self) -> &[PrefixKey] {
        self.keys.get(self.computed / BLOCK..).unwrap_or_default()
    }

    /// Adds as many of `tokens` as there is room for, and says how many.
    pub(super) fn extend(&mut self, tokens: &[u32]) -> usize {
        let count = tokens.len().min(self.room());
        self.tokens.extend_from_slice(&tokens[..count]);
        count
    }

    /// Blocks that it lacks to have all its tokens computed.
    pub(super) fn missing_blocks(&self) -> usize {
        blocks_for(self.tokens.len()).saturating_sub(self.blocks.len())
    }

    /// Adds blocks to the block table.
    pub(super) fn grow(&mut self, blocks: Vec<BlockId>) {
        self.blocks.extend(blocks);
    }

    /// Begins on blocks that are computed already.
    pub(super) fn begin(&mut self, shared: Vec<BlockId>) {
        self.computed = shared.len() * BLOCK;
        self.blocks = shared;
    }

    /// Notes that `count` more tokens are computed. Returns the blocks that became full and may be shared.
    pub(super) fn advance(&mut self, count: usize) -> impl Iterator<Item = (BlockId, PrefixKey)> {
        let before = self.computed / BLOCK;
        self.computed += count;
        let full = (self.computed / BLOCK).min(self.keys.len());
        (before..full).map(|index| (self.blocks[index], self.keys[index]))
    }

    /// Forgets what is computed and hands back the blocks. The tokens stay.
    pub(super) fn reset(&mut self) -> Vec<BlockId> {
        self.computed = 0;
        std::mem::take(&mut self.blocks)
    }
}

/// The keys of the full blocks of `tokens`.
fn chain(tokens: &[u32], pictures: &[SequencePicture]) -> Vec<PrefixKey> {
    let (blocks, _) = tokens.as_chunks::<BLOCK>();
    let mut keys: Vec<PrefixKey> = Vec::with_capacity(blocks.len());
    for (index, tokens) in blocks.iter().enumerate() {
        let rows = rows_within(pictures, index * BLOCK..(index + 1) * BLOCK);
        keys.push(PrefixKey::of_block(keys.last(), tokens, &rows));
    }
    keys
}

/// The pictures' rows whose tokens are of `block`.
fn rows_within(pictures: &[SequencePicture], block: Range<usize>) -> Vec<PictureRows> {
    let mut rows = Vec::new();
    for picture in pictures {
        let mut before = 0;
        for place in &picture.places {
            let (from, to) = (place.start.max(block.start), place.end.min(block.end));
            if from < to {
                let (slot, first) = (from - block.start, before + from - place.start);
                rows.push(PictureRows { hash: picture.hash, slot, first, count: to - from });
            }
            before += place.len();
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(tokens: Vec<u32>, pictures: Vec<SequencePicture>, shareable: Option<usize>) -> Sequence {
        Sequence::new(SequenceId(0), NewSequence { tokens, pictures, max_new: 4, shareable, deadline: None }, true)
    }

    fn picture(number: u8, places: &[Range<usize>]) -> SequencePicture {
        SequencePicture { hash: [number; 32], places: places.to_vec() }
    }

    #[test]
    fn the_last_token_of_a_prompt_is_never_shared() {
        for (length, blocks) in [(1, 0), (16, 0), (17, 1), (32, 1), (33, 2)] {
            assert_eq!(sequence(vec![1; length], vec![], None).keys().len(), blocks, "{length} tokens");
            assert_eq!(sequence(vec![1; length], vec![], Some(usize::MAX)).keys().len(), blocks, "{length} tokens");
        }
    }

    #[test]
    fn only_full_blocks_of_the_shareable_tokens_have_keys() {
        assert_eq!(sequence(vec![1; 100], vec![], Some(47)).keys().len(), 2);
        assert_eq!(sequence(vec![1; 100], vec![], Some(48)).keys().len(), 3);
        assert_eq!(sequence(vec![1; 100], vec![], Some(0)).keys().len(), 0);
    }

    #[test]
    fn a_picture_changes_the_keys_from_its_first_block_on() {
        let keys = |pictures| sequence(vec![1; 100], pictures, None).keys().to_vec();
        let (one, other) = (keys(vec![picture(1, &[20..30, 30..40])]), keys(vec![picture(2, &[20..30, 30..40])]));
        assert_eq!(one[0], other[0]);
        assert!(one.iter().zip(&other).skip(1).all(|(one, other)| one != other));
    }

    #[test]
    fn the_same_rows_elsewhere_in_the_picture_have_other_keys() {
        let keys = |places: &[Range<usize>]| sequence(vec![1; 100], vec![picture(1, places)], None).keys().to_vec();
        // Tokens 16 to 31 hold rows 4 to 19 in one and rows 0 to 15 in the other.
        let (one, other) = (keys(&[0..4, 16..32]), keys(&[16..20, 20..32]));
        assert_ne!(one[1], other[1]);
        let rows = |block| rows_within(&[picture(1, &[0..4, 16..40])], block);
        assert_eq!(rows(32..48), [PictureRows { hash: [1; 32], slot: 0, first: 20, count: 8 }]);
        assert_eq!(rows(0..16), [PictureRows { hash: [1; 32], slot: 0, first: 0, count: 4 }]);
    }

    #[test]
    fn no_more_tokens_are_added_than_there_is_room_for() {
        let mut sequence = sequence(vec![1; 3], vec![], None);
        assert_eq!(sequence.extend(&[5, 6, 7]), 3);
        assert_eq!(sequence.extend(&[8, 9]), 1);
        assert_eq!((sequence.generated(), sequence.room()), (&[5, 6, 7, 8][..], 0));
    }

    proptest! {
        #[test]
        fn full_blocks_are_told_once_each_however_the_prompt_is_cut(
            length in 1..200_usize,
            counts in prop::collection::vec(1..40_usize, 1..200),
        ) {
            let mut sequence = sequence(vec![1; length], vec![], None);
            sequence.grow((0..13).map(BlockId).collect());
            let mut told = Vec::new();
            for count in counts {
                let count = count.min(sequence.pending());
                told.extend(sequence.advance(count));
                prop_assert_eq!(sequence.uncomputed_keys().len(), sequence.keys().len() - told.len());
            }
            let expected = (0..).map(BlockId).zip(sequence.keys().iter().copied()).take(told.len());
            prop_assert_eq!(&told, &expected.collect::<Vec<_>>());
            prop_assert_eq!(told.len(), sequence.keys().len().min(sequence.computed() / BLOCK));
        }
    }
}
