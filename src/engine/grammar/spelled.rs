//! The tokens of a model as the grammar engine wants them: a tree of bytes, and a tokenizer for what is forced.
//!
//! Knows no schema. Invariant: the ids that it gives for bytes spell exactly those bytes.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::error::GrammarError;
use crate::model::{ChatProcessor, TokenSpelling};

/// A text that shows whether a tokenizer keeps what it is given: some put a space first.
const SAMPLE: &str = "{\"a\": \"b c\", \"d\": [1, null]}";

/// The vocabulary of one model.
pub struct SpelledTokens {
    trie: TokTrie,
    processor: Arc<dyn ChatProcessor>,
    /// Whether the model's own tokenizer can be asked how it would write a text.
    canonical: bool,
    /// Whether every byte of a JSON text is a token, so that bytes never need more tokens than they are.
    every_byte: bool,
}

impl SpelledTokens {
    pub fn new(processor: Arc<dyn ChatProcessor>) -> Result<Self, GrammarError> {
        let unusable = |detail: String| GrammarError::Vocabulary { detail };
        let table = processor.vocabulary().map_err(|error| unusable(error.to_string()))?;
        let spelled: Vec<Vec<u8>> = table.tokens.into_iter().map(bytes_of).collect();
        let Some(end) = table.end_tokens.iter().copied().find(|id| (*id as usize) < spelled.len()) else {
            return Err(unusable("there is no end token; set eos_token_id in generation_config.json".to_owned()));
        };
        let size = u32::try_from(spelled.len()).map_err(|_| unusable("there are too many".to_owned()))?;
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &spelled);
        let known: Vec<u32> = table.end_tokens.into_iter().filter(|id| *id < size).collect();
        let trie = trie.with_eos_tokens(&known);
        let every_byte = (b' '..=b'~').chain(0x80..=0xf4).all(|byte| match byte {
            0xc0 | 0xc1 => true,
            byte => trie.token_id_at_bytes(&[byte]).is_some(),
        });
        let mut tokens = Self { trie, processor, canonical: true, every_byte };
        tokens.canonical = tokens.own(SAMPLE).is_some();
        Ok(tokens)
    }

    /// As shared by all grammars of the model.
    pub fn shared(self) -> TokEnv {
        Arc::new(self)
    }

    pub fn every_byte(&self) -> bool {
        self.every_byte
    }

    /// The ids of the model's own tokenizer, if they spell the text.
    fn own(&self, text: &str) -> Option<Vec<TokenId>> {
        let ids = self.processor.plain(text).ok()?;
        (self.trie.decode_raw(&ids) == text.as_bytes()).then_some(ids)
    }
}

impl TokenizerEnv for SpelledTokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let tokenize = |text: &str| self.own(text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()));
        self.trie.tokenize_with_greedy_fallback(bytes, tokenize)
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}

/// A vocabulary of single bytes, for schemas that are checked without a model.
pub fn single_bytes() -> TokEnv {
    ApproximateTokEnv::single_byte_env()
}

/// Ids that spell exactly these bytes; none when the vocabulary has no tokens for them.
pub fn spell(env: &TokEnv, bytes: &[u8]) -> Option<Vec<u32>> {
    let exact = |ids: Vec<u32>| (env.tok_trie().decode_raw(&ids) == bytes).then_some(ids);
    exact(env.tokenize_bytes(bytes)).or_else(|| exact(env.tok_trie().greedy_tokenize(bytes)))
}

/// The grammar engine tells special tokens from texts by a byte that no text has.
fn bytes_of(spelling: TokenSpelling) -> Vec<u8> {
    match spelling {
        TokenSpelling::Bytes(bytes) => bytes,
        TokenSpelling::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
        TokenSpelling::Unused => Vec::new(),
    }
}
