//! Llama 4's image processor: a canvas of tiles, and the whole picture once more in one tile.
//!
//! Follows `Llama4ImageProcessor`, number formats included: sizes are worked out in f32 or f64 as the reference does, and
//! pixels are normalised in bfloat16. Invariant: the result equals the reference's, bit for bit.

use std::path::Path;

use half::bf16;

use crate::model::api::{ModelError, Picture};
use crate::model::image_processor::{Defaults, Settings};
use crate::model::resize::{Filter, Window, resize};

const DEFAULTS: Defaults = Defaults {
    one_size_is_shortest_edge: false,
    size: 336,
    center_crop: false,
    kept_share: None,
    filter: Filter::Bilinear,
    mean: [0.5; 3],
    deviation: [0.5; 3],
    kinds: &["Llama4ImageProcessor", "Llama4ImageProcessorFast"],
};

/// More than a picture of this many pixels to resize is no picture of a product.
const MOST_RESIZED_PIXELS: u64 = 1 << 26;

/// The settings of one model, ready to apply.
#[derive(Debug)]
pub struct Tiles {
    /// Of a tile, in pixels.
    side: u32,
    /// The most tiles of one picture, without the global one.
    most: u32,
    to_largest_canvas: bool,
    filter: Filter,
    /// The normalised value of each of the 256 levels, per channel.
    levels: [[f32; 256]; 3],
}

/// One picture's tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiled {
    /// `[tiles, 3, side, side]`: row by row, then the global tile if there is more than one.
    pub values: Vec<f32>,
    /// Rows and columns of tiles.
    pub grid: (usize, usize),
    /// The global one included.
    pub tiles: usize,
}

impl Tiles {
    /// Of a tile, in pixels.
    pub fn side(&self) -> u32 {
        self.side
    }

    /// Reads the image settings of a model directory. `side` is what config.json says of the tower.
    pub fn load(directory: &Path, side: usize) -> Result<Self, ModelError> {
        let settings = Settings::read(directory)?;
        settings.check_kind(&[DEFAULTS])?;
        let edge = |name: &str| match settings.value("size").and_then(|size| size.get(name)) {
            Some(value) => settings.pixels(&format!("size.{name}"), value),
            None => Ok(DEFAULTS.size),
        };
        let (width, height) = (edge("width")?, edge("height")?);
        if (width as usize, height as usize) != (side, side) {
            let detail = format!("tiles are {width} x {height}, but config.json takes {side} x {side}");
            return Err(ModelError::malformed(&settings.file, detail));
        }
        let most = match settings.value("max_patches") {
            None => 16,
            Some(value) => match value.as_u64() {
                Some(most @ 1..=1024) => most as u32,
                _ => return Err(settings.unsupported("max_patches", value, "write a number from 1 to 1024")),
            },
        };
        Ok(Self {
            side: width,
            most,
            to_largest_canvas: settings.flag("resize_to_max_canvas", false)?,
            filter: settings.filter(&DEFAULTS)?,
            levels: levels(&settings)?,
        })
    }

    /// Cuts a picture into tiles.
    pub fn process(&self, picture: Picture<'_>) -> Result<Tiled, ModelError> {
        check(picture)?;
        let side = self.side as usize;
        let canvas = self.canvas(picture.width, picture.height);
        let (width, height) = self.resized(picture.width, picture.height, canvas);
        if u64::from(picture.height) * u64::from(width) > MOST_RESIZED_PIXELS {
            let detail = format!("a picture of {} x {} is too long to be resized", picture.width, picture.height);
            return Err(ModelError::Input { detail });
        }
        let (rows, columns) = (canvas.0 as usize, canvas.1 as usize);
        let parts = rows * columns;
        let tiles = if parts > 1 { parts + 1 } else { 1 };
        let mut values = vec![0.0; tiles * 3 * side * side];
        let resized = self.scaled(picture, (width, height))?;
        let (width, height) = (width as usize, height as usize);
        for (index, tile) in values.chunks_exact_mut(3 * side * side).take(parts).enumerate() {
            let (top, left) = (index / columns * side, index % columns * side);
            for row in 0..side {
                // What the picture does not cover of the canvas is black.
                let covered = if top + row < height { width.saturating_sub(left).min(side) } else { 0 };
                let from = ((top + row) * width + left) * 3;
                let line = if covered > 0 { &resized[from..from + covered * 3] } else { &[] };
                self.line(line, row, tile);
            }
        }
        if parts > 1 {
            let whole = self.scaled(picture, (self.side, self.side))?;
            let tile = &mut values[parts * 3 * side * side..];
            for (row, line) in whole.chunks_exact(3 * side).enumerate() {
                self.line(line, row, tile);
            }
        }
        Ok(Tiled { values, grid: (rows, columns), tiles })
    }

