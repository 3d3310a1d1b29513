//! What config.json says of Llama 4's decoder, in both dialects.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::model::api::ModelError;
use crate::model::decoder::{
    Biases, DecoderOptions, FamilyDefaults, FeedForwardOptions, LayerOptions, QkNorm, Temperature, TextSection,
};
use crate::model::layers::{ExpertSizes, Pairing};

const DEFAULTS: FamilyDefaults =
    FamilyDefaults { rope_theta: 500_000.0, epsilon: 1e-5, context: 131_072, pairing: Pairing::Adjacent };
const CHUNKED: &str = "chunked_attention";
const FULL: &str = "full_attention";

/// The decoder's section: `text_config`, or the whole file of a text-only model.
#[derive(Debug, Clone, Deserialize)]
pub struct Llama4Text {
    #[serde(flatten)]
    shared: TextSection,
    intermediate_size_mlp: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    interleave_moe_layer_step: Option<usize>,
    moe_layers: Option<Vec<usize>>,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    layer_types: Option<Vec<String>>,
    attention_chunk_size: Option<usize>,
    use_qk_norm: Option<bool>,
    /// A boolean; older files say 4.
    attn_temperature_tuning: Option<Value>,
    attn_scale: Option<f64>,
    floor_scale: Option<f64>,
}

impl Llama4Text {
    /// `file` and `section` are named by errors.
    pub fn options(&self, (file, section): (&Path, &str)) -> Result<DecoderOptions, ModelError> {
        let mut options = self.shared.options(DEFAULTS, (file, section))?;
        let bias = self.shared.attention_bias.unwrap_or(false);
        options.biases = Biases { query_key_value: bias, attention_output: bias, feed_forward: false };
        options.feed_forward_name = "feed_forward";
        options.chunk = Some(self.attention_chunk_size.unwrap_or(8192)).filter(|chunk| *chunk > 0);
        options.qk_norm = if self.use_qk_norm.unwrap_or(true) { QkNorm::Plain } else { QkNorm::None };
        if self.tuned() {
            let (scale, floor) = (self.attn_scale.unwrap_or(0.1), self.floor_scale.unwrap_or(8192.0));
            if floor <= 0.0 {
                return Err(ModelError::malformed(file, format!("{section}floor_scale {floor} must be above 0")));
            }
            options.temperature = Some(Temperature { scale, floor });
        }
        let sizes = self.experts(&options, (file, section))?;
        let dense = FeedForwardOptions::Dense { width: self.intermediate_size_mlp.unwrap_or(16_384) };
        let count = options.layers.len();
        let rotated = self.rotated(count, (file, section))?;
        let chunked = self.chunked(&rotated, (file, section))?;
        let with_experts = self.with_experts(count);
        options.layers = (0..count)
            .map(|index| LayerOptions {
                rotated: rotated[index],
                chunked: chunked[index] && options.chunk.is_some(),
                feed_forward: if with_experts[index] { FeedForwardOptions::Experts(sizes) } else { dense },
            })
            .collect();
        Ok(options)
    }

    fn tuned(&self) -> bool {
        match &self.attn_temperature_tuning {
            None => true,
            Some(Value::Bool(tuned)) => *tuned,
            Some(number) => number.as_f64().is_some_and(|number| number != 0.0),
        }
    }

    fn experts(&self, options: &DecoderOptions, (file, section): (&Path, &str)) -> Result<ExpertSizes, ModelError> {
        let experts = self.num_local_experts.unwrap_or(16);
        let active = self.num_experts_per_tok.unwrap_or(1);
        if active == 0 || active > experts {
            let detail = format!("{section}num_experts_per_tok {active} does not fit num_local_experts {experts}");
            return Err(ModelError::malformed(file, detail));
        }
        Ok(ExpertSizes { hidden: options.hidden, width: self.shared.intermediate(), experts, active })
    }

    /// Which layers rotate: 1 in `no_rope_layers` means that the layer does. Without a list, all but each fourth.
    fn rotated(&self, count: usize, (file, section): (&Path, &str)) -> Result<Vec<bool>, ModelError> {
        match self.no_rope_layers.as_deref() {
            None | Some([]) => {
                let interval = self.no_rope_layer_interval.unwrap_or(4).max(1);
                Ok((0..count).map(|index| (index + 1) % interval != 0).collect())
            }
            Some(list) if list.len() == count => Ok(list.iter().map(|rotates| *rotates != 0).collect()),
            Some(list) => Err(wrong_length(file, &format!("{section}no_rope_layers"), list.len(), count)),
        }
    }

