//! Llama 3 and its likes: `LlamaForCausalLM`.

use std::path::Path;

use super::api::ModelError;
use super::chat::{ChatTokenizer, Vocabulary};
use super::decoder::{Biases, Decoder, DecoderGenerator, DecoderOptions, FamilyDefaults, TextSection};
use super::family::{CONFIG, Parts};
use super::layers::Pairing;
use super::weights::{Weights, read_json};

const DEFAULTS: FamilyDefaults =
    FamilyDefaults { rope_theta: 10_000.0, epsilon: 1e-6, context: 2048, pairing: Pairing::Halves };

/// Reads config.json.
pub fn options(file: &Path) -> Result<DecoderOptions, ModelError> {
    let section: TextSection = read_json(file)?;
    let bias = section.attention_bias.unwrap_or(false);
    let biases =
        Biases { query_key_value: bias, attention_output: bias, feed_forward: section.mlp_bias.unwrap_or(false) };
    Ok(DecoderOptions { biases, ..section.options(DEFAULTS, (file, ""))? })
}

/// Loads the model in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let options = options(&directory.join(CONFIG))?;
    let vocabulary = Vocabulary::load(directory, options.vocabulary)?;
    let processor = ChatTokenizer::new(directory, vocabulary, &options.end_tokens, None)?;
    let root = weights.root();
    let decoder = Decoder::load(&root.at("model"), &root.at("lm_head"), options)?;
    Ok(Parts::writing(processor, DecoderGenerator::new(decoder, None)))
}
