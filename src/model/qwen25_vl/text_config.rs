//! What config.json says of Qwen2.5-VL's decoder: in a section of its own, or, in older files, at the top.

use std::path::Path;

use serde::Deserialize;

use crate::model::api::ModelError;
use crate::model::decoder::{Biases, DecoderOptions, FamilyDefaults, TextSection};
use crate::model::layers::Pairing;
use crate::model::weights::read_json;

const DEFAULTS: FamilyDefaults =
    FamilyDefaults { rope_theta: 1_000_000.0, epsilon: 1e-5, context: 32_768, pairing: Pairing::Halves };

/// Reads config.json.
pub fn text_options(file: &Path) -> Result<DecoderOptions, ModelError> {
    #[derive(Deserialize)]
    struct File {
        text_config: Option<TextSection>,
        tie_word_embeddings: Option<bool>,
    }
    let found: File = read_json(file)?;
    let (section, name) = match found.text_config {
        Some(section) => (section, "text_config."),
        None => (read_json(file)?, ""),
    };
    section.needs_sections((file, name))?;
    let mut options = section.options(DEFAULTS, (file, name))?;
    // Queries, keys and values always have a bias, the output never.
    options.biases = Biases { query_key_value: true, attention_output: false, feed_forward: false };
    options.tied |= found.tie_word_embeddings.unwrap_or(false);
    Ok(options)
}
