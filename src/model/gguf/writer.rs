//! Tests only: a Llama in Hugging Face layout to a GGUF file, as llama.cpp's converter writes it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

use super::header::Header;
use super::names::stored_name;
use super::tokenizer::tokenizer_json;

/// The content of a file.
pub struct Gguf {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, (Tensor, GgmlDType)>,
}

impl Gguf {
    /// Matrices in `format`, everything else in f32.
    pub fn of(directory: &Path, format: GgmlDType) -> Self {
        let config = json(&directory.join("config.json"));
        let number = |key: &str| config[key].as_u64().unwrap() as usize;
        let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|ending| ending != "safetensors") {
                continue;
            }
            for (name, tensor) in candle_core::safetensors::load(path, &Device::Cpu).unwrap() {
                let tensor = tensor.to_dtype(DType::F32).unwrap();
                let tensor = match name.as_str() {
                    name if name.ends_with("q_proj.weight") => neighbours(&tensor, heads),
                    name if name.ends_with("k_proj.weight") => neighbours(&tensor, kv_heads),
                    _ => tensor,
                };
                let format = if tensor.rank() == 2 { format } else { GgmlDType::F32 };
                tensors.insert(stored_name(&name), (tensor, format));
            }
        }
        let factors = factors(&config);
        let count = factors.len();
        let factors = Tensor::from_vec(factors, count, &Device::Cpu).unwrap();
        tensors.insert("rope_freqs.weight".to_owned(), (factors, GgmlDType::F32));
        Self { metadata: metadata(directory, &config), tensors }
    }

    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.to_owned(), value);
    }

    pub fn quantise(&mut self, name: &str, format: GgmlDType) {
        self.tensors.get_mut(name).unwrap().1 = format;
    }

    pub fn write(&self, path: &Path) {
        let quantised: Vec<(&str, QTensor)> = self
            .tensors
            .iter()
            .map(|(name, (tensor, format))| (name.as_str(), QTensor::quantize(tensor, *format).unwrap()))
            .collect();
        let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let metadata: Vec<(&str, &Value)> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// The tokenizer.json that the metadata of a folder's model.gguf becomes.
    pub fn tokenizer(folder: &Path) -> Vec<u8> {
        let path = folder.join("model.gguf");
        let content = gguf_file::Content::read(&mut File::open(&path).unwrap()).unwrap();
        tokenizer_json(&Header::new(&path, content.metadata)).unwrap()
    }
}

/// Of each head, the first row of the lower half beside the first row of the upper half, and so on.
fn neighbours(weight: &Tensor, heads: usize) -> Tensor {
    let (outputs, inputs) = weight.dims2().unwrap();
    let halves = weight.reshape((heads, 2, outputs / heads / 2, inputs)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((outputs, inputs)).unwrap()
}

/// How much slower each pair of a head turns.
fn factors(config: &Json) -> Vec<f32> {
    let (kind, theta) = match config.get("rope_parameters") {
        Some(kind) => (kind, &kind["rope_theta"]),
        None => (&config["rope_scaling"], &config["rope_theta"]),
    };
    let [theta, factor, low, high, context] = [
        theta,
        &kind["factor"],
        &kind["low_freq_factor"],
        &kind["high_freq_factor"],
        &kind["original_max_position_embeddings"],
    ]
    .map(|value| value.as_f64().unwrap());
    let head = config["head_dim"].as_u64().unwrap() as i32;
    (0..head / 2)
        .map(|pair| {
            let wave = std::f64::consts::TAU * theta.powf(f64::from(2 * pair) / f64::from(head));
            let smooth = ((context / wave - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect()
}

fn metadata(directory: &Path, config: &Json) -> HashMap<String, Value> {
    let number = |key: &str| Value::U32(config[key].as_u64().unwrap() as u32);
    let theta = config.pointer("/rope_parameters/rope_theta").unwrap_or(&config["rope_theta"]);
    let tokenizer = json(&directory.join("tokenizer.json"));
    let mut tokens: Vec<(usize, String, i32)> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap() as usize, token.clone(), 1))
        .collect();
    tokens.extend(
        tokenizer["added_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| (token["id"].as_u64().unwrap() as usize, token["content"].as_str().unwrap().to_owned(), 3)),
    );
    tokens.sort();
    tokens.dedup_by_key(|(id, ..)| *id);
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Json::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    let template = std::fs::read_to_string(directory.join("chat_template.jinja")).unwrap();
    let end = match &config["eos_token_id"] {
        Json::Array(ids) => ids[0].clone(),
        id => id.clone(),
    };
    let id = |id: &Json| Value::U32(id.as_u64().unwrap() as u32);
    let text = |text: &str| Value::String(text.to_owned());
    [
        ("general.architecture", text("llama")),
        ("llama.block_count", number("num_hidden_layers")),
        ("llama.context_length", number("max_position_embeddings")),
        ("llama.embedding_length", number("hidden_size")),
        ("llama.feed_forward_length", number("intermediate_size")),
        ("llama.attention.head_count", number("num_attention_heads")),
        ("llama.attention.head_count_kv", number("num_key_value_heads")),
        ("llama.attention.key_length", number("head_dim")),
        ("llama.attention.value_length", number("head_dim")),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32)),
        ("llama.rope.dimension_count", number("head_dim")),
        ("llama.rope.freq_base", Value::F32(theta.as_f64().unwrap() as f32)),
        ("llama.vocab_size", number("vocab_size")),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("llama-bpe")),
        ("tokenizer.ggml.tokens", Value::Array(tokens.iter().map(|(_, token, _)| text(token)).collect())),
        ("tokenizer.ggml.token_type", Value::Array(tokens.iter().map(|(_, _, kind)| Value::I32(*kind)).collect())),
        ("tokenizer.ggml.merges", Value::Array(merges.map(Value::String).collect())),
        ("tokenizer.ggml.bos_token_id", id(&config["bos_token_id"])),
        ("tokenizer.ggml.eos_token_id", id(&end)),
        ("tokenizer.chat_template", text(&template)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
