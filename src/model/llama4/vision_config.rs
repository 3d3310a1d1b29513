//! What config.json says of Llama 4's vision tower, in both dialects.
//!
//! What is missing has the value of the reference's own class. Invariant: sizes that are handed out fit each other.

use std::path::Path;

use serde::Deserialize;

use crate::model::api::ModelError;
use crate::model::config::positive;
use crate::model::layers::{Pairing, Rope, RopeSettings};
use crate::model::weights::read_json;

const SECTION: &str = "vision_config.";
/// Which of a position's three axes are those of the picture.
const COLUMN_THEN_ROW: [usize; 2] = [2, 1];

/// Sizes of the tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama4Vision {
    pub hidden: usize,
    /// Of the blocks' feed-forward layers.
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Side of a tile, in pixels.
    pub side: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Side of the square of patches that become one token.
    pub shuffle: usize,
    /// Width of the adapter and of what it makes.
    pub adapter: usize,
    pub rope: Rope,
}

impl Llama4Vision {
    /// Reads config.json.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            vision_config: Section,
        }
        let File { vision_config } = read_json(file)?;
        vision_config.vision(file)
    }

    /// Patches along the side of a tile.
    pub fn grid(&self) -> usize {
        self.side / self.patch
    }

    /// Tokens of one tile.
    pub fn tokens(&self) -> usize {
        (self.grid() / self.shuffle).pow(2)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Section {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    pixel_shuffle_ratio: Option<f64>,
    projector_input_dim: Option<usize>,
    projector_output_dim: Option<usize>,
    vision_output_dim: Option<usize>,
    hidden_act: Option<String>,
    multi_modal_projector_bias: Option<bool>,
    vision_feature_select_strategy: Option<String>,
    vision_feature_layer: Option<i64>,
    /// As older files say it.
    _vision_feature_layer: Option<i64>,
    #[serde(flatten)]
    rope: RopeSettings,
}

impl Section {
    fn vision(&self, file: &Path) -> Result<Llama4Vision, ModelError> {
        self.refuse_what_is_unknown(file)?;
        let size = |value, default, key: &str| positive(value, default, &format!("{SECTION}{key}"), file);
        let malformed = |detail: String| Err(ModelError::malformed(file, format!("{SECTION}{detail}")));
        let hidden = size(self.hidden_size, 768, "hidden_size")?;
        let heads = size(self.num_attention_heads, 16, "num_attention_heads")?;
        if hidden % heads != 0 {
            return malformed(format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}"));
        }
        let (side, patch) = (size(self.image_size, 448, "image_size")?, size(self.patch_size, 14, "patch_size")?);
        let shuffle = self.shuffle(file)?;
        if side % (patch * shuffle) != 0 {
            return malformed(format!("image_size {side} is no multiple of {shuffle} patches of patch_size {patch}"));
        }
        let adapter = size(self.projector_output_dim, 4096, "projector_output_dim")?;
        for (value, default, key) in [
            (self.projector_input_dim, 4096, "projector_input_dim"),
            (self.vision_output_dim, 7680, "vision_output_dim"),
        ] {
            let other = size(value, default, key)?;
            if other != adapter {
                return malformed(format!("{key} {other} differs from projector_output_dim {adapter}"));
            }
        }
        Ok(Llama4Vision {
            hidden,
            intermediate: size(self.intermediate_size, 5632, "intermediate_size")?,
            layers: size(self.num_hidden_layers, 34, "num_hidden_layers")?,
            heads,
            side,
            patch,
            shuffle,
            adapter,
            rope: Rope::read_axial(&self.rope, hidden / heads, Pairing::Adjacent, COLUMN_THEN_ROW, (file, SECTION))?,
        })
    }

    fn shuffle(&self, file: &Path) -> Result<usize, ModelError> {
        let ratio = self.pixel_shuffle_ratio.unwrap_or(0.5);
        let side = (1.0 / ratio).round();
        if !(ratio > 0.0 && ratio <= 1.0 && (side * ratio - 1.0).abs() < 1e-6) {
            let key = format!("{SECTION}pixel_shuffle_ratio");
            return Err(ModelError::unsupported(file, &key, ratio, "1 divided by a whole number is"));
        }
        Ok(side as usize)
    }

    fn refuse_what_is_unknown(&self, file: &Path) -> Result<(), ModelError> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, advice: &str| {
            Err(ModelError::unsupported(file, &format!("{SECTION}{key}"), value, advice))
        };
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "gelu") {
            return refuse("hidden_act", &other, "only gelu is");
        }
        if let Some(other) = self.num_channels.filter(|channels| *channels != 3) {
            return refuse("num_channels", &other, "only 3 (RGB) is");
        }
        if self.multi_modal_projector_bias == Some(true) {
            return refuse("multi_modal_projector_bias", &true, "only false is");
        }
        if let Some(other) = self.vision_feature_select_strategy.as_deref().filter(|name| *name != "default") {
            return refuse("vision_feature_select_strategy", &other, "only default is");
        }
        if let Some(other) = self.vision_feature_layer.or(self._vision_feature_layer).filter(|layer| *layer != -1) {
            return refuse("vision_feature_layer", &other, "only -1 is");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: &str) -> Result<Llama4Vision, ModelError> {
        let json = format!(
            r#"{{"hidden_size": 64, "num_attention_heads": 4, "image_size": 84, "patch_size": 14,
                "projector_input_dim": 72, "projector_output_dim": 72, "vision_output_dim": 72{change}}}"#
        );
        serde_json::from_str::<Section>(&json).unwrap().vision(Path::new("config.json"))
    }

    #[test]
    fn both_dialects_say_the_same_and_what_is_left_out_is_the_default() {
        let old = read(r#", "rope_theta": 20000.0, "_vision_feature_layer": -1"#).unwrap();
        let new = read(r#", "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}"#).unwrap();
        assert_eq!(old, new);
        assert_ne!(old.rope, read("").unwrap().rope);
        assert_eq!((old.layers, old.intermediate, old.shuffle, old.tokens()), (34, 5632, 2, 9));
    }

    #[test]
    fn what_is_unknown_or_does_not_fit_is_refused_with_its_key() {
        for (change, key) in [
            (r#", "hidden_act": "silu""#, "config.json: vision_config.hidden_act = silu"),
            (r#", "num_channels": 1"#, "vision_config.num_channels = 1"),
            (r#", "multi_modal_projector_bias": true"#, "vision_config.multi_modal_projector_bias = true"),
            (r#", "vision_feature_select_strategy": "full""#, "vision_feature_select_strategy = full"),
            (r#", "_vision_feature_layer": -2"#, "vision_feature_layer = -2"),
            (r#", "pixel_shuffle_ratio": 0.4"#, "pixel_shuffle_ratio = 0.4"),
            (r#", "pixel_shuffle_ratio": 0.25"#, "vision_config.image_size 84"),
            (r#", "rope_parameters": {"rope_type": "yarn"}"#, "vision_config.rope_parameters.rope_type = yarn"),
            (r#", "num_hidden_layers": 0"#, "vision_config.num_hidden_layers is 0"),
        ] {
            let refusal = read(change).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
