//! What a picture becomes in a Llama 4 prompt: a run of patch tokens for each tile, with marks between them.

use std::path::Path;

use crate::model::api::{ModelError, Picture, VisionInput};
use crate::model::chat::{Expansion, Eyes, Vocabulary, picture_hash};
use crate::model::image::Tiles;

/// Image processor and token ids of one model.
pub struct TileEyes {
    tiles: Tiles,
    /// Patch tokens of one tile.
    tokens: usize,
    image: u32,
    patch: u32,
    start: u32,
    end: u32,
    beside: u32,
    below: u32,
}

impl TileEyes {
    /// `side` and `tokens` are what config.json says of a tile: its side in pixels, the rows of features it gives.
    pub fn load(
        directory: &Path,
        vocabulary: &Vocabulary,
        (side, tokens): (usize, usize),
        patch: u32,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            tiles: Tiles::load(directory, side)?,
            tokens,
            image: vocabulary.id("<|image|>")?,
            patch,
            start: vocabulary.id("<|image_start|>")?,
            end: vocabulary.id("<|image_end|>")?,
            beside: vocabulary.id("<|tile_x_separator|>")?,
            below: vocabulary.id("<|tile_y_separator|>")?,
        })
    }
}

impl Eyes for TileEyes {
    fn placeholder(&self) -> u32 {
        self.image
    }

    fn unit(&self) -> (String, usize) {
        let side = self.tiles.side();
        (format!("tile of {side} x {side} pixels"), self.tokens)
    }

    fn look(&self, picture: Picture<'_>) -> Result<VisionInput, ModelError> {
        let tiled = self.tiles.process(picture)?;
        let tokens = tiled.tiles * self.tokens;
        Ok(VisionInput { values: tiled.values, grid: tiled.grid, tokens, hash: picture_hash(picture) })
    }

    fn expand(&self, input: &VisionInput) -> Expansion {
        let mut out = Expansion { ids: vec![self.start], ..Expansion::default() };
        let tile = |out: &mut Expansion| {
            let from = out.ids.len();
            out.ids.resize(from + self.tokens, self.patch);
            out.places.push(from..from + self.tokens);
        };
        let (rows, columns) = input.grid;
        if rows * columns > 1 {
            for _ in 0..rows {
                for column in 0..columns {
                    tile(&mut out);
                    out.ids.push(if column + 1 == columns { self.below } else { self.beside });
                }
            }
        }
        out.ids.push(self.image);
        tile(&mut out);
        out.ids.push(self.end);
        out.positions = (0..out.ids.len() as u32).map(|position| [position; 3]).collect();
        out.advance = out.ids.len() as u32;
        out
    }
}
