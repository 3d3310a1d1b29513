//! The sizes of a two-tower model as its config.json gives them, checked.
//!
//! Published files leave out what equals the family's defaults, so every family passes its own. This file knows no
//! tensors. Invariant: sizes that are handed out fit each other (heads divide width, patches divide the picture).

use std::path::Path;

use serde::Deserialize;

use super::api::ModelError;

/// The non-linearity of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    Relu,
    Silu,
}

impl Activation {
    /// The activation that Hugging Face calls `name`.
    pub fn named(name: &str, key: &str, file: &Path) -> Result<Self, ModelError> {
        match name {
            "quick_gelu" => Ok(Self::QuickGelu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Self::GeluTanh),
            "gelu" => Ok(Self::GeluErf),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            other => {
                let advice = "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, relu and silu are";
                Err(ModelError::unsupported(file, key, other, advice))
            }
        }
    }
}

/// Sizes of one stack of transformer layers.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub epsilon: f64,
    pub activation: Activation,
}

/// The text tower.
#[derive(Debug, Clone, Copy)]
pub struct TextTower {
    pub stack: Stack,
    pub vocabulary: usize,
    pub positions: usize,
    pub end_token: u32,
    pub pad_token: u32,
}

/// The picture tower.
#[derive(Debug, Clone, Copy)]
pub struct VisionTower {
    pub stack: Stack,
    /// Side of the square picture, in pixels.
    pub side: usize,
    /// Side of one square patch, in pixels.
    pub patch: usize,
}

impl VisionTower {
    /// Patches of one picture.
    pub fn patches(&self) -> usize {
        (self.side / self.patch).pow(2)
    }
}

/// A tower's section of config.json; what is missing is the family's default.
#[derive(Debug, Default, Deserialize)]
pub struct Section {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    eos_token_id: Option<u32>,
    pad_token_id: Option<u32>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
}

impl Section {
    /// The text tower of this section. `file` is named by errors.
    pub fn text(&self, default: TextTower, file: &Path) -> Result<TextTower, ModelError> {
        self.text_at("text_config.", default, file)
    }

    /// The text tower of a file that has no sections. `file` is named by errors.
    pub fn top_level_text(&self, default: TextTower, file: &Path) -> Result<TextTower, ModelError> {
        self.text_at("", default, file)
    }

    fn text_at(&self, section: &str, default: TextTower, file: &Path) -> Result<TextTower, ModelError> {
        let size = |value, default, key: &str| positive(value, default, &format!("{section}{key}"), file);
        Ok(TextTower {
            stack: self.stack(default.stack, section, file)?,
            vocabulary: size(self.vocab_size, default.vocabulary, "vocab_size")?,
            positions: size(self.max_position_embeddings, default.positions, "max_position_embeddings")?,
            end_token: self.eos_token_id.unwrap_or(default.end_token),
            pad_token: self.pad_token_id.unwrap_or(default.pad_token),
        })
    }

    /// The picture tower of this section. `file` is named by errors.
    pub fn vision(&self, default: VisionTower, file: &Path) -> Result<VisionTower, ModelError> {
        let side = positive(self.image_size, default.side, "vision_config.image_size", file)?;
        let patch = positive(self.patch_size, default.patch, "vision_config.patch_size", file)?;
        if let Some(channels) = self.num_channels.filter(|channels| *channels != 3) {
            return Err(ModelError::unsupported(file, "vision_config.num_channels", channels, "only 3 (RGB) is"));
        }
        if side < patch {
            let detail = format!("vision_config: a picture of {side} pixels holds no patch of {patch}");
            return Err(ModelError::malformed(file, detail));
        }
        Ok(VisionTower { stack: self.stack(default.stack, "vision_config.", file)?, side, patch })
    }

    fn stack(&self, default: Stack, section: &str, file: &Path) -> Result<Stack, ModelError> {
        let size = |value, default, key: &str| positive(value, default, &format!("{section}{key}"), file);
        let hidden = size(self.hidden_size, default.hidden, "hidden_size")?;
        let heads = size(self.num_attention_heads, default.heads, "num_attention_heads")?;
        if hidden % heads != 0 {
            let detail = format!("{section}hidden_size {hidden} is no multiple of num_attention_heads {heads}");
            return Err(ModelError::malformed(file, detail));
        }
        let activation = match self.hidden_act.as_deref() {
            None => default.activation,
            Some(name) => Activation::named(name, &format!("{section}hidden_act"), file)?,
        };
        Ok(Stack {
            hidden,
            intermediate: size(self.intermediate_size, default.intermediate, "intermediate_size")?,
            layers: size(self.num_hidden_layers, default.layers, "num_hidden_layers")?,
            heads,
            epsilon: self.layer_norm_eps.unwrap_or(default.epsilon),
            activation,
        })
    }
}

/// Larger sizes are mistakes, and would ask for memory before any tensor is looked at.
pub const LARGEST_SIZE: usize = 1 << 24;

/// The value, or the default when it is not given; zero is refused.
pub fn positive(value: Option<usize>, default: usize, key: &str, file: &Path) -> Result<usize, ModelError> {
    match value.unwrap_or(default) {
        0 => Err(ModelError::malformed(file, format!("{key} is 0"))),
        size if size > LARGEST_SIZE => {
            Err(ModelError::malformed(file, format!("{key} is {size}; no model has more than {LARGEST_SIZE}")))
        }
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: Stack =
        Stack { hidden: 8, intermediate: 16, layers: 1, heads: 2, epsilon: 1e-5, activation: Activation::QuickGelu };
    const TEXT: TextTower = TextTower { stack: STACK, vocabulary: 10, positions: 4, end_token: 2, pad_token: 1 };

    fn text(json: &str) -> Result<TextTower, ModelError> {
        serde_json::from_str::<Section>(json).unwrap().text(TEXT, Path::new("config.json"))
    }

    #[test]
    fn what_is_left_out_is_the_default_of_the_family() {
        let tower = text(r#"{"hidden_act": "gelu", "vocab_size": 7}"#).unwrap();
        assert_eq!((tower.vocabulary, tower.positions), (7, 4));
        assert_eq!(tower.stack.activation, Activation::GeluErf);
    }

    #[test]
    fn an_unknown_activation_and_sizes_that_do_not_fit_are_refused_with_the_key() {
        let refusal = text(r#"{"hidden_act": "mish"}"#).unwrap_err().to_string();
        assert!(refusal.contains("config.json: text_config.hidden_act = mish"), "{refusal}");
        let refusal = text(r#"{"num_attention_heads": 3}"#).unwrap_err().to_string();
        assert!(refusal.contains("num_attention_heads 3"), "{refusal}");
        let refusal = text(r#"{"vocab_size": 0}"#).unwrap_err().to_string();
        assert!(refusal.contains("text_config.vocab_size is 0"), "{refusal}");
    }
}
