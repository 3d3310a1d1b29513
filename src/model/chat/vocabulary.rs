//! The tokenizer of a generator: with its special tokens, and without.
//!
//! A text that somebody wrote is never a command to the model: where it spells a special token it is encoded letter by
//! letter. Invariant: without such a spelling the ids are those of the whole text encoded at once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokenizers::Tokenizer;

use super::spelling::spellings;
use crate::model::api::{ModelError, TokenSpelling};
use crate::model::tokenizer::TOKENIZER;

/// The tokenizer.json of a model directory.
pub struct Vocabulary {
    file: PathBuf,
    full: Tokenizer,
    /// The same without added tokens; made when a text needs it, which few do.
    plain: OnceLock<Tokenizer>,
    /// Special tokens by their spelling.
    special: HashMap<String, u32>,
    /// Lengths of the spellings, the longest first.
    special_lengths: Vec<usize>,
    /// First bytes of the spellings.
    special_starts: Vec<u8>,
    /// Ids beyond it are unknown to the model.
    size: usize,
}

impl Vocabulary {
    /// Reads tokenizer.json; `size` is the number of embeddings.
    pub fn load(directory: &Path, size: usize) -> Result<Self, ModelError> {
        let file = directory.join(TOKENIZER);
        let bytes = std::fs::read(&file).map_err(|source| ModelError::Read { path: file.clone(), source })?;
        Self::parse(file, &bytes, size)
    }

    /// The same from the file's content.
    pub fn parse(file: PathBuf, bytes: &[u8], size: usize) -> Result<Self, ModelError> {
        let malformed = |error: &dyn std::fmt::Display| ModelError::malformed(&file, error);
        let mut full = Tokenizer::from_bytes(bytes).map_err(|error| malformed(&error))?;
        full.with_truncation(None).map_err(|error| malformed(&error))?;
        full.with_padding(None);
        let decoder = full.get_added_tokens_decoder();
        let special: HashMap<String, u32> = decoder
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        let descending = |mut values: Vec<usize>| {
            values.sort_unstable_by(|a, b| b.cmp(a));
            values.dedup();
            values
        };
        let special_lengths = descending(special.keys().map(String::len).collect());
        let starts = descending(special.keys().map(|spelling| usize::from(spelling.as_bytes()[0])).collect());
        let special_starts = starts.into_iter().map(|byte| byte as u8).collect();
        Ok(Self { file, full, plain: OnceLock::new(), special, special_lengths, special_starts, size })
    }

    fn without_added(&self) -> &Tokenizer {
        self.plain.get_or_init(|| {
            let mut plain = Tokenizer::new(self.full.get_model().clone());
            let normalised = plain.with_normalizer(self.full.get_normalizer().cloned());
            normalised.expect("only added tokens are normalised then, and there is none");
            plain.with_pre_tokenizer(self.full.get_pre_tokenizer().cloned());
            plain
        })
    }

    /// The id of a token that the family needs.
    pub fn id(&self, token: &str) -> Result<u32, ModelError> {
        let found = self.full.token_to_id(token);
        found.ok_or_else(|| ModelError::malformed(&self.file, format!("the token {token} is missing")))
    }

    /// Encodes a text as it stands: special tokens are themselves. `with_frame` adds those that belong around a text.
    pub fn encode(&self, text: &str, with_frame: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.full.encode_fast(text, with_frame).map_err(|error| refused(&error))?;
        self.known(encoding.get_ids().to_vec())
    }

    /// Encodes a rendered chat in which each mark stands for something that its writer spelled like a special token.
    pub fn encode_marked(&self, rendered: &str, marks: &HashMap<char, String>) -> Result<Vec<u32>, ModelError> {
        if !rendered.contains(|letter| marks.contains_key(&letter)) {
            return self.encode(rendered, false);
        }
        let mut ids = Vec::new();
        let mut rest = rendered;
        while !rest.is_empty() {
            let next = self.next_special(rest);
            let text = next.map_or(rest, |(at, _, _)| &rest[..at]);
            if text.contains(|letter| marks.contains_key(&letter)) {
                let spelled: String = text
                    .chars()
                    .map(|letter| marks.get(&letter).cloned().unwrap_or_else(|| letter.to_string()))
                    .collect();
                let encoding =
                    self.without_added().encode_fast(spelled.as_str(), false).map_err(|error| refused(&error))?;
                ids.extend_from_slice(encoding.get_ids());
            } else if !text.is_empty() {
                ids.extend(self.encode(text, false)?);
            }
            let Some((at, length, id)) = next else { break };
            ids.push(id);
            rest = &rest[at + length..];
        }
        self.known(ids)
    }

    /// Replaces what `text` spells like a special token by marks, which are letters that occur in no text.
    pub fn mark(&self, text: &str, marks: &mut HashMap<char, String>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, length, _)) = self.next_special(rest) {
            out.push_str(&rest[..at]);
            let spelled = &rest[at..at + length];
            let known = marks.iter().find(|(_, known)| *known == spelled).map(|(mark, _)| *mark);
            let mark = known.unwrap_or_else(|| unused(marks, text));
            marks.insert(mark, spelled.to_owned());
            out.push(mark);
            rest = &rest[at + length..];
        }
        out.push_str(rest);
        out
    }

    /// The first special token in `text`: where, how long, which. Of several at one place the longest. A look at each
    /// length, not at each token: a text full of beginnings costs no more than its length allows.
    fn next_special(&self, text: &str) -> Option<(usize, usize, u32)> {
        let starts = text.bytes().enumerate().filter(|(_, byte)| self.special_starts.contains(byte));
        starts.map(|(at, _)| at).find_map(|at| {
            self.special_lengths.iter().find_map(|length| {
                let id = self.special.get(text.get(at..at + length)?)?;
                Some((at, *length, *id))
            })
        })
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.full.decode(ids, true).map_err(|error| refused(&error))
    }

    /// What each id spells, of as many as the model has embeddings.
    pub fn spellings(&self) -> Result<Vec<TokenSpelling>, ModelError> {
        spellings(&self.full, self.size).map_err(|detail| ModelError::malformed(&self.file, detail))
    }

    /// The ids of a text in which nothing is special.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.without_added().encode_fast(text, false).map_err(|error| refused(&error))?;
        self.known(encoding.get_ids().to_vec())
    }

    fn known(&self, ids: Vec<u32>) -> Result<Vec<u32>, ModelError> {
        match ids.iter().find(|id| **id as usize >= self.size) {
            Some(id) => {
                let detail = format!("token id {id} lies outside the model's vocabulary of {}", self.size);
                Err(ModelError::malformed(&self.file, detail))
            }
            None => Ok(ids),
        }
    }
}

/// A private-use letter that is neither a mark yet nor in `text`.
fn unused(marks: &HashMap<char, String>, text: &str) -> char {
    let mut letters = ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}');
    letters.find(|letter| !marks.contains_key(letter) && !text.contains(*letter)).unwrap_or('\u{fffd}')
}

fn refused(error: &dyn std::fmt::Display) -> ModelError {
    ModelError::Input { detail: format!("the text cannot be tokenised: {error}") }
}
