//! The files of a Hugging Face model directory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::model::api::ModelError;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

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
