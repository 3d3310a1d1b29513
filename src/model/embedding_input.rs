//! The CPU side of encoders: of those that take texts and pictures, texts alone, or pictures alone.
//!
//! Invariant: what a model does not take is refused with one sentence, here and by its encoder alike.

use super::api::{ModelError, Picture, Pixels, Processor, TokenIds};
use super::image_processor::ImageProcessor;
use super::tokenizer::TextProcessor;

/// The refusal of a picture.
pub fn texts_only() -> ModelError {
    ModelError::Input { detail: "this model embeds texts, not pictures".to_owned() }
}

/// The refusal of a text.
pub fn images_only() -> ModelError {
    ModelError::Input { detail: "this model embeds pictures, not texts".to_owned() }
}

/// The CPU side of a text encoder.
pub struct TextOnly {
    pub text: TextProcessor,
    /// Whether texts are lower-cased before the tokenizer sees them.
    pub lower_case: bool,
}

impl Processor for TextOnly {
    fn text(&self, text: &str) -> Result<TokenIds, ModelError> {
        match self.lower_case {
            true => self.text.encode(&text.to_lowercase()),
            false => self.text.encode(text),
        }
    }

    fn image(&self, _picture: Picture<'_>) -> Result<Pixels, ModelError> {
        Err(texts_only())
    }
}

/// The CPU side of a picture encoder.
pub struct ImageOnly {
    pub image: ImageProcessor,
}

impl Processor for ImageOnly {
    fn text(&self, _text: &str) -> Result<TokenIds, ModelError> {
        Err(images_only())
    }

    fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError> {
        self.image.process(picture)
    }
}

/// The CPU side of an encoder with a text and a picture tower.
pub struct TextAndImage {
    pub text: TextProcessor,
    pub image: ImageProcessor,
}

impl Processor for TextAndImage {
    fn text(&self, text: &str) -> Result<TokenIds, ModelError> {
        self.text.encode(text)
    }

    fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError> {
        self.image.process(picture)
    }
}
