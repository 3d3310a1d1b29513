//! One running answer: what may come next, and how it ends within its budget.
//!
//! Wherever an answer stands there is a way out: tokens that complete it. A sampled token is taken only if the way out
//! after it still fits; otherwise the next token of the way out is taken instead. While more tokens are left than any
//! way out has bytes, nothing needs to be looked at. Knows no model and no text. Invariant: the shortest known way out
//! is never longer than the tokens that are left.

use llguidance::TokenParser;
use llguidance::toktrie::TokEnv;

use super::closing::closing;
use super::error::GrammarError;
use super::guarded::guarded;
use super::mask::TokenMask;
use super::position::JsonPosition;
use super::spelled::spell;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model came to the end by itself.
    Stop,
    /// The answer was closed because its budget ran out.
    Length,
}

/// The state of one answer. A clone goes its own way; only tables of the lexer are shared.
#[derive(Clone)]
pub struct AnswerMatcher {
    parser: TokenParser,
    tokens: TokEnv,
    position: JsonPosition,
    /// Tokens that may still come.
    remaining: usize,
    /// The most bytes, so the most tokens, of any way out.
    longest_closing: Option<usize>,
    /// The way out from here, where it was looked for.
    held: Option<Vec<u32>>,
    mask: Option<TokenMask>,
    closed_by_length: bool,
    finish: Option<FinishReason>,
}

impl AnswerMatcher {
    pub(super) fn new(
        parser: TokenParser,
        tokens: TokEnv,
        budget: usize,
        longest_closing: Option<usize>,
        shortest: Vec<u32>,
    ) -> Self {
        Self {
            parser,
            tokens,
            position: JsonPosition::default(),
            remaining: budget,
            longest_closing,
            held: Some(shortest),
            mask: None,
            closed_by_length: false,
            finish: None,
        }
    }

    /// The tokens that may come next; none once the answer is finished. End tokens are never among them: an answer ends
    /// with its last bracket.
    pub fn mask(&mut self) -> Result<&TokenMask, GrammarError> {
        let size = self.tokens.tok_trie().vocab_size();
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None if self.finish.is_some() => TokenMask::of(&[], size),
            None => {
                let found = guarded(|| self.parser.compute_mask())?;
                TokenMask::from_words(found.into(), size)
            }
        };
        Ok(self.mask.insert(mask))
    }

    /// Takes a sampled token, or the first token of the way out when the sampled one would lead beyond the budget.
    /// Gives the token that was taken: the one that the model must read next.
    pub fn commit(&mut self, sampled: u32) -> Result<u32, GrammarError> {
        if !self.mask()?.allows(sampled) {
            return Err(GrammarError::NotAllowed { token: sampled });
        }
        let token = if self.is_safe_after(1) {
            self.held = None;
            sampled
        } else {
            self.fitting(sampled)?
        };
        self.consume(&[token])?;
        Ok(token)
    }

    /// Takes the tokens that the grammar forces from here, spelled as the model's tokenizer would, and gives them: they
    /// cost no sampling. None when nothing is forced.
    pub fn take_forced(&mut self) -> Result<Vec<u32>, GrammarError> {
        if self.finish.is_some() {
            return Ok(Vec::new());
        }
        let forced = guarded(|| Ok::<_, GrammarError>(self.parser.compute_ff_tokens()))?;
        if forced.is_empty() {
            return Ok(forced);
        }
        if self.is_safe_after(forced.len()) {
            self.held = None;
        } else {
            let bytes = self.tokens.tok_trie().decode_raw(&forced);
            match self.way_out_after(&bytes)? {
                Some(path) if path.len() + forced.len() <= self.remaining => self.held = Some(path),
                // Cut otherwise than the way out, they would take more tokens; then they come one by one.
                _ => return Ok(Vec::new()),
            }
        }
        self.consume(&forced)?;
        Ok(forced)
    }

    /// Takes tokens that complete the answer from here, and gives them.
    pub fn close(&mut self) -> Result<Vec<u32>, GrammarError> {
        if self.finish.is_some() {
            return Ok(Vec::new());
        }
        let held = match self.held.take() {
            Some(held) => held,
            None => self.way_out_after(&[])?.unwrap_or_default(),
        };
        self.closed_by_length = true;
        self.consume(&held)?;
        match self.finish {
            Some(_) => Ok(held),
            None => Err(GrammarError::Broken { detail: "no way out is known from here".to_owned() }),
        }
    }

    /// Whether the answer is complete, and why; none while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Tokens that may still come.
    #[cfg(test)]
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    #[cfg(test)]
    pub(super) fn state(&mut self) -> (&mut TokenParser, JsonPosition) {
        (&mut self.parser, self.position)
    }

    /// Whether `count` tokens, whatever they are, leave room for every way out.
    fn is_safe_after(&self, count: usize) -> bool {
        self.longest_closing.is_some_and(|longest| longest + count <= self.remaining)
    }

    /// `sampled` if there is room for its way out, else the next token of the way out from here.
    fn fitting(&mut self, sampled: u32) -> Result<u32, GrammarError> {
        let mut held = match self.held.take() {
            Some(held) => held,
            None => self.way_out_after(&[])?.unwrap_or_default(),
        };
        if held.first() != Some(&sampled) {
            let bytes = self.tokens.tok_trie().decode_raw(&[sampled]);
            if let Some(path) = self.way_out_after(&bytes)?
                && path.len() < self.remaining
            {
                self.held = Some(path);
                return Ok(sampled);
            }
            self.closed_by_length = true;
        }
        if held.is_empty() || held.len() > self.remaining {
            let detail = format!("the way out takes {} tokens of {} that are left", held.len(), self.remaining);
            return Err(GrammarError::Broken { detail });
        }
        let first = held.remove(0);
        self.held = Some(held);
        Ok(first)
    }

    fn way_out_after(&mut self, bytes: &[u8]) -> Result<Option<Vec<u32>>, GrammarError> {
        way_out(&mut self.parser, &self.tokens, self.position, bytes)
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<(), GrammarError> {
        self.mask = None;
        for token in tokens {
            guarded(|| self.parser.consume_token(*token))?;
            self.position.advance_all(&self.tokens.tok_trie().decode_raw(&[*token]));
            self.remaining = self.remaining.saturating_sub(1);
        }
        guarded(|| self.parser.check_stop())?;
        if self.position.is_complete() {
            let reason = if self.closed_by_length { FinishReason::Length } else { FinishReason::Stop };
            self.finish = Some(reason);
        }
        Ok(())
    }
}

/// Tokens that complete an answer when `next` follows what was committed up to `position`; none when no way out is
/// known.
pub fn way_out(
    parser: &mut TokenParser,
    tokens: &TokEnv,
    position: JsonPosition,
    next: &[u8],
) -> Result<Option<Vec<u32>>, GrammarError> {
    let bytes = guarded(|| Ok::<_, GrammarError>(closing(&mut parser.parser, position, next)))?;
    Ok(bytes.and_then(|bytes| spell(tokens, &bytes)))
}
