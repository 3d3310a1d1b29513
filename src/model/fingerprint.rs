//! What a model directory is, in sixteen digits.
//!
//! Invariant: the fingerprint changes whenever a file that the results depend on changes.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::api::ModelError;

/// Settings, templates and vocabularies; a description for people has another ending.
const ENDINGS: [&str; 3] = ["json", "jinja", "txt"];

/// Every settings file at the top of a model directory.
pub fn settings_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|source| failed(directory, source))? {
        let path = entry.map_err(|source| failed(directory, source))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_file() && ENDINGS.contains(&ending) {
            files.push(path);
        }
    }
    Ok(files)
}

/// First 16 hexadecimal digits of the SHA-256 over name below `directory`, length and content of each file, in name
/// order. Blocking: reads them all.
pub fn fingerprint(directory: &Path, mut files: Vec<PathBuf>) -> Result<String, ModelError> {
    files.sort();
    files.dedup();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = std::fs::File::open(&path).map_err(|source| failed(&path, source))?;
        let length = file.metadata().map_err(|source| failed(&path, source))?.len();
        // With its folder, for a pooling has a config.json too.
        hash.update(path.strip_prefix(directory).unwrap_or(&path).as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(length.to_le_bytes());
        loop {
            match file.read(&mut buffer).map_err(|source| failed(&path, source))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn failed(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Read { path: path.to_owned(), source }
}
