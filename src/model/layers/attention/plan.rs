//! What each row of a step may see, worked out once for all layers.
//!
//! Rows see the keys of their own sequence up to themselves. Chunked layers (Llama 4) see only those of their own chunk:
//! chunks are fixed ranges of positions counted from the start of the sequence, so a chunk border splits a segment.
//! Invariant: segments cover every row once, in order.

use std::ops::Range;

use crate::kv::{BlockId, KvStore};
use crate::model::api::{ModelError, SequenceStep};

/// Rows of one sequence that see its keys from the same first one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Position of the first row; row `i` sees the keys up to `position + i`.
    pub position: usize,
    /// The first visible position.
    pub first_key: usize,
    /// Index of its sequence.
    pub sequence: usize,
}

/// A step's rows as attention needs them.
#[derive(Debug)]
pub struct AttentionPlan<'a> {
    /// Where the new keys and values of each row go.
    pub slots: Vec<u32>,
    /// For layers that see all that came before.
    pub full: Vec<Segment>,
    /// For layers that see their chunk; equal to `full` for models without chunks.
    pub chunked: Vec<Segment>,
    /// The block table of each sequence.
    pub tables: Vec<&'a [BlockId]>,
}

impl<'a> AttentionPlan<'a> {
    /// Fails when a block table has no room for its sequence's new positions.
    pub fn new(sequences: &[SequenceStep<'a>], chunk: Option<usize>, cache: &KvStore) -> Result<Self, ModelError> {
        let mut plan = Self { slots: Vec::new(), full: Vec::new(), chunked: Vec::new(), tables: Vec::new() };
        for (index, sequence) in sequences.iter().enumerate() {
            let first_row = plan.slots.len();
            let end = sequence.past + sequence.new;
            for position in sequence.past..end {
                let slot = cache.slot(sequence.blocks, position).ok_or_else(|| {
                    let table = sequence.blocks.len();
                    let detail = format!("a sequence of {end} tokens does not fit its {table} blocks of cache");
                    ModelError::Input { detail }
                })?;
                plan.slots.push(slot);
            }
            let segment = |from: usize, to: usize, first_key: usize| Segment {
                rows: first_row + from - sequence.past..first_row + to - sequence.past,
                position: from,
                first_key,
                sequence: index,
            };
            if sequence.new > 0 {
                plan.full.push(segment(sequence.past, end, 0));
                let chunk = chunk.unwrap_or(end);
                let mut from = sequence.past;
                while from < end {
                    let start = from / chunk * chunk;
                    let to = end.min(start + chunk);
                    plan.chunked.push(segment(from, to, start));
                    from = to;
                }
            }
            plan.tables.push(sequence.blocks);
        }
        Ok(plan)
    }

    /// The segments of a layer.
    pub fn segments(&self, chunked: bool) -> &[Segment] {
        if chunked { &self.chunked } else { &self.full }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::kv::KvShape;

    fn cache() -> KvStore {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 2, blocks: 8 };
        KvStore::new(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_chunk_border_splits_a_sequence_and_hides_what_lies_before_it() {
        let (one, two) = ([BlockId(0), BlockId(1), BlockId(2)], [BlockId(5)]);
        let sequences =
            [SequenceStep { new: 30, past: 10, blocks: &one }, SequenceStep { new: 1, past: 8, blocks: &two }];
        let plan = AttentionPlan::new(&sequences, Some(16), &cache()).unwrap();
        let seen: Vec<_> = plan.chunked.iter().map(|part| (part.rows.clone(), part.position, part.first_key)).collect();
        assert_eq!(seen, [(0..6, 10, 0), (6..22, 16, 16), (22..30, 32, 32), (30..31, 8, 0)]);
        assert_eq!(plan.full.len(), 2);
        assert_eq!((plan.slots[0], plan.slots[29], plan.slots[30]), (10, 39, 88));
    }

    #[test]
    fn without_chunks_all_layers_see_the_same() {
        let table = [BlockId(0)];
        let sequences = [SequenceStep { new: 3, past: 4, blocks: &table }];
        let plan = AttentionPlan::new(&sequences, None, &cache()).unwrap();
        assert_eq!(plan.full, plan.chunked);
    }

    #[test]
    fn a_table_that_is_too_short_is_refused() {
        let table = [BlockId(0)];
        let sequences = [SequenceStep { new: 1, past: 16, blocks: &table }];
        let refusal = AttentionPlan::new(&sequences, None, &cache()).unwrap_err().to_string();
        assert!(refusal.contains("17 tokens") && refusal.contains("1 blocks"), "{refusal}");
    }
}
