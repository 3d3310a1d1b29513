//! The files of a Hugging Face model directory: JSON settings, and tensors mapped from safetensors.
//!
//! This file knows names, shapes and stored types; it knows no architecture. Invariant: a tensor that is handed out
//! has exactly the shape that was asked for, and every failure names file, tensor and shapes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::api::ModelError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The number format in which a model computes; what is stored otherwise is converted while loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Reads a JSON file of a model directory; the error names the file and the key.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = std::fs::read(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let detail = match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            key => format!("{key}: {}", error.inner()),
        };
        ModelError::malformed(path, detail)
    })
}

/// The weight files of a directory, in name order: one file, or the shards of its index.
pub fn weight_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let index = directory.join(INDEX);
    if !index.is_file() {
        return Ok(vec![directory.join(SINGLE)]);
    }
    let Index { weight_map } = read_json(&index)?;
    let mut names: Vec<String> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| Path::new(name).file_name() != Some(std::ffi::OsStr::new(name.as_str()))) {
        Some(outside) => {
            Err(ModelError::malformed(&index, format!("weight_map: {outside:?} is not a file name in this directory")))
        }
        None if names.is_empty() => Err(ModelError::malformed(&index, "weight_map is empty")),
        None => Ok(names.iter().map(|name| directory.join(name)).collect()),
    }
}

/// The mapped weights of one model, to be read tensor by tensor onto one device.
pub struct Weights {
    files: Vec<(PathBuf, MmapedSafetensors)>,
    file_of: HashMap<String, usize>,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// Maps all weight files of `directory`.
    pub fn open(directory: &Path, precision: Precision, device: &Device) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        let mut file_of = HashMap::new();
        for path in weight_files(directory)? {
            let mapped = map_file(&path)?;
            file_of.extend(mapped.tensors().into_iter().map(|(name, _)| (name, files.len())));
            files.push((path, mapped));
        }
        Ok(Self { files, file_of, dtype: precision.dtype(), device: device.clone() })
    }

    /// The root of the tensor names.
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    fn load(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let missing = |path: &Path| ModelError::MissingTensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
        };
        let Some((path, mapped)) = self.file_of.get(name).and_then(|index| self.files.get(*index)) else {
            let path = self.files.first().map(|(path, _)| path.as_path());
            return Err(missing(path.unwrap_or(Path::new(SINGLE))));
        };
        let view = mapped.get(name).map_err(|_| missing(path))?;
        if view.shape() != expected {
            return Err(ModelError::Shape {
                path: path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: view.shape().to_vec(),
            });
        }
        let stored = DType::try_from(view.dtype()).ok();
        if !matches!(stored, Some(DType::F32 | DType::F16 | DType::BF16)) {
            let found = format!("{:?}", view.dtype());
            return Err(ModelError::StoredType { path: path.clone(), tensor: name.to_owned(), found });
        }
        Ok(view.load(&self.device)?.to_dtype(self.dtype)?)
    }
}

/// A place in the tree of tensor names.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The names below `segment`.
    pub fn at(&self, segment: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}{segment}.", self.prefix) }
    }

    /// Reads the tensor of that name; its shape must be `expected`.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        self.weights.load(&format!("{}{name}", self.prefix), expected)
    }
}

#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<MmapedSafetensors, ModelError> {
    std::fs::File::open(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
    // SAFETY: the mapping is read while the model is being loaded and dropped afterwards. Model files are written once
    // and replaced whole, by rename; whoever truncates one in place during that time breaks this process.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    mapped.map_err(|error| ModelError::malformed(path, format!("not a safetensors file: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(tensors: &[(&str, Tensor)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let map: HashMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        candle_core::safetensors::save(&map, directory.path().join(SINGLE)).unwrap();
        directory
    }

    fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
    }

    fn open(directory: &Path) -> Result<Weights, ModelError> {
        Weights::open(directory, Precision::F32, &Device::Cpu)
    }

    #[test]
    fn a_missing_or_misshapen_tensor_is_named_with_its_file_and_shapes() {
        let directory = directory_with(&[("a.weight", zeros(&[2, 3], DType::F16))]);
        let weights = open(directory.path()).unwrap();
        let scope = weights.root().at("a");
        let refusal = scope.tensor("weight", &[3, 2]).unwrap_err().to_string();
        for part in ["model.safetensors", "a.weight", "[2, 3]", "[3, 2]"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        let refusal = scope.tensor("bias", &[2]).unwrap_err().to_string();
        assert!(refusal.contains("a.bias is missing") && refusal.contains("[2]"), "{refusal}");
        assert_eq!(scope.tensor("weight", &[2, 3]).unwrap().dtype(), DType::F32);
    }

    #[test]
    fn integers_and_garbage_are_no_weights() {
        let directory = directory_with(&[("a", zeros(&[2], DType::U32))]);
        let refusal = open(directory.path()).unwrap().root().tensor("a", &[2]).unwrap_err().to_string();
        assert!(refusal.contains("U32"), "{refusal}");
        std::fs::write(directory.path().join(SINGLE), b"not a tensor file").unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Malformed { .. })));
        std::fs::remove_file(directory.path().join(SINGLE)).unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Read { .. })));
    }

    #[test]
    fn shards_are_found_through_the_index_and_never_outside_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        for (file, name) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
            let map = HashMap::from([(name.to_owned(), zeros(&[1], DType::BF16))]);
            candle_core::safetensors::save(&map, directory.path().join(file)).unwrap();
        }
        let index = directory.path().join(INDEX);
        std::fs::write(&index, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#).unwrap();
        let weights = open(directory.path()).unwrap();
        assert!(weights.root().tensor("a", &[1]).is_ok() && weights.root().tensor("b", &[1]).is_ok());
        std::fs::write(&index, r#"{"weight_map": {"a": "../one.safetensors"}}"#).unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Malformed { .. })));
    }
}
