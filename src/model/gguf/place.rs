//! Whether a path is a GGUF file, or a folder whose model is one.

use std::path::{Path, PathBuf};

use crate::model::api::ModelError;
use crate::model::weights::weight_files;

const ENDING: &str = "gguf";

/// The GGUF file that `path` means: itself, or the only one of a folder without other weights.
pub fn gguf_file(path: &Path) -> Result<Option<PathBuf>, ModelError> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|ending| ending == ENDING);
    if is_gguf(path) && !path.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(None) };
    if weight_files(path).is_ok_and(|files| files.iter().any(|file| file.is_file())) {
        return Ok(None);
    }
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|file| is_gguf(file)).collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        _ => {
            let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
            Err(ModelError::malformed(path, format!("there are several GGUF files; name one of {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_the_only_one_of_a_folder_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.gguf");
        assert_eq!(gguf_file(folder.path()).unwrap(), None);
        std::fs::write(&file, "").unwrap();
        assert_eq!(gguf_file(&file).unwrap(), Some(file.clone()));
        assert_eq!(gguf_file(folder.path()).unwrap(), Some(file.clone()));
        std::fs::write(folder.path().join("b.gguf"), "").unwrap();
        let refusal = gguf_file(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("a.gguf, b.gguf"), "{refusal}");
        std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
        assert_eq!(gguf_file(folder.path()).unwrap(), None);
    }
}