    fn scaled(&self, picture: Picture<'_>, (width, height): (u32, u32)) -> Result<Vec<u8>, ModelError> {
        let window = Window { left: 0, top: 0, width, height };
        resize(picture, (width, height), window, self.filter)
            .map_err(|error| ModelError::Input { detail: format!("the picture cannot be resized: {error}") })
    }

    /// Normalises one line of RGB into the three planes of a tile; what the line leaves over is black.
    fn line(&self, line: &[u8], row: usize, tile: &mut [f32]) {
        let side = self.side as usize;
        for (channel, levels) in self.levels.iter().enumerate() {
            let from = (channel * side + row) * side;
            let out = &mut tile[from..from + side];
            let (covered, black) = out.split_at_mut(line.len() / 3);
            for (value, pixel) in covered.iter_mut().zip(line.chunks_exact(3)) {
                *value = levels[usize::from(pixel[channel])];
            }
            black.fill(levels[0]);
        }
    }

    /// Rows and columns of the tiles that waste least of the picture.
    fn canvas(&self, width: u32, height: u32) -> (u32, u32) {
        let scale = |rows: u32, columns: u32| {
            let down = (rows * self.side) as f32 / height as f32;
            let across = (columns * self.side) as f32 / width as f32;
            down.min(across)
        };
        let all = (1..=self.most).flat_map(|rows| (1..=self.most / rows).map(move |columns| (rows, columns)));
        let scaled: Vec<((u32, u32), f32)> =
            all.map(|(rows, columns)| ((rows, columns), scale(rows, columns))).collect();
        let scales = || scaled.iter().map(|(_, scale)| *scale);
        let enlarging = || scales().filter(|scale| *scale >= 1.0);
        let chosen = match (enlarging().next().is_some(), self.to_largest_canvas) {
            (true, false) => enlarging().fold(f32::INFINITY, f32::min),
            (true, true) => enlarging().fold(0.0, f32::max),
            (false, _) => scales().fold(0.0, f32::max),
        };
        let fitting = scaled.iter().filter(|(_, scale)| *scale == chosen).map(|(canvas, _)| *canvas);
        fitting.min_by_key(|(rows, columns)| rows * columns).unwrap_or((1, 1))
    }

    /// Width and height of the picture on its canvas.
    fn resized(&self, width: u32, height: u32, (rows, columns): (u32, u32)) -> (u32, u32) {
        let target = |size: u32, tiles: u32| {
            let canvas = tiles * self.side;
            let limit = if self.to_largest_canvas { canvas } else { size.max(self.side).min(canvas) };
            // The reference keeps a canvas size as an f32 tensor and a picture size as a number of its own.
            let from_canvas = self.to_largest_canvas || canvas < size.max(self.side);
            let ratio = match from_canvas {
                true => Ratio::Single(limit as f32 / size as f32),
                false => Ratio::Double(f64::from(limit) / f64::from(size)),
            };
            (limit, ratio)
        };
        let (most_height, down) = target(height, rows);
        let (most_width, across) = target(width, columns);
        if across.less_than(down) {
            (most_width, across.of(height).min(most_height).max(1))
        } else {
            (down.of(width).min(most_width).max(1), most_height)
        }
    }
}

/// A factor in the number format in which the reference has it.
#[derive(Debug, Clone, Copy)]
enum Ratio {
    Single(f32),
    Double(f64),
}

