//! The keys of config.json that the text decoders share, in both dialects.
//!
//! A family reads its section through this and adds what is its own. Invariant: every error names the file and the key.

use std::path::Path;

use serde::Deserialize;

use super::options::{Biases, DecoderOptions, FeedForwardOptions, LayerOptions, QkNorm};
use crate::model::api::ModelError;
use crate::model::config::LARGEST_SIZE;
use crate::model::layers::{Pairing, Rope, RopeSettings};
use crate::model::weights::read_json;

const GENERATION_CONFIG: &str = "generation_config.json";

/// A text decoder's section of config.json.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct TextSection {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub tie_word_embeddings: Option<bool>,
    eos_token_id: Option<EndTokens>,
    use_sliding_window: Option<bool>,
    #[serde(flatten)]
    rope: RopeSettings,
}

/// One end token or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum EndTokens {
    One(u32),
    Many(Vec<u32>),
}

/// What a family says beside its section.
#[derive(Debug, Clone, Copy)]
pub struct FamilyDefaults {
    pub rope_theta: f64,
    pub epsilon: f64,
    pub context: usize,
    pub pairing: Pairing,
}

impl TextSection {
    /// A decoder whose layers are all alike: rotated, dense, seeing everything. `section` is put before keys in errors,
    /// for example `text_config.`.
    pub fn options(
        &self,
        defaults: FamilyDefaults,
        (file, section): (&Path, &str),
    ) -> Result<DecoderOptions, ModelError> {
        let size = |value: Option<usize>, key: &str| self.size(value, key, (file, section));
        let hidden = size(self.hidden_size, "hidden_size")?;
        let heads = size(self.num_attention_heads, "num_attention_heads")?;
        let kv_heads = size(self.num_key_value_heads.or(Some(heads)), "num_key_value_heads")?;
        let head_dim = size(self.head_dim.or(Some(hidden / heads)), "head_dim")?;
        if heads % kv_heads != 0 {
            let detail =
                format!("{section}num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}");
            return Err(ModelError::malformed(file, detail));
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "silu" && *name != "swish") {
            return Err(ModelError::unsupported(file, &format!("{section}hidden_act"), other, "only silu is"));
        }
        if self.use_sliding_window == Some(true) {
            let key = format!("{section}use_sliding_window");
            return Err(ModelError::unsupported(file, &key, true, "set it to false, or use another model"));
        }
        let width = size(self.intermediate_size, "intermediate_size")?;
        let feed_forward = FeedForwardOptions::Dense { width };
        let layer = LayerOptions { rotated: true, chunked: false, feed_forward };
        Ok(DecoderOptions {
            hidden,
            vocabulary: size(self.vocab_size, "vocab_size")?,
            context: size(self.max_position_embeddings.or(Some(defaults.context)), "max_position_embeddings")?,
            heads,
            kv_heads,
            head_dim,
            epsilon: self.rms_norm_eps.unwrap_or(defaults.epsilon),
            rope: Rope::read(&self.rope, defaults.rope_theta, head_dim, defaults.pairing, (file, section))?,
            qk_norm: QkNorm::None,
            temperature: None,
            chunk: None,
            biases: Biases::default(),
            tied: self.tie_word_embeddings.unwrap_or(false),
            feed_forward_name: "mlp",
            layers: vec![layer; size(self.num_hidden_layers, "num_hidden_layers")?],
            end_tokens: self.end_tokens(file)?,
        })
    }

    /// Refuses a file that does not say which frequencies follow which axis.
    pub fn needs_sections(&self, (file, section): (&Path, &str)) -> Result<(), ModelError> {
        match self.rope.has_sections() {
            true => Ok(()),
            false => {
                let detail =
                    format!("{section}rope_parameters.mrope_section (or rope_scaling.mrope_section) is missing");
                Err(ModelError::malformed(file, detail))
            }
        }
    }

    /// The same, with position axes taking turns whatever the file says.
    pub fn by_turns(self) -> Self {
        Self { rope: self.rope.by_turns(), ..self }
    }

    /// The width of the feed-forward layer.
    pub fn intermediate(&self) -> usize {
        self.intermediate_size.unwrap_or_default()
    }

    /// A size that must be given and must not be 0.
    pub fn size(&self, value: Option<usize>, key: &str, (file, section): (&Path, &str)) -> Result<usize, ModelError> {
        match value {
            Some(value) if (1..=LARGEST_SIZE).contains(&value) => Ok(value),
            Some(value) if value > 0 => Err(ModelError::malformed(
                file,
                format!("{section}{key} is {value}; no model has more than {LARGEST_SIZE}"),
            )),
            Some(_) => Err(ModelError::malformed(file, format!("{section}{key} is 0"))),
            None => Err(ModelError::malformed(file, format!("{section}{key} is missing"))),
        }
    }

    /// Those of generation_config.json beside `file`, else those of the section.
    fn end_tokens(&self, file: &Path) -> Result<Vec<u32>, ModelError> {
        #[derive(Deserialize)]
        struct Generation {
            eos_token_id: Option<EndTokens>,
        }
        let generation = file.with_file_name(GENERATION_CONFIG);
        let beside = match generation.is_file() {
            true => read_json::<Generation>(&generation)?.eos_token_id,
            false => None,
        };
        Ok(match beside.or_else(|| self.eos_token_id.clone()) {
            None => Vec::new(),
            Some(EndTokens::One(id)) => vec![id],
            Some(EndTokens::Many(ids)) => ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: FamilyDefaults =
        FamilyDefaults { rope_theta: 10_000.0, epsilon: 1e-6, context: 64, pairing: Pairing::Halves };

    fn options(change: &str) -> Result<DecoderOptions, ModelError> {
        let json = format!(
            r#"{{"hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16,
                "num_hidden_layers": 3, "vocab_size": 10{change}}}"#
        );
        let section: TextSection = serde_json::from_str(&json).unwrap();
        section.options(DEFAULTS, (Path::new("/none/config.json"), "text_config."))
    }

    #[test]
    fn what_is_left_out_follows_from_the_rest() {
        let options = options(r#", "eos_token_id": [3, 4]"#).unwrap();
        assert_eq!((options.head_dim, options.context, options.layers.len()), (2, 64, 3));
        assert_eq!(options.end_tokens, [3, 4]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_key() {
        for (change, key) in [
            (r#", "hidden_act": "relu""#, "text_config.hidden_act = relu"),
            (r#", "head_dim": 0"#, "text_config.head_dim is 0"),
            (r#", "use_sliding_window": true"#, "text_config.use_sliding_window"),
        ] {
            let refusal = options(change).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains("config.json"), "{refusal}");
        }
        let section: TextSection = serde_json::from_str(r#"{"hidden_size": 8}"#).unwrap();
        let refusal = section.options(DEFAULTS, (Path::new("config.json"), "")).unwrap_err().to_string();
        assert!(refusal.contains("num_attention_heads is missing"), "{refusal}");
    }
}
