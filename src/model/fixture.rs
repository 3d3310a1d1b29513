//! Tests only: the parity models, goldens and pictures under tests/data/parity.
//!
//! Knows paths and nothing of the models themselves.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde::Deserialize;

/// The golden cases of one model.
#[derive(Deserialize)]
pub struct Cases {
    pub texts: Vec<String>,
    pub images: Vec<String>,
    pub input_ids: Vec<Vec<u32>>,
    tensors: String,
}

/// A decoded picture, transparency over white.
pub struct Decoded {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity"))
}

pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// The model directory in a temporary folder, to be changed.
pub fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let entry = entry.unwrap();
        // Written anew, because the originals may be read-only.
        std::fs::write(copy.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    copy
}

pub fn cases(name: &str) -> (Cases, HashMap<String, Tensor>) {
    let folder = root().join("goldens").join(name);
    let cases: Cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let tensors = candle_core::safetensors::load(folder.join(&cases.tensors), &Device::Cpu).unwrap();
    (cases, tensors)
}

pub fn picture(path: &str) -> Decoded {
    let bytes = std::fs::read(root().join(path)).unwrap();
    let decoded = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap().decode().unwrap();
    let (width, height) = (decoded.width(), decoded.height());
    let rgb = decoded.to_rgba8().pixels().flat_map(|pixel| over_white(pixel.0)).collect();
    Decoded { width, height, rgb }
}

fn over_white([red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
    let mix = |channel: u8| {
        let weighted = u32::from(channel) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
        ((weighted + 127) / 255) as u8
    };
    [mix(red), mix(green), mix(blue)]
}