impl Ratio {
    fn less_than(self, other: Self) -> bool {
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a < b,
            (a, b) => a.single() < b.single(),
        }
    }

    fn single(self) -> f32 {
        match self {
            Self::Single(ratio) => ratio,
            Self::Double(ratio) => ratio as f32,
        }
    }

    /// The product, rounded down.
    fn of(self, size: u32) -> u32 {
        match self {
            Self::Single(ratio) => (size as f32 * ratio).floor() as u32,
            Self::Double(ratio) => (f64::from(size) * ratio).floor() as u32,
        }
    }
}

/// Refuses what is no picture.
pub fn check(picture: Picture<'_>) -> Result<(), ModelError> {
    let Picture { width, height, rgb } = picture;
    if width == 0 || height == 0 || rgb.len() as u64 != u64::from(width) * u64::from(height) * 3 {
        let detail = format!("a picture of {width} x {height} pixels cannot have {} bytes", rgb.len());
        return Err(ModelError::Input { detail });
    }
    Ok(())
}

/// `(level / 255 - mean) / deviation`, each step rounded to bfloat16.
fn levels(settings: &Settings) -> Result<[[f32; 256]; 3], ModelError> {
    let factor = settings.value("rescale_factor").and_then(serde_json::Value::as_f64).unwrap_or(1.0 / 255.0);
    if !settings.flag("do_rescale", true)? || !settings.flag("do_normalize", true)? {
        return Err(settings.unsupported("do_rescale, do_normalize", false, "set both to true"));
    }
    let round = |value: f32| bf16::from_f32(value).to_f32();
    let mean = settings.channels("image_mean", DEFAULTS.mean)?;
    let deviation = settings.channels("image_std", DEFAULTS.deviation)?;
    Ok(std::array::from_fn(|channel| {
        std::array::from_fn(|level| {
            let scaled = round((level as f64 * factor) as f32);
            round(round(scaled - round(mean[channel])) / round(deviation[channel]))
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles(json: &str, side: usize) -> Result<Tiles, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("preprocessor_config.json"), json).unwrap();
        Tiles::load(directory.path(), side)
    }

    #[test]
    fn a_wide_picture_gets_a_row_of_tiles_and_a_global_one() {
        let tiles = tiles(r#"{"size": {"height": 8, "width": 8}, "max_patches": 4}"#, 8).unwrap();
        let rgb = vec![255; 16 * 8 * 3];
        let tiled = tiles.process(Picture { width: 16, height: 8, rgb: &rgb }).unwrap();
        assert_eq!((tiled.grid, tiled.tiles), ((1, 2), 3));
        assert!(tiled.values.iter().all(|value| *value == 1.0));
    }

    #[test]
    fn a_small_picture_is_not_enlarged_and_the_rest_of_its_tile_is_black() {
        let tiles = tiles(r#"{"size": {"height": 8, "width": 8}}"#, 8).unwrap();
        let rgb = vec![255; 4 * 2 * 3];
        let tiled = tiles.process(Picture { width: 4, height: 2, rgb: &rgb }).unwrap();
        assert_eq!((tiled.grid, tiled.tiles), ((1, 1), 1));
        let rows: Vec<&[f32]> = tiled.values[..64].chunks(8).collect();
        assert_eq!(rows[0], [1.0; 8]);
        assert_eq!(rows[7], [-1.0; 8]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_key() {
        for (json, key) in [
            (r#"{"size": {"height": 8, "width": 16}}"#, "16 x 8"),
            (r#"{"size": {"height": 8, "width": 8}, "max_patches": 0}"#, "max_patches = 0"),
            (r#"{"size": {"height": 8, "width": 8}, "image_processor_type": "CLIPImageProcessor"}"#, "Llama4"),
        ] {
            let refusal = tiles(json, 8).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains("preprocessor_config.json"), "{refusal}");
        }
        let tiles = tiles(r#"{"size": {"height": 8, "width": 8}}"#, 8).unwrap();
        assert!(tiles.process(Picture { width: 4, height: 2, rgb: &[0; 5] }).is_err());
    }
}