    fn chunked(&self, rotated: &[bool], (file, section): (&Path, &str)) -> Result<Vec<bool>, ModelError> {
        let Some(types) = &self.layer_types else { return Ok(rotated.to_vec()) };
        let key = format!("{section}layer_types");
        if types.len() != rotated.len() {
            return Err(wrong_length(file, &key, types.len(), rotated.len()));
        }
        types
            .iter()
            .map(|name| match name.as_str() {
                CHUNKED => Ok(true),
                FULL => Ok(false),
                other => Err(ModelError::unsupported(file, &key, other, &format!("{CHUNKED} and {FULL} are"))),
            })
            .collect()
    }

    fn with_experts(&self, count: usize) -> Vec<bool> {
        match &self.moe_layers {
            Some(list) => (0..count).map(|index| list.contains(&index)).collect(),
            None => {
                let step = self.interleave_moe_layer_step.unwrap_or(1).max(1);
                (0..count).map(|index| (index + 1) % step == 0).collect()
            }
        }
    }
}

fn wrong_length(file: &Path, key: &str, found: usize, layers: usize) -> ModelError {
    ModelError::malformed(file, format!("{key} has {found} entries for {layers} layers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(change: &str) -> Result<DecoderOptions, ModelError> {
        let json = format!(
            r#"{{"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 4, "intermediate_size_mlp": 6,
                "num_hidden_layers": 8, "vocab_size": 10, "num_local_experts": 2{change}}}"#
        );
        let text: Llama4Text = serde_json::from_str(&json).unwrap();
        text.options((Path::new("/none/config.json"), "text_config."))
    }

    fn rotated(options: &DecoderOptions) -> Vec<bool> {
        options.layers.iter().map(|layer| layer.rotated).collect()
    }

    #[test]
    fn each_fourth_layer_sees_all_and_is_not_rotated_unless_a_list_says_otherwise() {
        let usual = [true, true, true, false, true, true, true, false];
        let options_of = |change: &str| options(change).unwrap();
        assert_eq!(rotated(&options_of("")), usual);
        assert_eq!(rotated(&options_of(r#", "no_rope_layers": []"#)), usual);
        let odd = options_of(r#", "no_rope_layers": [0, 1, 0, 1, 0, 1, 0, 1]"#);
        assert_eq!(rotated(&odd), [false, true, false, true, false, true, false, true]);
        assert!(odd.layers.iter().all(|layer| layer.chunked == layer.rotated));
    }

    #[test]
    fn experts_stand_where_the_step_or_the_list_puts_them() {
        let with = |options: &DecoderOptions| -> Vec<usize> {
            let is = |layer: &LayerOptions| matches!(layer.feed_forward, FeedForwardOptions::Experts(_));
            (0..8).filter(|index| is(&options.layers[*index])).collect()
        };
        assert_eq!(with(&options("").unwrap()), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(with(&options(r#", "interleave_moe_layer_step": 2"#).unwrap()), [1, 3, 5, 7]);
        assert_eq!(with(&options(r#", "moe_layers": [2]"#).unwrap()), [2]);
    }

    #[test]
    fn temperature_tuning_may_be_a_boolean_or_a_number() {
        assert!(options(r#", "attn_temperature_tuning": 4"#).unwrap().temperature.is_some());
        assert!(options(r#", "attn_temperature_tuning": 0"#).unwrap().temperature.is_none());
        assert!(options(r#", "attn_temperature_tuning": false"#).unwrap().temperature.is_none());
    }

    #[test]
    fn lists_of_the_wrong_length_and_unknown_layers_are_refused() {
        for (change, key) in [
            (r#", "no_rope_layers": [1]"#, "text_config.no_rope_layers has 1 entries for 8 layers"),
            (r#", "layer_types": ["full_attention"]"#, "text_config.layer_types has 1"),
            (r#", "num_experts_per_tok": 3"#, "num_experts_per_tok 3"),
        ] {
            let refusal = options(change).unwrap_err().to_string();
            assert!(refusal.contains(key), "{refusal}");
        }
    }
}
