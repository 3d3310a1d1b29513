//! A model directory with random weights: the sizes of a real one, and nothing to download.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const HIDDEN: usize = 768;
const LAYERS: usize = 12;
const HEADS: usize = 12;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = HIDDEN / HEADS;
const WIDTH: usize = 3072;
/// Embeddings, which are the head too.
pub const VOCABULARY: usize = 32_000;

/// Writes a Llama 3 of 128 million parameters to `directory`, in f32; the same seed gives the same weights.
pub fn write_llama(directory: &Path, seed: u64) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "intermediate_size": WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 8192,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    std::fs::write(directory.join("tokenizer.json"), serde_json::to_vec(&tokenizer())?)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
        shapes().into_iter().map(|(name, shape)| (name, (shape.clone(), values(&shape, &mut random)))).collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors"))?;
    Ok(())
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let parts: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![WIDTH, HIDDEN]),
            ("mlp.up_proj", vec![WIDTH, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDTH]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    shapes
}

/// Little-endian f32: norms are one, the rest has a standard deviation of 0.02.
fn values(shape: &[usize], random: &mut ChaCha8Rng) -> Vec<u8> {
    let count = shape.iter().product();
    let half_width = 0.02 * 3_f32.sqrt();
    let mut value = || if shape.len() == 1 { 1.0 } else { random.random_range(-half_width..half_width) };
    let mut bytes = Vec::with_capacity(4 * count);
    (0..count).for_each(|_| bytes.extend(value().to_le_bytes()));
    bytes
}

/// One word for each id.
fn tokenizer() -> Value {
    let words: serde_json::Map<String, Value> = (0..VOCABULARY).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
    })
}
