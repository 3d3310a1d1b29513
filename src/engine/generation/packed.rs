//! A step's parts as one flat batch: the arrays that a generator reads, made from what each sequence is to compute.
//!
//! It knows no model and no scheduler's reasons. Invariant: rows of one sequence lie together, in the order of its tokens.

use std::ops::Range;

use super::writing::Writing;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::model::{SequenceStep, Splice, Step};

/// What one sequence computes in a step, and where its rows lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedPart {
    pub id: SequenceId,
    /// Its tokens.
    pub tokens: Range<usize>,
    /// First row of the step.
    pub row: usize,
    /// Whether the next token is to be sampled after its last row.
    pub samples: bool,
    /// Rows of the step whose hidden states are wanted.
    pub pooled: Range<usize>,
}

/// The arrays of one step.
#[derive(Default)]
pub struct Packed<'a> {
    pub parts: Vec<PackedPart>,
    tokens: Vec<u32>,
    positions: Vec<[u32; 3]>,
    sequences: Vec<SequenceStep<'a>>,
    splices: Vec<Splice<'a>>,
    logits: Vec<usize>,
    hidden: Vec<usize>,
}

impl<'a> Packed<'a> {
    /// Adds the tokens of `range` of a sequence.
    pub fn add(&mut self, sequence: &'a Sequence, range: Range<usize>, writing: &'a Writing) {
        let row = self.tokens.len();
        self.tokens.extend_from_slice(&sequence.tokens()[range.clone()]);
        self.positions.extend(range.clone().map(|index| writing.prompt.position(index)));
        self.sequences.push(SequenceStep { new: range.len(), past: range.start, blocks: sequence.blocks() });
        self.splices.extend(writing.prompt.splices(range.clone(), row, &writing.features));
        let samples = range.end == sequence.tokens().len();
        if samples {
            self.logits.push(row + range.len() - 1);
        }
        let wanted = writing.pooled_tokens(&range);
        let pooled = row + wanted.start - range.start..row + wanted.end - range.start;
        self.hidden.extend(pooled.clone());
        self.parts.push(PackedPart { id: sequence.id(), tokens: range, row, samples, pooled });
    }

    pub fn step(&self) -> Step<'_> {
        Step {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            splices: &self.splices,
            logits: &self.logits,
            hidden: &self.hidden,
        }
    }
}
