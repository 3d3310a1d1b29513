//! What config.json says of Qwen2.5-VL's vision tower.
//!
//! What is missing has the value of the reference's own class. Invariant: sizes that are handed out fit each other.

use std::path::Path;

use serde::Deserialize;

use crate::model::api::ModelError;
use crate::model::config::positive;
use crate::model::layers::{Pairing, ROW_THEN_COLUMN, Rope, SECTION, SharedSizes, VisionDefaults, VisionSection};
use crate::model::weights::read_json;

const DEFAULTS: VisionDefaults =
    VisionDefaults { depth: 32, hidden: 3584, heads: 16, intermediate: 3420, patch: 14, output: 3584 };

/// Sizes of the tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen25Vision {
    pub shared: SharedSizes,
    /// Side of a window, in squares of patches.
    pub window: usize,
    /// Blocks in which a patch sees the whole picture and not its window alone.
    pub full: Vec<usize>,
    pub rope: Rope,
}

impl Qwen25Vision {
    /// Reads config.json; features must be as wide as the decoder, `text_hidden`.
    pub fn read(file: &Path, text_hidden: usize) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            vision_config: Section,
        }
        let File { vision_config } = read_json(file)?;
        let vision = vision_config.vision(file)?;
        vision.shared.must_fit(text_hidden, file)?;
        Ok(vision)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Section {
    #[serde(flatten)]
    shared: VisionSection,
    window_size: Option<usize>,
    fullatt_block_indexes: Option<Vec<usize>>,
}

impl Section {
    fn vision(&self, file: &Path) -> Result<Qwen25Vision, ModelError> {
        let shared = self.shared.sizes(DEFAULTS, file)?;
        if let Some(other) = self.shared.activation().filter(|name| *name != "silu" && *name != "swish") {
            return Err(ModelError::unsupported(file, &format!("{SECTION}hidden_act"), other, "only silu is"));
        }
        let pixels = positive(self.window_size, 112, &format!("{SECTION}window_size"), file)?;
        let window = pixels / (shared.patch * shared.merge);
        if window == 0 {
            let square = shared.patch * shared.merge;
            let detail = format!("{SECTION}window_size {pixels} is less than the {square} pixels of a token");
            return Err(ModelError::malformed(file, detail));
        }
        let full = self.fullatt_block_indexes.clone().unwrap_or_else(|| vec![7, 15, 23, 31]);
        if let Some(beyond) = full.iter().find(|index| **index >= shared.depth) {
            let detail = format!("{SECTION}fullatt_block_indexes: {beyond} is not below depth {}", shared.depth);
            return Err(ModelError::malformed(file, detail));
        }
        let head_dim = shared.hidden / shared.heads;
        Ok(Qwen25Vision {
            rope: Rope::read_axial(&self.shared.rope, head_dim, Pairing::Halves, ROW_THEN_COLUMN, (file, SECTION))?,
            shared,
            window,
            full,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Qwen25Vision, ModelError> {
        serde_json::from_str::<Section>(json).unwrap().vision(Path::new("config.json"))
    }

    #[test]
    fn both_dialects_say_the_same_and_what_is_left_out_is_the_default() {
        let old = read(r#"{"in_chans": 3, "spatial_patch_size": 14}"#).unwrap();
        assert_eq!(old, read(r#"{"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}"#).unwrap());
        assert_eq!((old.window, old.full.as_slice()), (4, [7, 15, 23, 31].as_slice()));
    }

    #[test]
    fn what_is_unknown_or_does_not_fit_is_refused_with_its_key() {
        for (json, key) in [
            (r#"{"hidden_act": "gelu"}"#, "config.json: vision_config.hidden_act = gelu"),
            (r#"{"window_size": 27}"#, "vision_config.window_size 27"),
            (r#"{"depth": 8}"#, "vision_config.fullatt_block_indexes: 15"),
        ] {
            let refusal = read(json).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
