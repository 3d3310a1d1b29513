//! A model directory with random weights: the sizes of a real one, and nothing to download.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::process::Scratch;
use super::random_tokenizer::{RandomTokenizer, SPECIALS};
use crate::config::hub_options;
use crate::model;

const HIDDEN: usize = 768;
const HEADS: usize = 12;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = HIDDEN / HEADS;
/// Embeddings, which for Llama 3 are the head too.
pub const VOCABULARY: usize = 32_000;
const CONTEXT: usize = 8192;

/// Which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RandomModel {
    /// 12 layers, tied: 128 million parameters.
    Llama3,
    /// 8 layers of 8 experts and a shared one, with a small vision tower: about 320 million parameters, of which a
    /// token of text sees about 100.
    Llama4,
    /// The shape of Llama 3 8B: 32 layers, 8 billion parameters. They are not stored but drawn while loading, on a GPU by
    /// the GPU.
    Llama3_8b,
}

/// Sizes of a Llama 3.
struct Sizes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    width: usize,
    vocabulary: usize,
    tied: bool,
}

const SMALL: Sizes = Sizes {
    hidden: HIDDEN,
    heads: HEADS,
    kv_heads: KV_HEADS,
    head_dim: HEAD_DIM,
    layers: 12,
    width: 3072,
    vocabulary: VOCABULARY,
    tied: true,
};

const LARGE: Sizes = Sizes {
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    layers: 32,
    width: 14336,
    vocabulary: 128_256,
    tied: false,
};

impl RandomModel {
    /// The directory of the model at `location`, or of this one, written to `scratch`, when none is named.
    pub fn unless_given(self, location: Option<&Path>, scratch: &Scratch) -> Result<PathBuf> {
        match location {
            Some(location) => Ok(model::locate(location, &hub_options())?),
            None => {
                eprintln!("writing a random model to {}", scratch.path().display());
                self.write(scratch.path(), 1, false)?;
                Ok(scratch.path().to_owned())
            }
        }
    }

    /// Writes the model to `directory`, in bf16 where `narrow`, else in f32; the same seed gives the same weights.
    pub fn write(self, directory: &Path, seed: u64, narrow: bool) -> Result<()> {
        let tokenizer = RandomTokenizer::train()?;
        for (name, content) in &tokenizer.files {
            std::fs::write(directory.join(name), content)?;
        }
        let (config, shapes) = match self {
            Self::Llama3 => (llama3_config(&tokenizer, &SMALL), llama3_shapes(&SMALL)),
            Self::Llama3_8b => (llama3_config(&tokenizer, &LARGE), llama3_shapes(&LARGE)),
            Self::Llama4 => (llama4_config(&tokenizer), llama4_shapes()),
        };
        std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        if self == Self::Llama4 {
            std::fs::write(directory.join("processor_config.json"), serde_json::to_vec_pretty(&processor())?)?;
        }
        if self == Self::Llama3_8b {
            return write_hole(&directory.join("model.safetensors"), shapes);
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let bytes = values(&name, &shape, narrow, &mut random);
                (name, shape, bytes)
            })
            .collect();
        let dtype = if narrow { Dtype::BF16 } else { Dtype::F32 };
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, None, &directory.join("model.safetensors"))?;
        Ok(())
    }
}

/// A file in bf16 whose header says that numbers are drawn; what follows it takes no room on the disk.
fn write_hole(path: &Path, shapes: Vec<(String, Vec<usize>)>) -> Result<()> {
    let mut next = 0;
    let mut header = json!({ "__metadata__": { model::DRAWN_KEY: model::DRAWN_VALUE } });
    for (name, shape) in shapes {
        let first = next;
        next += 2 * shape.iter().product::<usize>();
        header[name] = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [first, next] });
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len((8 + header.len() + next) as u64)?;
    Ok(())
}

fn llama3_config(tokenizer: &RandomTokenizer, sizes: &Sizes) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
        "hidden_size": sizes.hidden, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim, "intermediate_size": sizes.width,
        "vocab_size": sizes.vocabulary, "max_position_embeddings": CONTEXT, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": sizes.tied, "attention_bias": false, "mlp_bias": false,
        "bos_token_id": tokenizer.specials[0], "eos_token_id": tokenizer.specials[4],
        "pad_token_id": tokenizer.specials[5],
    })
}

