//! What config.json says of Qwen3-VL's vision tower.
//!
//! What is missing has the value of the reference's own class. Invariant: sizes that are handed out fit each other.

use std::path::Path;

use serde::Deserialize;

use crate::model::api::ModelError;
use crate::model::config::{Activation, positive};
use crate::model::layers::{Pairing, ROW_THEN_COLUMN, Rope, SECTION, SharedSizes, VisionDefaults, VisionSection};
use crate::model::weights::read_json;

const DEFAULTS: VisionDefaults =
    VisionDefaults { depth: 27, hidden: 1152, heads: 16, intermediate: 4304, patch: 16, output: 3584 };

/// Sizes of the tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Vision {
    pub shared: SharedSizes,
    pub activation: Activation,
    /// Side of the square table of learned positions.
    pub table_side: usize,
    /// Blocks whose output, merged, is added after the first decoder layers, ascending.
    pub deep: Vec<usize>,
    pub rope: Rope,
}

impl Qwen3Vision {
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
    num_position_embeddings: Option<usize>,
    deepstack_visual_indexes: Option<Vec<usize>>,
}

impl Section {
    fn vision(&self, file: &Path) -> Result<Qwen3Vision, ModelError> {
        let shared = self.shared.sizes(DEFAULTS, file)?;
        let malformed = |detail: String| Err(ModelError::malformed(file, format!("{SECTION}{detail}")));
        let key = format!("{SECTION}num_position_embeddings");
        let positions = positive(self.num_position_embeddings, 2304, &key, file)?;
        let table_side = positions.isqrt();
        if table_side.pow(2) != positions {
            return malformed(format!("num_position_embeddings {positions} is no square number"));
        }
        let deep = self.deepstack_visual_indexes.clone().unwrap_or_else(|| vec![8, 16, 24]);
        if !deep.is_sorted_by(|one, next| one < next) || deep.last().is_some_and(|last| *last >= shared.depth) {
            return malformed(format!("deepstack_visual_indexes {deep:?} must ascend below depth {}", shared.depth));
        }
        let activation = match self.shared.activation() {
            None | Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("gelu") => Activation::GeluErf,
            Some(other) => {
                let key = format!("{SECTION}hidden_act");
                return Err(ModelError::unsupported(file, &key, other, "gelu_pytorch_tanh and gelu are"));
            }
        };
        let head_dim = shared.hidden / shared.heads;
        Ok(Qwen3Vision {
            rope: Rope::read_axial(&self.shared.rope, head_dim, Pairing::Halves, ROW_THEN_COLUMN, (file, SECTION))?,
            shared,
            activation,
            table_side,
            deep,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Qwen3Vision, ModelError> {
        serde_json::from_str::<Section>(json).unwrap().vision(Path::new("config.json"))
    }

    #[test]
    fn both_dialects_say_the_same_and_what_is_left_out_is_the_default() {
        let old = read("{}").unwrap();
        assert_eq!(old, read(r#"{"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}"#).unwrap());
        assert_eq!((old.table_side, old.deep.as_slice()), (48, [8, 16, 24].as_slice()));
        assert_eq!(old.activation, Activation::GeluTanh);
    }

    #[test]
    fn what_is_unknown_or_does_not_fit_is_refused_with_its_key() {
        for (json, key) in [
            (r#"{"hidden_act": "silu"}"#, "config.json: vision_config.hidden_act = silu"),
            (r#"{"num_position_embeddings": 60}"#, "vision_config.num_position_embeddings 60"),
            (r#"{"deepstack_visual_indexes": [8, 27]}"#, "vision_config.deepstack_visual_indexes [8, 27]"),
            (r#"{"deepstack_visual_indexes": [8, 4]}"#, "deepstack_visual_indexes [8, 4]"),
        ] {
            let refusal = read(json).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
