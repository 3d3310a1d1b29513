//! The image processor of the Qwen families: any size, rounded to whole patches, flattened patch by patch.
//!
//! Follows `Qwen2VLImageProcessor`. Invariant: the result equals the reference's, bit for bit.

use std::path::Path;

use serde_json::Value;

use super::tiles::check;
use crate::model::api::{ModelError, Picture};
use crate::model::image_processor::{Defaults, Settings};
use crate::model::resize::{Filter, Window, resize};

const DEFAULTS: Defaults = Defaults {
    one_size_is_shortest_edge: false,
    size: 0,
    center_crop: false,
    kept_share: None,
    filter: Filter::Bicubic,
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    kinds: &[
        "Qwen2VLImageProcessor",
        "Qwen2VLImageProcessorFast",
        "Qwen2VLImageProcessorPil",
        "Qwen2_5_VLImageProcessor",
    ],
};

/// Pictures that are longer than this many times their width are refused, as the reference does.
const MOST_OBLONG: u32 = 200;

/// The settings of one model, ready to apply.
#[derive(Debug)]
pub struct Patches {
    /// Side of a patch, in pixels.
    patch: usize,
    /// Patches that become one token, along one side.
    merge: usize,
    /// Pictures that one patch spans; a single picture is repeated.
    frames: usize,
    least_pixels: u64,
    most_pixels: u64,
    filter: Filter,
    levels: [[f32; 256]; 3],
}

/// One picture's patches.
#[derive(Debug, Clone, PartialEq)]
pub struct Patched {
    /// `[patches, 3 * frames * patch * patch]`; patches that become one token lie one after the other.
    pub values: Vec<f32>,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
}

impl Patches {
    /// Side of a patch, in pixels.
    pub fn patch(&self) -> usize {
        self.patch
    }

    /// Reads the image settings of a model directory; sizes must be those of config.json.
    pub fn load(directory: &Path, patch: usize, merge: usize, frames: usize) -> Result<Self, ModelError> {
        let settings = Settings::read(directory)?;
        settings.check_kind(&[DEFAULTS])?;
        for (key, expected) in [("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", frames)] {
            if let Some(found) = settings.value(key).filter(|found| found.as_u64() != Some(expected as u64)) {
                return Err(settings.unsupported(key, found, &format!("config.json says {expected}")));
            }
        }
        let number = |value: &Value, key: &str| match value.as_u64() {
            Some(number) if number > 0 => Ok(number),
            _ => Err(settings.unsupported(key, value, "write a number of pixels")),
        };
        let limit = |inner: &str, outer: &str, default| {
            let size = settings.value("size").and_then(|size| size.get(inner)).filter(|value| !value.is_null());
            // Where a file says both, the reference lets the older key win.
            match settings.value(outer).filter(|value| !value.is_null()).or(size) {
                Some(value) => number(value, outer),
                None => Ok(default),
            }
        };
        let (least, most) =
            (limit("shortest_edge", "min_pixels", 56 * 56)?, limit("longest_edge", "max_pixels", 28 * 28 * 1280)?);
        let unit = ((patch * merge) as u64).pow(2);
        if most < unit || least > most {
            let detail = format!("pictures of {least} to {most} pixels are not possible with {unit} pixels a token");
            return Err(ModelError::malformed(&settings.file, detail));
        }
        Ok(Self {
            patch,
            merge,
            frames,
            least_pixels: least,
            most_pixels: most,
            filter: settings.filter(&DEFAULTS)?,
            levels: settings.levels(&DEFAULTS)?,
        })
    }

    /// Resizes a picture and cuts it into patches.
    pub fn process(&self, picture: Picture<'_>) -> Result<Patched, ModelError> {
        check(picture)?;
        let (short, long) = (picture.width.min(picture.height), picture.width.max(picture.height));
        if long > short.saturating_mul(MOST_OBLONG) {
            let detail = format!(
                "a picture of {} x {} is more than {MOST_OBLONG} times as long as wide",
                picture.width, picture.height
            );
            return Err(ModelError::Input { detail });
        }
        let (width, height) = self.resized(picture.width, picture.height);
        let window = Window { left: 0, top: 0, width, height };
        let resized = resize(picture, (width, height), window, self.filter)
            .map_err(|error| ModelError::Input { detail: format!("the picture cannot be resized: {error}") })?;
        let grid = (height as usize / self.patch, width as usize / self.patch);
        Ok(Patched { values: self.flatten(&resized, grid), grid })
    }

