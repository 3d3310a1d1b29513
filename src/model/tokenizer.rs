//! Text to token ids, by the tokenizer.json of the model directory.
//!
//! This file knows no tensors. Invariant: ids that are handed out are known to the model's embedding table, are never
//! more than its positions, and keep their closing special token when the text was cut.

use std::path::Path;

use serde::Deserialize;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use super::api::{ModelError, TokenIds};
use super::config::TextTower;
use super::weights::read_json;

pub const TOKENIZER: &str = "tokenizer.json";
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Whether a family wants its texts filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Texts keep their length.
    None,
    /// Texts are filled up to the limit; the padding is part of the text.
    ToLimit,
}

/// A tokenizer with its model's limits.
pub struct TextProcessor {
    tokenizer: Tokenizer,
    limit: usize,
    vocabulary: usize,
    fill: Option<u32>,
}

/// The part of tokenizer_config.json that concerns us.
#[derive(Default, Deserialize)]
struct Settings {
    /// Some writers put 1e30 here for "no limit".
    model_max_length: Option<f64>,
    pad_token: Option<Special>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Detailed { content: String },
}

impl TextProcessor {
    /// Reads tokenizer.json and, where it is present, tokenizer_config.json.
    pub fn load(directory: &Path, tower: &TextTower, padding: Padding) -> Result<Self, ModelError> {
        Self::load_up_to(directory, tower, padding, None)
    }

    /// The same, with a longest text that counts instead of tokenizer_config.json's `model_max_length`.
    pub fn load_up_to(
        directory: &Path,
        tower: &TextTower,
        padding: Padding,
        longest: Option<usize>,
    ) -> Result<Self, ModelError> {
        let file = directory.join(TOKENIZER);
        let bytes = std::fs::read(&file).map_err(|source| ModelError::Read { path: file.clone(), source })?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| ModelError::malformed(&file, error))?;
        let settings_file = directory.join(TOKENIZER_CONFIG);
        let settings: Settings = if settings_file.is_file() { read_json(&settings_file)? } else { Settings::default() };
        let limit = match longest.map(|length| length as f64).or(settings.model_max_length) {
            Some(length) if length >= 1.0 && length < tower.positions as f64 => length as usize,
            _ => tower.positions,
        };
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit <= special {
            let detail = format!("{special} special tokens leave no room for text in {limit} positions");
            return Err(ModelError::malformed(&file, detail));
        }
        let truncation = TruncationParams { max_length: limit, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| ModelError::malformed(&file, error))?;
        tokenizer.with_padding(None);
        let fill = match padding {
            Padding::None => None,
            Padding::ToLimit => Some(pad_id(&tokenizer, &settings, tower, &settings_file)?),
        };
        Ok(Self { tokenizer, limit, vocabulary: tower.vocabulary, fill })
    }

    /// The ids of one text. Fails with [`ModelError::Input`] when there are none or one is unknown to the model.
    pub fn encode(&self, text: &str) -> Result<TokenIds, ModelError> {
        let encoded = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|error| ModelError::Input { detail: format!("the text cannot be tokenised: {error}") })?;
        let mut ids = encoded.get_ids().to_vec();
        if let Some(fill) = self.fill {
            ids.resize(self.limit, fill);
        }
        if ids.is_empty() {
            return Err(ModelError::Input { detail: "the text has no tokens".to_owned() });
        }
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            Some(id) => {
                let detail = format!("token id {id} is beyond the model's vocabulary of {}", self.vocabulary);
                Err(ModelError::Input { detail })
            }
            None => Ok(TokenIds(ids)),
        }
    }
}

/// The tokenizer's own padding token wins over config.json, whose default is often left as it was.
fn pad_id(tokenizer: &Tokenizer, settings: &Settings, tower: &TextTower, file: &Path) -> Result<u32, ModelError> {
    let Some(Special::Text(token) | Special::Detailed { content: token }) = &settings.pad_token else {
        return Ok(tower.pad_token);
    };
    tokenizer
        .token_to_id(token)
        .ok_or_else(|| ModelError::malformed(file, format!("pad_token {token:?} is not in {TOKENIZER}")))
}
