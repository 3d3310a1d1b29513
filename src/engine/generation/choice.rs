//! How an answer goes on: what its schema allows, which of that the model likes best, and what follows without a choice.
//!
//! It knows token ids and logits; no cache and no batch. Invariants: an answer with a schema ends valid, within its
//! tokens; the choice depends on the answer's own logits and its own seed alone.

use crate::engine::grammar::{AnswerMatcher, FinishReason, GrammarError, TokenMask};
use crate::engine::sampler::{Sampler, usable};
use crate::engine::sequence::Sequence;
use crate::engine::settled::Finish;
use crate::model::Likeliest;

/// What one answer may still become.
pub struct Choice {
    /// None for any text.
    answer: Option<AnswerMatcher>,
    sampler: Sampler,
}

/// What a model thinks of an answer's next token.
#[derive(Debug, Clone, Copy)]
pub enum Opinion<'a> {
    /// Every logit, `[vocabulary]`.
    Logits(&'a [f32]),
    /// The likeliest of those that are allowed, where that is all that the answer needs.
    Likeliest(Likeliest),
}

/// What is added to an answer after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The sampled token, if it belongs to the text, and those that follow it without a choice.
    pub tokens: Vec<u32>,
    /// How many of them were not sampled.
    pub forced: usize,
    pub finish: Option<Finish>,
}

impl Choice {
    pub fn new(answer: Option<AnswerMatcher>, sampler: Sampler) -> Self {
        Self { answer, sampler }
    }

    /// Works out what may come next; on any thread, while the device computes.
    pub fn prepare(&mut self) {
        if let Some(answer) = &mut self.answer {
            // What fails here fails again, and is told, when the token is chosen.
            let _ = answer.mask();
        }
    }

    /// Whether the likeliest allowed token is all that it needs to know.
    pub fn takes_likeliest(&self) -> bool {
        self.sampler.takes_likeliest()
    }

    /// What may come next; None for anything, or where that cannot be told, which shows when the token is chosen.
    pub fn mask(&mut self) -> Option<&TokenMask> {
        self.answer.as_mut()?.mask().ok()
    }

    /// Tokens that the schema forces from here.
    pub fn forced(&mut self) -> Result<Vec<u32>, GrammarError> {
        self.answer.as_mut().map_or(Ok(Vec::new()), AnswerMatcher::take_forced)
    }

    /// Chooses the token after `sequence`. `ends` are the ids that end a text without a
    /// schema. Fails, with the reason, when the logits are no numbers.
    pub fn next(
        &mut self,
        opinion: Opinion<'_>,
        sequence: &Sequence,
        ends: &[u32],
        fast_forward: bool,
    ) -> Result<Chosen, String> {
        let Some(answer) = &mut self.answer else {
            let token = sampled(&mut self.sampler, opinion, None, sequence)?;
            return Ok(match ends.contains(&token) {
                true => Chosen { tokens: Vec::new(), forced: 0, finish: Some(Finish::Stop) },
                false => {
                    let finish = (sequence.room() <= 1).then_some(Finish::Length);
                    Chosen { tokens: vec![token], forced: 0, finish }
                }
            });
        };
        let broken = |error: GrammarError| error.to_string();
        let mask = answer.mask().map_err(broken)?;
        let token = sampled(&mut self.sampler, opinion, Some(mask), sequence)?;
        let mut tokens = vec![answer.commit(token).map_err(broken)?];
        if fast_forward {
            tokens.extend(answer.take_forced().map_err(broken)?);
        }
        let finish = answer.finish_reason().map(|reason| match reason {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        });
        Ok(Chosen { forced: tokens.len() - 1, tokens, finish })
    }

    /// Tokens that close the answer from here; none without a schema.
    pub fn close(&mut self) -> Result<Vec<u32>, GrammarError> {
        self.answer.as_mut().map_or(Ok(Vec::new()), AnswerMatcher::close)
    }
}

fn sampled(
    sampler: &mut Sampler,
    opinion: Opinion<'_>,
    mask: Option<&TokenMask>,
    sequence: &Sequence,
) -> Result<u32, String> {
    let token = match opinion {
        Opinion::Logits(logits) => sampler.sample(logits, mask, sequence.tokens()),
        Opinion::Likeliest(best) => usable(best).map(|best| best.token),
    };
    token.map_err(|error| error.to_string())
}
