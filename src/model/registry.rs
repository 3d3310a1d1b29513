//! From a model directory to a running model: which architecture is read by which family.
//!
//! A new family is its own file or folder and a line in [`FAMILIES`]. This file knows no queue and no request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Deserialize;

use super::api::ModelError;
use super::family::{CONFIG, EncoderParts, Family, GeneratorParts, Parts};
use super::fingerprint::{fingerprint, settings_files};
use super::weights::{Held, Precision, Weights, read_json};
use super::{bert, clip, gguf, llama, llama4, qwen3_vl, qwen25_vl, resnet, siglip};

/// A model ready to use, and what it is. At least one of encoder and generator is there.
pub struct Loaded {
    /// As config.json names it, for example `CLIPModel`, or general.architecture of a GGUF file.
    pub architecture: String,
    /// First 16 hexadecimal digits of the SHA-256 over the files that it was read from.
    pub fingerprint: String,
    pub encoder: Option<EncoderParts>,
    pub generator: Option<GeneratorParts>,
    pub held: Held,
}

/// A model that was read without its numbers: everything about it but its answers.
pub struct Outline {
    pub architecture: String,
    /// What would be in memory.
    pub held: Held,
    /// Stored parameters by number format.
    pub stored: BTreeMap<String, usize>,
    /// Stored tensors that this implementation does not look at.
    pub unread: Vec<String>,
    /// Both sides with zeros for weights: good for sizes and prompts only.
    pub encoder: Option<EncoderParts>,
    pub generator: Option<GeneratorParts>,
}

const FAMILIES: [Family; 12] = [
    Family { architecture: "BertModel", model_type: "bert", load: bert::load },
    Family { architecture: "CLIPModel", model_type: "clip", load: clip::load },
    Family { architecture: "Llama4ForCausalLM", model_type: "llama4_text", load: llama4::load_text },
    Family { architecture: "Llama4ForConditionalGeneration", model_type: "llama4", load: llama4::load },
    Family { architecture: "LlamaForCausalLM", model_type: "llama", load: llama::load },
    Family { architecture: "Qwen2_5_VLForConditionalGeneration", model_type: "qwen2_5_vl", load: qwen25_vl::load },
    Family { architecture: "Qwen3VLForConditionalGeneration", model_type: "qwen3_vl", load: qwen3_vl::load },
    Family { architecture: "ResNetForImageClassification", model_type: "resnet", load: resnet::load },
    Family { architecture: "ResNetModel", model_type: "resnet", load: resnet::load },
    Family { architecture: "RobertaModel", model_type: "roberta", load: bert::load_roberta },
    Family { architecture: "SiglipModel", model_type: "siglip", load: siglip::load },
    Family { architecture: "XLMRobertaModel", model_type: "xlm-roberta", load: bert::load_roberta },
];

/// Loads the model at `path`, a model directory or a GGUF file, onto `device`. Blocking: reads every byte of its files.
pub fn load(path: &Path, precision: Precision, device: &Device) -> Result<Loaded, ModelError> {
    let Read { directory, architecture, weights, parts } = read(path, precision, device, |weights| weights)?;
    let files = [weights.paths(), parts.settings].concat();
    let (encoder, generator, held) = (parts.encoder, parts.generator, weights.held());
    Ok(Loaded { architecture, fingerprint: fingerprint(&directory, files)?, encoder, generator, held })
}

/// Checks the model at `path` as [`load`] would and says what it is, without reading or holding its numbers.
pub fn outline(path: &Path, precision: Precision) -> Result<Outline, ModelError> {
    let Read { architecture, weights, parts, .. } = read(path, precision, &Device::Cpu, Weights::without_values)?;
    let (stored, unread) = weights.stored();
    let (encoder, generator) = (parts.encoder, parts.generator);
    Ok(Outline { architecture, held: weights.held(), stored, unread, encoder, generator })
}

/// Whether there is something at `path` that may be a model.
pub fn is_model(path: &Path) -> bool {
    path.join(CONFIG).is_file() || gguf::gguf_file(path).is_ok_and(|file| file.is_some_and(|file| file.is_file()))
}

