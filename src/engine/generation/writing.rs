//! One answer while it is written: its prompt, and what its embedding is made of.
//!
//! It knows its own sequence alone; no cache, no batch and no grammar. Invariant: its embedding is the mean over each
//! wanted token once, however the prompt was cut and however often it was set back.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::choice::Choice;
use crate::engine::settled::Place;
use crate::model::{Features, Prompt};

/// A generation after its CPU side.
pub struct PreparedGeneration {
    pub prompt: Prompt,
    pub choice: Choice,
    /// At least 1.
    pub max_tokens: usize,
    pub deadline: Option<Duration>,
    /// The prompt's tokens from here on are averaged to an embedding.
    pub pooled_from: Option<usize>,
}

impl PreparedGeneration {
    pub fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt.ids.len()).unwrap_or(u32::MAX)
    }
}

/// An answer that is being written.
pub struct Writing {
    pub place: Place,
    pub prompt: Prompt,
    /// What the vision tower made of the prompt's pictures; empty while that is not needed.
    pub features: Vec<Features>,
    pub deadline: Option<Duration>,
    /// When its first tokens were computed.
    pub started: Option<Instant>,
    pub device_seconds: f64,
    /// Tokens that the model chose.
    pub sampled: usize,
    pooled: Option<Pooled>,
}

/// The sum of the hidden states of some of the prompt's tokens.
struct Pooled {
    tokens: Range<usize>,
    /// The next token whose state is wanted.
    next: usize,
    sum: Vec<f32>,
}

impl Writing {
    /// Takes everything but how tokens are chosen.
    pub fn new(place: Place, prompt: Prompt, deadline: Option<Duration>, pooled_from: Option<usize>) -> Self {
        let tokens = |from: usize| from..prompt.ids.len();
        let pooled = pooled_from.map(|from| Pooled { tokens: tokens(from), next: from, sum: Vec::new() });
        Self { place, prompt, features: Vec::new(), deadline, started: None, device_seconds: 0.0, sampled: 0, pooled }
    }

    /// Whether its time is over.
    pub fn is_late(&self, now: Instant) -> bool {
        let spent = self.started.map(|started| now.saturating_duration_since(started));
        matches!((spent, self.deadline), (Some(spent), Some(deadline)) if spent >= deadline)
    }

    /// Whether the tokens of `range` hold parts of pictures.
    pub fn shows(&self, range: &Range<usize>) -> bool {
        let places = self.prompt.images.iter().flat_map(|image| &image.places);
        places.into_iter().any(|place| place.start < range.end && range.start < place.end)
    }

    /// The tokens of `range` whose hidden states are wanted.
    pub fn pooled_tokens(&self, range: &Range<usize>) -> Range<usize> {
        let Some(pooled) = &self.pooled else { return range.start..range.start };
        let (from, to) = (pooled.next.max(range.start), pooled.tokens.end.min(range.end));
        if from < to && from == pooled.next { from..to } else { range.start..range.start }
    }

    /// Adds the hidden states, `[.., width]`, of the `tokens` that [`pooled_tokens`](Self::pooled_tokens) named, or their sum.
    pub fn pool(&mut self, states: &[f32], width: usize, tokens: usize) {
        let Some(pooled) = &mut self.pooled else { return };
        pooled.sum.resize(width, 0.0);
        for state in states.chunks_exact(width) {
            pooled.sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
        }
        pooled.next += tokens;
    }

    /// Its prompt will be computed again; what was pooled whole is kept.
    pub fn set_back(&mut self) {
        self.features = Vec::new();
        if let Some(pooled) = &mut self.pooled
            && pooled.next < pooled.tokens.end
        {
            pooled.next = pooled.tokens.start;
            pooled.sum.clear();
        }
    }

    /// The mean of the pooled states, scaled to length 1; None where none is wanted. Fails when it is no direction.
    pub fn embedding(&self) -> Result<Option<Vec<f32>>, String> {
        let Some(pooled) = &self.pooled else { return Ok(None) };
        let length = pooled.sum.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(format!("hidden states whose sum has length {length}"));
        }
        Ok(Some(pooled.sum.iter().map(|value| (f64::from(*value) / length) as f32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writing(pooled_from: usize) -> Writing {
        let prompt = Prompt { ids: vec![1; 10], positions: Vec::new(), position_offset: 0, images: Vec::new() };
        Writing::new(Place { request: 0, task: 0 }, prompt, None, Some(pooled_from))
    }

    /// Pools the token numbers themselves.
    fn compute(writing: &mut Writing, range: Range<usize>) {
        let wanted = writing.pooled_tokens(&range);
        let states: Vec<f32> = wanted.clone().flat_map(|token| [token as f32, 1.0]).collect();
        writing.pool(&states, 2, wanted.len());
    }

    #[test]
    fn an_embedding_is_the_same_however_the_prompt_was_cut_and_set_back() {
        let mut whole = writing(4);
        compute(&mut whole, 0..10);
        let mut cut = writing(4);
        compute(&mut cut, 0..6);
        cut.set_back();
        for range in [0..3, 3..5, 5..10] {
            compute(&mut cut, range);
        }
        // Set back while its answer is written: nothing is pooled twice.
        cut.set_back();
        compute(&mut cut, 0..12);
        // 4 + ... + 9 = 39 over 6 tokens.
        assert_eq!(whole.pooled.as_ref().unwrap().sum, [39.0, 6.0]);
        assert_eq!(cut.embedding(), whole.embedding());
    }

    #[test]
    fn states_that_are_no_numbers_make_no_embedding() {
        let mut writing = writing(9);
        writing.pool(&[f32::NAN, 1.0], 2, 1);
        assert!(writing.embedding().is_err());
    }
}
