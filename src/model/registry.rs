//! From a model directory to a running model: which architecture is read by which family.
//!
//! A new family is its own file and one line in [`FAMILIES`]. This file knows no queue and no request.
//! Invariant: the fingerprint changes whenever a file that the results depend on changes.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::api::{Encoder, ModelError, Picture, Pixels, Processor, TokenIds};
use super::clip::{Clip, ClipConfig};
use super::image_processor::{self, ImageProcessor};
use super::siglip::{Siglip, SiglipConfig};
use super::tokenizer::{Padding, TOKENIZER, TOKENIZER_CONFIG, TextProcessor};
use super::weights::{Precision, Weights, read_json, weight_files};

const CONFIG: &str = "config.json";

/// A model ready to use, and what it is.
pub struct Loaded {
    /// As config.json names it, for example `CLIPModel`.
    pub architecture: String,
    /// First 16 hexadecimal digits of the SHA-256 over the directory's files.
    pub fingerprint: String,
    pub processor: Arc<dyn Processor>,
    pub encoder: Box<dyn Encoder>,
}

type Parts = (TwoTowers, Box<dyn Encoder>);

/// One family of models.
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    load: fn(&Path, &Weights) -> Result<Parts, ModelError>,
}

const FAMILIES: [Family; 2] = [
    Family { architecture: "CLIPModel", model_type: "clip", load: load_clip },
    Family { architecture: "SiglipModel", model_type: "siglip", load: load_siglip },
];

/// Loads the model in `directory` onto `device`. Blocking: reads every byte of the directory's model files.
pub fn load(directory: &Path, precision: Precision, device: &Device) -> Result<Loaded, ModelError> {
    let family = family(&directory.join(CONFIG))?;
    let weights = Weights::open(directory, precision, device)?;
    let (processor, encoder) = (family.load)(directory, &weights)?;
    Ok(Loaded {
        architecture: family.architecture.to_owned(),
        fingerprint: fingerprint(directory)?,
        processor: Arc::new(processor),
        encoder,
    })
}

fn family(config: &Path) -> Result<&'static Family, ModelError> {
    #[derive(Deserialize)]
    struct Identity {
        #[serde(default)]
        architectures: Vec<String>,
        #[serde(default)]
        model_type: String,
    }
    let found: Identity = read_json(config)?;
    let known = FAMILIES.iter().find(|family| match found.architectures.first() {
        Some(architecture) => architecture == family.architecture,
        None => found.model_type == family.model_type,
    });
    known.ok_or_else(|| {
        let (key, value) = match found.architectures.first() {
            Some(architecture) => ("architectures", architecture.clone()),
            None => ("model_type", found.model_type),
        };
        let names: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        ModelError::unsupported(config, key, value, &format!("{} are", names.join(" and ")))
    })
}

fn load_clip(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let config = ClipConfig::read(&directory.join(CONFIG))?;
    let processor = TwoTowers {
        text: TextProcessor::load(directory, &config.text, Padding::None)?,
        image: ImageProcessor::load(directory, &config.vision, &image_processor::CLIP)?,
    };
    Ok((processor, Box::new(Clip::load(config, weights)?)))
}

fn load_siglip(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let config = SiglipConfig::read(&directory.join(CONFIG))?;
    let processor = TwoTowers {
        text: TextProcessor::load(directory, &config.text, Padding::ToLimit)?,
        image: ImageProcessor::load(directory, &config.vision, &image_processor::SIGLIP)?,
    };
    Ok((processor, Box::new(Siglip::load(config, weights)?)))
}

/// The CPU side of a model with a text and a picture tower.
struct TwoTowers {
    text: TextProcessor,
    image: ImageProcessor,
}

impl Processor for TwoTowers {
    fn text(&self, text: &str) -> Result<TokenIds, ModelError> {
        self.text.encode(text)
    }

    fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError> {
        self.image.process(picture)
    }
}

/// Hashes name, length and content of each file that results depend on, in name order.
fn fingerprint(directory: &Path) -> Result<String, ModelError> {
    let settings = [CONFIG, TOKENIZER, TOKENIZER_CONFIG, image_processor::PREPROCESSOR, image_processor::PROCESSOR];
    let mut files: Vec<_> = settings.iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect();
    files.extend(weight_files(directory)?);
    files.sort();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let failed = |source| ModelError::Read { path: path.clone(), source };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        hash.update(path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default());
        hash.update([0]);
        hash.update(length.to_le_bytes());
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn load_cpu(directory: &Path) -> Result<Loaded, ModelError> {
        load(directory, Precision::F32, &Device::Cpu)
    }

    #[test]
    fn an_unknown_architecture_is_refused_with_the_known_ones() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIG), r#"{"architectures": ["BertModel"]}"#).unwrap();
        let refusal = load_cpu(directory.path()).err().expect("no such family").to_string();
        for part in [CONFIG, "BertModel", "CLIPModel and SiglipModel"] {
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