/// What was made of a model's files.
struct Read {
    directory: PathBuf,
    architecture: String,
    weights: Weights,
    parts: Parts,
}

/// `opened` is done to the weights before anything is read of them.
fn read(
    path: &Path,
    precision: Precision,
    device: &Device,
    opened: impl FnOnce(Weights) -> Weights,
) -> Result<Read, ModelError> {
    if let Some(file) = gguf::gguf_file(path)? {
        let (weights, metadata) = Weights::open_gguf(&file, gguf::stored_name, precision, device)?;
        let weights = opened(weights);
        let (architecture, parts) = gguf::load(&file, metadata, &weights)?;
        let directory = file.parent().unwrap_or(Path::new("")).to_owned();
        return Ok(Read { directory, architecture, weights, parts });
    }
    let family = family(&path.join(CONFIG))?;
    let weights = opened(Weights::open(path, precision, device)?);
    let mut parts = (family.load)(path, &weights)?;
    parts.settings.extend(settings_files(path)?);
    Ok(Read { directory: path.to_owned(), architecture: family.architecture.to_owned(), weights, parts })
}

fn family(config: &Path) -> Result<&'static Family, ModelError> {
    #[derive(Deserialize)]
    struct Identity {
        architectures: Option<Vec<String>>,
        #[serde(default)]
        model_type: String,
    }
    let found: Identity = read_json(config)?;
    let known = FAMILIES.iter().find(|family| match found.architectures.iter().flatten().next() {
        Some(architecture) => architecture == family.architecture,
        None => found.model_type == family.model_type,
    });
    known.ok_or_else(|| {
        let (key, value) = match found.architectures.iter().flatten().next() {
            Some(architecture) => ("architectures", architecture.clone()),
            None => ("model_type", found.model_type),
        };
        let names: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        ModelError::unsupported(config, key, value, &format!("{} are", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::tokenizer::TOKENIZER_CONFIG;
    use super::*;

    fn load_cpu(directory: &Path) -> Result<Loaded, ModelError> {
        load(directory, Precision::F32, &Device::Cpu)
    }

    #[test]
    fn an_unknown_architecture_is_refused_with_the_known_ones() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIG), r#"{"architectures": ["MPNetModel"]}"#).unwrap();
        let refusal = load_cpu(directory.path()).err().expect("no such family").to_string();
        for part in [CONFIG, "MPNetModel", "BertModel, CLIPModel, Llama4ForCausalLM"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }

    #[test]
    fn the_fingerprint_follows_the_content_of_the_files() {
        let copy = fixture::copy_of("clip");
        let first = load_cpu(copy.path()).unwrap();
        assert_eq!(first.architecture, "CLIPModel");
        assert_eq!(first.fingerprint, load_cpu(&fixture::model("clip")).unwrap().fingerprint);
        assert_eq!(first.fingerprint.len(), 16);
        let settings = copy.path().join(TOKENIZER_CONFIG);
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, text + "\n").unwrap();
        assert_ne!(first.fingerprint, load_cpu(copy.path()).unwrap().fingerprint);
    }

    #[test]
    fn the_way_of_pooling_is_part_of_the_fingerprint() {
        let copy = fixture::copy_of("bert-minilm");
        let first = load_cpu(copy.path()).unwrap();
        assert_eq!((first.architecture.as_str(), first.encoder.unwrap().encoder.dimensions()), ("BertModel", 72));
        let pooling = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        std::fs::write(copy.path().join("1_Pooling/config.json"), pooling).unwrap();
        let second = load_cpu(copy.path()).unwrap();
        assert_ne!(first.fingerprint, second.fingerprint);
        assert_eq!(second.encoder.unwrap().encoder.dimensions(), 144);
    }

    #[test]
    fn sizes_that_do_not_fit_the_weights_are_refused_with_tensor_and_shapes() {
        let copy = fixture::copy_of("clip");
        let config = copy.path().join(CONFIG);
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("\"vocab_size\": 902", "\"vocab_size\": 900")).unwrap();
        let refusal = load_cpu(copy.path()).err().expect("misshapen").to_string();
        for part in ["model.safetensors", "token_embedding.weight", "[902, 64]", "[900, 64]"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
