//! The keys of `vision_config` that Qwen's towers share, in both dialects.
//!
//! Invariant: sizes that are handed out fit each other, and every error names the file and the key.

use std::path::Path;

use serde::Deserialize;

use super::rope::RopeSettings;
use crate::model::api::ModelError;
use crate::model::config::positive;

/// Put before keys in errors.
pub const SECTION: &str = "vision_config.";
/// Which of a position's three axes are those of the picture.
pub const ROW_THEN_COLUMN: [usize; 2] = [1, 2];

/// A tower's section of config.json.
#[derive(Debug, Default, Deserialize)]
pub struct VisionSection {
    depth: Option<usize>,
    hidden_size: Option<usize>,
    num_heads: Option<usize>,
    intermediate_size: Option<usize>,
    in_channels: Option<usize>,
    /// As older files say it; files that were saved again say both.
    in_chans: Option<usize>,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    temporal_patch_size: Option<usize>,
    out_hidden_size: Option<usize>,
    hidden_act: Option<String>,
    #[serde(flatten)]
    pub rope: RopeSettings,
}

/// Sizes of a family's default tower.
#[derive(Debug, Clone, Copy)]
pub struct VisionDefaults {
    pub depth: usize,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub patch: usize,
    pub output: usize,
}

/// Sizes of a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedSizes {
    /// Number of blocks.
    pub depth: usize,
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    /// Frames of a patch; a picture is repeated that often.
    pub frames: usize,
    /// Side of the square of patches that become one token.
    pub merge: usize,
    /// Width of the features: the decoder's.
    pub output: usize,
}

impl SharedSizes {
    /// Refuses features that are not as wide as the decoder.
    pub fn must_fit(&self, text_hidden: usize, file: &Path) -> Result<(), ModelError> {
        if self.output == text_hidden {
            return Ok(());
        }
        let detail =
            format!("{SECTION}out_hidden_size {} differs from the decoder's hidden_size {text_hidden}", self.output);
        Err(ModelError::malformed(file, detail))
    }

    /// Values of one patch.
    pub fn patch_values(&self) -> usize {
        3 * self.frames * self.patch.pow(2)
    }

    /// Width of the patches that become one token, side by side.
    pub fn merged(&self) -> usize {
        self.hidden * self.merge.pow(2)
    }
}

impl VisionSection {
    /// `file` is named by errors.
    pub fn sizes(&self, default: VisionDefaults, file: &Path) -> Result<SharedSizes, ModelError> {
        let size = |value, default, key: &str| positive(value, default, &format!("{SECTION}{key}"), file);
        if let Some(other) = self.in_channels.or(self.in_chans).filter(|channels| *channels != 3) {
            return Err(ModelError::unsupported(file, &format!("{SECTION}in_channels"), other, "only 3 (RGB) is"));
        }
        let hidden = size(self.hidden_size, default.hidden, "hidden_size")?;
        let heads = size(self.num_heads, default.heads, "num_heads")?;
        if hidden % heads != 0 {
            let detail = format!("{SECTION}hidden_size {hidden} is no multiple of num_heads {heads}");
            return Err(ModelError::malformed(file, detail));
        }
        Ok(SharedSizes {
            depth: size(self.depth, default.depth, "depth")?,
            hidden,
            heads,
            intermediate: size(self.intermediate_size, default.intermediate, "intermediate_size")?,
            patch: size(self.patch_size, default.patch, "patch_size")?,
            frames: size(self.temporal_patch_size, 2, "temporal_patch_size")?,
            merge: size(self.spatial_merge_size, 2, "spatial_merge_size")?,
            output: size(self.out_hidden_size, default.output, "out_hidden_size")?,
        })
    }

    /// What the file calls the non-linearity.
    pub fn activation(&self) -> Option<&str> {
        self.hidden_act.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: VisionDefaults =
        VisionDefaults { depth: 2, hidden: 8, heads: 2, intermediate: 6, patch: 4, output: 5 };

    fn sizes(json: &str) -> Result<SharedSizes, ModelError> {
        serde_json::from_str::<VisionSection>(json).unwrap().sizes(DEFAULTS, Path::new("config.json"))
    }

    #[test]
    fn what_is_left_out_is_the_default_of_the_family() {
        let found = sizes(r#"{"depth": 3, "in_chans": 3}"#).unwrap();
        assert_eq!((found.depth, found.patch_values(), found.merged()), (3, 96, 32));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_with_the_key() {
        for (json, key) in [
            (r#"{"in_chans": 1}"#, "config.json: vision_config.in_channels = 1"),
            (r#"{"num_heads": 3}"#, "vision_config.hidden_size 8 is no multiple of num_heads 3"),
            (r#"{"patch_size": 0}"#, "vision_config.patch_size is 0"),
        ] {
            let refusal = sizes(json).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
        let refusal = sizes("{}").unwrap().must_fit(6, Path::new("config.json")).unwrap_err().to_string();
        assert!(refusal.contains("vision_config.out_hidden_size 5"), "{refusal}");
    }
}