fn llama3_shapes(sizes: &Sizes) -> Vec<(String, Vec<usize>)> {
    let Sizes { hidden, vocabulary, .. } = *sizes;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !sizes.tied {
        shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..sizes.layers {
        let layer = format!("model.layers.{layer}");
        shapes.extend(attention_shapes(&layer, sizes));
        shapes.extend(gated_shapes(&format!("{layer}.mlp"), hidden, sizes.width));
    }
    shapes
}

const LLAMA4_LAYERS: usize = 8;
const LLAMA4_WIDTH: usize = 1536;
const EXPERTS: usize = 8;
const VISION_HIDDEN: usize = 256;
const VISION_LAYERS: usize = 4;
const PATCH: usize = 14;
const TILE: usize = 336;
/// A pixel shuffle of one half makes one feature of four patches.
const VISION_WIDTH: usize = 4 * VISION_HIDDEN;

fn llama4_config(tokenizer: &RandomTokenizer) -> Value {
    let special =
        |token: &str| SPECIALS.iter().position(|known| *known == token).map(|place| tokenizer.specials[place]);
    json!({
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "dtype": "float32",
        "tie_word_embeddings": false, "image_token_index": special("<|patch|>"),
        "boi_token_index": special("<|image_start|>"), "eoi_token_index": special("<|image_end|>"),
        "text_config": {
            "model_type": "llama4_text", "hidden_size": HIDDEN, "num_hidden_layers": LLAMA4_LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
            "intermediate_size": LLAMA4_WIDTH, "intermediate_size_mlp": LLAMA4_WIDTH, "num_local_experts": EXPERTS,
            "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192, "attn_temperature_tuning": true, "attn_scale": 0.1, "floor_scale": 8192,
            "use_qk_norm": true, "attention_bias": false, "vocab_size": VOCABULARY, "hidden_act": "silu",
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": null,
            "tie_word_embeddings": false, "bos_token_id": tokenizer.specials[0],
            "eos_token_id": tokenizer.specials[4], "pad_token_id": tokenizer.specials[5],
        },
        "vision_config": {
            "model_type": "llama4_vision_model", "hidden_size": VISION_HIDDEN, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": 4, "intermediate_size": VISION_WIDTH, "image_size": TILE, "patch_size": PATCH,
            "num_channels": 3, "pixel_shuffle_ratio": 0.5, "hidden_act": "gelu", "rope_theta": 10000.0,
            "projector_input_dim": HIDDEN, "projector_output_dim": HIDDEN, "vision_output_dim": HIDDEN,
        },
    })
}

fn processor() -> Value {
    json!({
        "processor_class": "Llama4Processor", "patch_size": PATCH, "image_token": "<|image|>",
        "fake_image_token": "<|image|>",
        "image_processor": {
            "image_processor_type": "Llama4ImageProcessor", "size": { "height": TILE, "width": TILE }, "max_patches": 4,
            "resize_to_max_canvas": false, "resample": 2, "do_resize": true, "do_rescale": true,
            "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": true,
        },
    })
}

fn llama4_shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("language_model.model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("language_model.model.norm.weight".to_owned(), vec![HIDDEN]),
        ("language_model.lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
    ];
    for layer in 0..LLAMA4_LAYERS {
        let layer = format!("language_model.model.layers.{layer}");
        shapes.extend(attention_shapes(&layer, &SMALL));
        let experts = format!("{layer}.feed_forward.experts");
        shapes.push((format!("{layer}.feed_forward.router.weight"), vec![EXPERTS, HIDDEN]));
        shapes.push((format!("{experts}.gate_up_proj"), vec![EXPERTS, HIDDEN, 2 * LLAMA4_WIDTH]));
        shapes.push((format!("{experts}.down_proj"), vec![EXPERTS, LLAMA4_WIDTH, HIDDEN]));
        shapes.extend(gated_shapes(&format!("{layer}.feed_forward.shared_expert"), HIDDEN, LLAMA4_WIDTH));
    }
    shapes.extend(vision_shapes());
    shapes
}

fn vision_shapes() -> Vec<(String, Vec<usize>)> {
    let side = TILE / PATCH;
    let mut shapes = vec![
        ("vision_model.patch_embedding.linear.weight".to_owned(), vec![VISION_HIDDEN, 3 * PATCH * PATCH]),
        ("vision_model.class_embedding".to_owned(), vec![VISION_HIDDEN]),
        ("vision_model.positional_embedding_vlm".to_owned(), vec![side * side + 1, VISION_HIDDEN]),
        ("vision_model.vision_adapter.mlp.fc1.weight".to_owned(), vec![HIDDEN, VISION_WIDTH]),
        ("vision_model.vision_adapter.mlp.fc2.weight".to_owned(), vec![HIDDEN, HIDDEN]),
        ("multi_modal_projector.linear_1.weight".to_owned(), vec![HIDDEN, HIDDEN]),
    ];
    let mut with_bias = |name: String, shape: Vec<usize>| {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    };
    for norm in ["layernorm_pre", "layernorm_post"] {
        with_bias(format!("vision_model.{norm}"), vec![VISION_HIDDEN]);
    }
    for layer in 0..VISION_LAYERS {
        let layer = format!("vision_model.model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            with_bias(format!("{layer}.{norm}"), vec![VISION_HIDDEN]);
        }
        for part in ["q", "k", "v", "o"] {
            with_bias(format!("{layer}.self_attn.{part}_proj"), vec![VISION_HIDDEN, VISION_HIDDEN]);
        }
        with_bias(format!("{layer}.mlp.fc1"), vec![VISION_WIDTH, VISION_HIDDEN]);
        with_bias(format!("{layer}.mlp.fc2"), vec![VISION_HIDDEN, VISION_WIDTH]);
    }
    shapes
}

fn attention_shapes(layer: &str, sizes: &Sizes) -> Vec<(String, Vec<usize>)> {
    let Sizes { hidden, head_dim, .. } = *sizes;
    let (queries, keys) = (sizes.heads * head_dim, sizes.kv_heads * head_dim);
    let parts = [
        ("input_layernorm", vec![hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![queries, hidden]),
        ("self_attn.k_proj", vec![keys, hidden]),
        ("self_attn.v_proj", vec![keys, hidden]),
        ("self_attn.o_proj", vec![hidden, queries]),
    ];
    parts.into_iter().map(|(name, shape)| (format!("{layer}.{name}.weight"), shape)).collect()
}

fn gated_shapes(name: &str, hidden: usize, width: usize) -> Vec<(String, Vec<usize>)> {
    let parts =
        [("gate_proj", vec![width, hidden]), ("up_proj", vec![width, hidden]), ("down_proj", vec![hidden, width])];
    parts.into_iter().map(|(part, shape)| (format!("{name}.{part}.weight"), shape)).collect()
}

/// Little-endian: norms are one, biases zero, the rest has a standard deviation of 0.02.
fn values(name: &str, shape: &[usize], narrow: bool, random: &mut ChaCha8Rng) -> Vec<u8> {
    let count = shape.iter().product();
    let half_width = 0.02 * 3_f32.sqrt();
    let is_norm = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
    let mut value = || match () {
        () if is_norm => 1.0,
        () if name.ends_with(".bias") => 0.0,
        () => random.random_range(-half_width..half_width),
    };
    let mut bytes = Vec::with_capacity(4 * count);
    for _ in 0..count {
        match narrow {
            true => bytes.extend(bf16::from_f32(value()).to_le_bytes()),
            false => bytes.extend(value().to_le_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Precision;

    #[test]
    fn the_large_model_has_eight_billion_parameters_and_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        RandomModel::Llama3_8b.write(directory.path(), 1, true).unwrap();
        let outline = model::outline(directory.path(), Precision::Bf16).unwrap();
        assert_eq!(outline.held.parameters(), 8_030_261_248);
        assert!(outline.unread.is_empty());
        let file = directory.path().join("model.safetensors").metadata().unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&file) * 512 < 1 << 20);
    }
}
