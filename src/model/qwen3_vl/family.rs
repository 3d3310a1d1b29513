//! Qwen3-VL from its files.

use std::path::Path;

use super::text_config::text_options;
use super::vision::Qwen3Tower;
use super::vision_config::Qwen3Vision;
use crate::model::api::ModelError;
use crate::model::chat::{ChatTokenizer, Vocabulary};
use crate::model::decoder::{Decoder, DecoderGenerator};
use crate::model::family::{CONFIG, Parts};
use crate::model::qwen_eyes::GridEyes;
use crate::model::weights::Weights;

/// Loads the `Qwen3VLForConditionalGeneration` in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let file = &directory.join(CONFIG);
    let options = text_options(file)?;
    let vision = Qwen3Vision::read(file, options.hidden)?;
    let vocabulary = Vocabulary::load(directory, options.vocabulary)?;
    let eyes =
        GridEyes::load(directory, &vocabulary, (vision.shared.patch, vision.shared.merge, vision.shared.frames))?;
    let processor = ChatTokenizer::new(directory, vocabulary, &options.end_tokens, Some(Box::new(eyes)))?;
    let root = weights.root();
    let tower = Qwen3Tower::load(&root.at("model").at("visual"), vision)?;
    let decoder = Decoder::load(&root.at("model").at("language_model"), &root.at("lm_head"), options)?;
    Ok(Parts::writing(processor, DecoderGenerator::new(decoder, Some(Box::new(tower)))))
}
