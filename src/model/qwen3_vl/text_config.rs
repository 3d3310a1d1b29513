//! What config.json says of Qwen3-VL's decoder.

use std::path::Path;

use serde::Deserialize;

use crate::model::api::ModelError;
use crate::model::decoder::{Biases, DecoderOptions, FamilyDefaults, QkNorm, TextSection};
use crate::model::layers::Pairing;
use crate::model::weights::read_json;

const DEFAULTS: FamilyDefaults =
    FamilyDefaults { rope_theta: 5_000_000.0, epsilon: 1e-6, context: 128_000, pairing: Pairing::Halves };

/// Reads config.json.
pub fn text_options(file: &Path) -> Result<DecoderOptions, ModelError> {
    #[derive(Deserialize)]
    struct File {
        text_config: TextSection,
        tie_word_embeddings: Option<bool>,
    }
    let File { text_config, tie_word_embeddings } = read_json(file)?;
    let at = (file, "text_config.");
    text_config.needs_sections(at)?;
    let text_config = text_config.by_turns();
    let mut options = text_config.options(DEFAULTS, at)?;
    let bias = text_config.attention_bias.unwrap_or(false);
    options.biases = Biases { query_key_value: bias, attention_output: bias, feed_forward: false };
    options.qk_norm = QkNorm::Weighted;
    options.tied = tie_word_embeddings.unwrap_or(options.tied);
    Ok(options)
}
