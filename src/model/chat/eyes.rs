//! What a family makes of a picture in a chat.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::model::api::{ModelError, Picture, VisionInput};

/// A family's way with pictures.
pub trait Eyes: Send + Sync {
    /// The token that stands for a picture in a rendered chat.
    fn placeholder(&self) -> u32;

    /// What a picture is cut into, and the tokens of each piece.
    fn unit(&self) -> (String, usize);

    /// Makes the vision tower's input.
    fn look(&self, picture: Picture<'_>) -> Result<VisionInput, ModelError>;

    /// The tokens that take the placeholder's place.
    fn expand(&self, input: &VisionInput) -> Expansion;
}

/// The tokens of one picture in a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    pub ids: Vec<u32>,
    /// Which of them take rows of features, in order.
    pub places: Vec<Range<usize>>,
    /// Position of each token on the three axes, counted from the first.
    pub positions: Vec<[u32; 3]>,
    /// How many positions lie between the first token and what follows the picture.
    pub advance: u32,
}

/// SHA-256 of a decoded picture: width and height as little-endian u32, then its bytes.
pub fn picture_hash(picture: Picture<'_>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(picture.width.to_le_bytes());
    hash.update(picture.height.to_le_bytes());
    hash.update(picture.rgb);
    hash.finalize().into()
}
