//! Which files of a repository are a model: settings, templates, tokenizer, and the weights that can be read.
//!
//! A repository often holds the same weights in other formats, too; these are left where they are. Pure: it knows names
//! and the content of two of the files, no network. Invariant: what is wanted is in the list that it was chosen from.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

pub const CONFIG: &str = "config.json";
pub const INDEX: &str = "model.safetensors.index.json";
pub const SINGLE: &str = "model.safetensors";
pub const MODULES: &str = "modules.json";

/// The weights to be fetched.
#[derive(Debug, PartialEq, Eq)]
pub enum WantedWeights {
    Files(Vec<String>),
    /// None is there.
    None,
    /// Several models, of which one must be named.
    Several(Vec<String>),
}

/// Settings, tokenizer and templates, all at the top. The index of shards is one of them.
pub fn settings(published: &[String]) -> Vec<String> {
    let is_other_index = |name: &str| name.ends_with(".index.json") && name != INDEX;
    let is_settings = |name: &str| name.ends_with(".json") || name.ends_with(".jinja");
    let names = published.iter().filter(|name| !name.contains('/') && is_settings(name) && !is_other_index(name));
    names.cloned().collect()
}

/// The settings of the modules that modules.json lists in folders of their own.
pub fn module_settings(modules: &[u8], published: &[String]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Module {
        path: String,
    }
    let modules: Vec<Module> = serde_json::from_slice(modules)?;
    let folders: Vec<String> =
        modules.into_iter().filter(|module| !module.path.is_empty()).map(|module| module.path + "/").collect();
    let is_inside = |name: &&String| name.ends_with(".json") && folders.iter().any(|folder| name.starts_with(folder));
    Ok(published.iter().filter(is_inside).cloned().collect())
}

/// The shards that an index lists, in order.
pub fn shards(index: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_slice(index)?;
    let mut names: Vec<String> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The weights of a repository without an index.
pub fn weights(published: &[String]) -> WantedWeights {
    if published.iter().any(|name| name == SINGLE) {
        return WantedWeights::Files(vec![SINGLE.to_owned()]);
    }
    let files: Vec<String> = published.iter().filter(|name| name.ends_with(".gguf")).cloned().collect();
    match files.len() {
        0 => WantedWeights::None,
        1 => WantedWeights::Files(files),
        _ => WantedWeights::Several(files),
    }
}

/// What a folder that nobody has vouched for lacks to be a model, as far as its own files tell.
pub fn missing(folder: &Path) -> Vec<String> {
    let has = |name: &str| folder.join(name).is_file();
    let is_gguf = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "gguf");
    let has_gguf = || {
        std::fs::read_dir(folder).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_gguf(&entry))))
    };
    let mut missing = Vec::new();
    if let Ok(index) = std::fs::read(folder.join(INDEX)) {
        match shards(&index) {
            Ok(shards) => missing.extend(shards.into_iter().filter(|shard| !has(shard))),
            Err(_) => missing.push(INDEX.to_owned()),
        }
    } else if !has(SINGLE) {
        if has_gguf() {
            return Vec::new();
        }
        missing.push(SINGLE.to_owned());
    }
    if !has(CONFIG) {
        missing.insert(0, CONFIG.to_owned());
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn settings_are_wanted_and_other_formats_are_not() {
        let published = names(&[
            "README.md",
            "config.json",
            "pytorch_model.bin.index.json",
            "model.safetensors.index.json",
            "chat_template.jinja",
            "onnx/config.json",
            "1_Pooling/config.json",
            "1_Pooling/pytorch_model.bin",
        ]);
        assert_eq!(settings(&published), names(&["config.json", INDEX, "chat_template.jinja"]));
        let modules = br#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "b.Pooling"}]"#;
        assert_eq!(module_settings(modules, &published).unwrap(), names(&["1_Pooling/config.json"]));
    }

    #[test]
    fn one_kind_of_weights_is_wanted() {
        let both = names(&["consolidated.safetensors", "model.safetensors", "a.gguf", "b.gguf"]);
        assert_eq!(weights(&both), WantedWeights::Files(names(&["model.safetensors"])));
        assert_eq!(weights(&both[2..3]), WantedWeights::Files(names(&["a.gguf"])));
        assert_eq!(weights(&both[2..]), WantedWeights::Several(names(&["a.gguf", "b.gguf"])));
        assert_eq!(weights(&names(&["pytorch_model.bin"])), WantedWeights::None);
        let index =
            br#"{"metadata": {}, "weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "1.safetensors"}}"#;
        assert_eq!(shards(index).unwrap(), names(&["1.safetensors", "2.safetensors"]));
    }

    #[test]
    fn a_folder_says_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(missing(folder.path()), names(&["config.json", "model.safetensors"]));
        write(CONFIG, "{}");
        write(INDEX, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
        write("2.safetensors", "");
        assert_eq!(missing(folder.path()), names(&["1.safetensors"]));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.gguf"), "").unwrap();
        assert_eq!(missing(folder.path()), names(&[]));
    }
}
