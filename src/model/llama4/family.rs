//! Llama 4 from its files.

use std::path::Path;

use serde::Deserialize;

use super::eyes::TileEyes;
use super::text_config::Llama4Text;
use super::vision::Llama4Tower;
use super::vision_config::Llama4Vision;
use crate::model::api::ModelError;
use crate::model::chat::{ChatTokenizer, Vocabulary};
use crate::model::decoder::{Decoder, DecoderGenerator};
use crate::model::family::{CONFIG, Parts};
use crate::model::weights::{Weights, read_json};

/// Loads the `Llama4ForConditionalGeneration` in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    #[derive(Deserialize)]
    struct File {
        text_config: Llama4Text,
        image_token_index: u32,
    }
    let file = &directory.join(CONFIG);
    let found: File = read_json(file)?;
    let options = found.text_config.options((file, "text_config."))?;
    let vision = Llama4Vision::read(file)?;
    let vocabulary = Vocabulary::load(directory, options.vocabulary)?;
    let eyes = TileEyes::load(directory, &vocabulary, (vision.side, vision.tokens()), found.image_token_index)?;
    let processor = ChatTokenizer::new(directory, vocabulary, &options.end_tokens, Some(Box::new(eyes)))?;
    let language = weights.root().at("language_model");
    let tower = Llama4Tower::load(&weights.root(), vision, options.hidden)?;
    let decoder = Decoder::load(&language.at("model"), &language.at("lm_head"), options)?;
    Ok(Parts::writing(processor, DecoderGenerator::new(decoder, Some(Box::new(tower)))))
}

/// Loads the `Llama4ForCausalLM` in `directory`: the decoder alone.
pub fn load_text(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let file = &directory.join(CONFIG);
    let text: Llama4Text = read_json(file)?;
    let options = text.options((file, ""))?;
    let vocabulary = Vocabulary::load(directory, options.vocabulary)?;
    let processor = ChatTokenizer::new(directory, vocabulary, &options.end_tokens, None)?;
    let root = weights.root();
    let decoder = Decoder::load(&root.at("model"), &root.at("lm_head"), options)?;
    Ok(Parts::writing(processor, DecoderGenerator::new(decoder, None)))
}