    fn flatten(&self, rgb: &[u8], (rows, columns): (usize, usize)) -> Vec<f32> {
        let Self { patch, merge, frames, .. } = *self;
        let line = columns * patch * 3;
        let size = 3 * frames * patch * patch;
        let mut values = vec![0.0; rows * columns * size];
        let mut patches = values.chunks_exact_mut(size);
        for block in 0..rows / merge * (columns / merge) {
            let (top, left) = (block / (columns / merge) * merge, block % (columns / merge) * merge);
            for within in 0..merge * merge {
                let (row, column) = (top + within / merge, left + within % merge);
                let Some(out) = patches.next() else { return values };
                for y in 0..patch {
                    let from = (row * patch + y) * line + column * patch * 3;
                    let pixels = &rgb[from..from + patch * 3];
                    for (channel, levels) in self.levels.iter().enumerate() {
                        let to = (channel * frames * patch + y) * patch;
                        for (value, pixel) in out[to..to + patch].iter_mut().zip(pixels.chunks_exact(3)) {
                            *value = levels[usize::from(pixel[channel])];
                        }
                    }
                }
                for channel in 0..3 {
                    let first = channel * frames * patch * patch;
                    for frame in 1..frames {
                        out.copy_within(first..first + patch * patch, first + frame * patch * patch);
                    }
                }
            }
        }
        values
    }

    /// Width and height: whole tokens, as near to the picture's own size as the limits allow.
    fn resized(&self, width: u32, height: u32) -> (u32, u32) {
        let unit = (self.patch * self.merge) as f64;
        let (wide, high) = (f64::from(width), f64::from(height));
        // The reference rounds halves to the even neighbour.
        let near = |size: f64| (size / unit).round_ties_even() * unit;
        let (mut across, mut down) = (near(wide), near(high));
        if across * down > self.most_pixels as f64 {
            let shrink = (high * wide / self.most_pixels as f64).sqrt();
            let fit = |size: f64| ((size / shrink / unit).floor() * unit).max(unit);
            (across, down) = (fit(wide), fit(high));
        } else if across * down < self.least_pixels as f64 {
            let grow = (self.least_pixels as f64 / (high * wide)).sqrt();
            let fit = |size: f64| (size * grow / unit).ceil() * unit;
            (across, down) = (fit(wide), fit(high));
        }
        (across as u32, down as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patches(json: &str) -> Result<Patches, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("preprocessor_config.json"), json).unwrap();
        Patches::load(directory.path(), 4, 2, 2)
    }

    #[test]
    fn patches_of_a_token_follow_each_other_and_frames_repeat() {
        let processor =
            patches(r#"{"min_pixels": 64, "max_pixels": 4096, "do_normalize": false, "do_rescale": false}"#);
        let rgb: Vec<u8> = (0..8 * 16).flat_map(|pixel| [pixel / 16 * 16 + pixel % 16; 3]).collect();
        let patched = processor.unwrap().process(Picture { width: 16, height: 8, rgb: &rgb }).unwrap();
        assert_eq!(patched.grid, (2, 4));
        let rows: Vec<&[f32]> = patched.values.chunks(96).collect();
        let firsts: Vec<f32> = rows.iter().map(|row| row[0]).collect();
        assert_eq!(firsts, [0.0, 4.0, 64.0, 68.0, 8.0, 12.0, 72.0, 76.0]);
        assert_eq!(rows[0][..16], rows[0][16..32]);
    }

    #[test]
    fn sizes_are_rounded_to_tokens_within_the_limits() {
        let processor = patches(r#"{"size": {"shortest_edge": 256, "longest_edge": 1024}}"#).unwrap();
        assert_eq!(processor.resized(20, 12), (16, 16));
        assert_eq!(processor.resized(100, 50), (40, 16));
        assert_eq!(processor.resized(3, 5), (16, 24));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refusal = patches(r#"{"patch_size": 5}"#).unwrap_err().to_string();
        assert!(refusal.contains("patch_size = 5") && refusal.contains("config.json says 4"), "{refusal}");
        assert!(patches(r#"{"max_pixels": 10}"#).is_err());
        let processor = patches("{}").unwrap();
        let long = vec![0; 1000 * 3];
        assert!(matches!(
            processor.process(Picture { width: 1000, height: 1, rgb: &long }),
            Err(ModelError::Input { .. })
        ));
    }
}
