//! What a picture becomes in the prompt of a Qwen model: one token for each block of patches, on a grid of positions.

use std::path::Path;

use super::api::{ModelError, Picture, VisionInput};
use super::chat::{Expansion, Eyes, Vocabulary, picture_hash};
use super::image::Patches;

/// Image processor and token id of one model.
pub struct GridEyes {
    patches: Patches,
    merge: usize,
    image: u32,
}

impl GridEyes {
    /// Sizes are what config.json says: side of a patch, patches along a token's side, frames of a patch.
    pub fn load(
        directory: &Path,
        vocabulary: &Vocabulary,
        (patch, merge, frames): (usize, usize, usize),
    ) -> Result<Self, ModelError> {
        let patches = Patches::load(directory, patch, merge, frames)?;
        Ok(Self { patches, merge, image: vocabulary.id("<|image_pad|>")? })
    }
}

impl Eyes for GridEyes {
    fn placeholder(&self) -> u32 {
        self.image
    }

    fn unit(&self) -> (String, usize) {
        let side = self.merge * self.patches.patch();
        (format!("{side} x {side} pixels"), 1)
    }

    fn look(&self, picture: Picture<'_>) -> Result<VisionInput, ModelError> {
        let patched = self.patches.process(picture)?;
        let tokens = patched.grid.0 * patched.grid.1 / (self.merge * self.merge);
        Ok(VisionInput { values: patched.values, grid: patched.grid, tokens, hash: picture_hash(picture) })
    }

    /// All tokens share one time; height and width count rows and columns. What follows begins after the longer side.
    fn expand(&self, input: &VisionInput) -> Expansion {
        let (rows, columns) = (input.grid.0 / self.merge, input.grid.1 / self.merge);
        let positions = (0..rows as u32).flat_map(|row| (0..columns as u32).map(move |column| [0, row, column]));
        Expansion {
            ids: vec![self.image; rows * columns],
            places: std::iter::once(0..rows * columns).collect(),
            positions: positions.collect(),
            advance: rows.max(columns) as u32,
        }
    }
}
