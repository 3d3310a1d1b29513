//! Blocks: the unit in which cache memory is given to sequences.
//!
//! A sequence's cache is a list of blocks (its block table); position `p` lies in slot `p % BLOCK` of entry `p / BLOCK`.
//! Paged attention after Kwon et al., 2023. This file knows no tensor.

/// Positions in one block.
pub const BLOCK: usize = 16;

/// One block of the cache, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
