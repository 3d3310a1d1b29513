//! Qwen2.5-VL from its files.

use std::path::Path;

use super::text_config::text_options;
use super::vision::Qwen25Tower;
use super::vision_config::Qwen25Vision;
use crate::model::api::ModelError;
use crate::model::chat::{ChatTokenizer, Vocabulary};
use crate::model::decoder::{Decoder, DecoderGenerator};
use crate::model::family::{CONFIG, Parts};
use crate::model::qwen_eyes::GridEyes;
use crate::model::weights::Weights;

/// Loads the `Qwen2_5_VLForConditionalGeneration` in `directory`. Newer files put the decoder below
/// `model.language_model` and the tower below `model.visual`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let file = &directory.join(CONFIG);
    let options = text_options(file)?;
    let vision = Qwen25Vision::read(file, options.hidden)?;
    let vocabulary = Vocabulary::load(directory, options.vocabulary)?;
    let eyes =
        GridEyes::load(directory, &vocabulary, (vision.shared.patch, vision.shared.merge, vision.shared.frames))?;
    let processor = ChatTokenizer::new(directory, vocabulary, &options.end_tokens, Some(Box::new(eyes)))?;
    let root = weights.root();
    let nested = weights.has("model.language_model.embed_tokens.weight");
    let (language, visual) = match nested {
        true => (root.at("model").at("language_model"), root.at("model").at("visual")),
        false => (root.at("model"), root.at("visual")),
    };
    let tower = Qwen25Tower::load(&visual, vision)?;
    let decoder = Decoder::load(&language, &root.at("lm_head"), options)?;
    Ok(Parts::writing(processor, DecoderGenerator::new(decoder, Some(Box::new(tower)))))
}
