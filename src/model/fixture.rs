//! Tests only: the parity models, goldens and pictures under tests/data/parity, and random numbers.
//!
//! Knows paths and nothing of the models themselves.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::api::ModelError;
use super::device::open_device;
use super::family::EncoderParts;
use super::registry::load;
use super::weights::Precision;

/// The golden cases of one model.
#[derive(Deserialize)]
pub struct Cases {
    #[serde(default)]
    pub texts: Vec<String>,
    #[serde(default)]
    pub images: Vec<String>,
    #[serde(default)]
    pub input_ids: Vec<Vec<u32>>,
    tensors: String,
}

/// A decoded picture, transparency over white.
pub struct Decoded {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

/// Where generators are compared: the CPU, or what `ASSAY_PARITY_DEVICE` names.
pub fn device() -> Device {
    let named = std::env::var_os("ASSAY_PARITY_DEVICE");
    open_device(named.as_deref().map_or("cpu", |name| name.to_str().unwrap())).unwrap()
}

/// Loads the encoder in `directory` onto the CPU.
pub fn encoder(directory: &Path, precision: Precision) -> Result<EncoderParts, ModelError> {
    Ok(load(directory, precision, &Device::Cpu)?.encoder.expect("an encoder"))
}

/// A folder of models, goldens and pictures.
pub struct Kit(pub PathBuf);

impl Kit {
    /// The one in this repository.
    pub fn own() -> Self {
        Self(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity")))
    }

    pub fn model(&self, name: &str) -> PathBuf {
        self.0.join("models").join(name)
    }

    pub fn cases(&self, name: &str) -> (Cases, HashMap<String, Tensor>) {
        let folder = self.0.join("goldens").join(name);
        let cases: Cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let tensors = candle_core::safetensors::load(folder.join(&cases.tensors), &Device::Cpu).unwrap();
        (cases, tensors)
    }

    pub fn picture(&self, path: &str) -> Decoded {
        let bytes = std::fs::read(self.0.join(path)).unwrap();
        let decoded = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap().decode().unwrap();
        let (width, height) = (decoded.width(), decoded.height());
        let rgb = decoded.to_rgba8().pixels().flat_map(|pixel| over_white(pixel.0)).collect();
        Decoded { width, height, rgb }
    }
}

pub fn model(name: &str) -> PathBuf {
    Kit::own().model(name)
}

/// The model directory in a temporary folder, to be changed.
pub fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_files(&model(name), copy.path());
    copy
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_files(&entry.path(), &target);
        } else {
            // Written anew, because the originals may be read-only.
            std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

pub fn cases(name: &str) -> (Cases, HashMap<String, Tensor>) {
    Kit::own().cases(name)
}

pub fn picture(path: &str) -> Decoded {
    Kit::own().picture(path)
}

fn over_white([red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
    let mix = |channel: u8| {
        let weighted = u32::from(channel) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
        ((weighted + 127) / 255) as u8
    };
    [mix(red), mix(green), mix(blue)]
}

/// `[rows, columns]` between -1 and 1, always the same for a seed.
pub fn random(rows: usize, columns: usize, seed: u64) -> Tensor {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1.0_f32..1.0)).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("there are as many values as the shape says")
}
