//! What a sentence-transformers directory says beyond config.json: pooling, longest text, lower case.
//!
//! Follows the layout of sentence-transformers (Reimers and Gurevych, 2019): modules.json names a transformer, a pooling
//! and a normalisation. Without modules.json a text is the mean of its tokens. Every embedding has unit length, whether
//! or not a normalisation is listed. This file knows no tensors. Invariant: a module, a pooling mode or a prompt is
//! either honoured or refused with its file and key.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::api::ModelError;
use super::weights::read_json;

pub const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
/// The first that exists counts; the name follows the architecture it was written for.
const LIMITS: [&str; 3] =
    ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json"];

/// The flags of older pooling configurations, in the order in which their results are joined, and what newer ones call
/// the same.
const MODES: [(&str, &str, Pooling); 5] = [
    ("pooling_mode_cls_token", "cls", Pooling::First),
    ("pooling_mode_max_tokens", "max", Pooling::Max),
    ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanBySquareRoot),
    ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
];

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The largest value of each column.
    Max,
    Mean,
    /// The sum divided by the square root of the count.
    MeanBySquareRoot,
    /// The last token's.
    Last,
}

/// What a directory says of its sentence vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentenceSettings {
    /// At least one; the results are joined in this order.
    pub pooling: Vec<Pooling>,
    /// The longest text in tokens, special tokens included.
    pub limit: Option<usize>,
    pub lower_case: bool,
    /// The files that were read, for whoever must notice a change.
    pub files: Vec<PathBuf>,
}

impl SentenceSettings {
    /// Reads the files that are there. `hidden` is the width of a token's state.
    pub fn read(directory: &Path, hidden: usize) -> Result<Self, ModelError> {
        #[derive(Default, Deserialize)]
        struct Limits {
            max_seq_length: Option<usize>,
            #[serde(default)]
            do_lower_case: Option<bool>,
        }
        let mut files = Vec::new();
        let pooling = match present(directory, MODULES, &mut files) {
            Some(file) => pooling(directory, &file, hidden, &mut files)?,
            None => vec![Pooling::Mean],
        };
        let limits = match LIMITS.iter().find_map(|name| present(directory, name, &mut files)) {
            Some(file) => {
                let limits: Limits = read_json(&file)?;
                if limits.max_seq_length == Some(0) {
                    return Err(ModelError::malformed(&file, "max_seq_length is 0"));
                }
                limits
            }
            None => Limits::default(),
        };
        if let Some(file) = present(directory, PROMPTS, &mut files) {
            refuse_default_prompt(&file)?;
        }
        let lower_case = limits.do_lower_case.unwrap_or_default();
        Ok(Self { pooling, limit: limits.max_seq_length, lower_case, files })
    }
}

fn present(directory: &Path, name: &str, files: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let file = directory.join(name);
    file.is_file().then(|| {
        files.push(file.clone());
        file
    })
}

/// The pooling of a module list that is a transformer, a pooling and perhaps a normalisation, in this order.
fn pooling(
    directory: &Path,
    modules: &Path,
    hidden: usize,
    files: &mut Vec<PathBuf>,
) -> Result<Vec<Pooling>, ModelError> {
    #[derive(Deserialize)]
    struct Module {
        path: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let listed: Vec<Module> = read_json(modules)?;
    // Releases moved the classes about; only their names stayed.
    let kinds: Vec<&str> = listed.iter().map(|module| module.kind.rsplit('.').next().unwrap_or_default()).collect();
    let known = ["Transformer", "Pooling", "Normalize"];
    for (index, kind) in kinds.iter().enumerate() {
        if known.get(index) != Some(kind) {
            let advice = "only Transformer, Pooling and then Normalize are";
            return Err(ModelError::unsupported(modules, &format!("[{index}].type"), &listed[index].kind, advice));
        }
    }
    let [transformer, pooling, ..] = listed.as_slice() else {
        return Err(ModelError::malformed(modules, "it must list a Transformer and a Pooling"));
    };
    if !transformer.path.is_empty() {
        let advice = "the transformer must lie beside modules.json";
        return Err(ModelError::unsupported(modules, "[0].path", &transformer.path, advice));
    }
    if Path::new(&pooling.path).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(ModelError::unsupported(modules, "[1].path", &pooling.path, "name a folder of this directory"));
    }
    let file = directory.join(&pooling.path).join("config.json");
    let modes = pooling_modes(&file, hidden)?;
    files.push(file);
    Ok(modes)
}

fn pooling_modes(file: &Path, hidden: usize) -> Result<Vec<Pooling>, ModelError> {
    const WIDTHS: [&str; 2] = ["word_embedding_dimension", "embedding_dimension"];
    const ADVICE: &str = "cls, max, mean, mean_sqrt_len_tokens and lasttoken are";
    let keys: Map<String, Value> = read_json(file)?;
    for key in WIDTHS {
        if let Some(width) = keys.get(key).filter(|width| width.as_u64() != Some(hidden as u64)) {
            return Err(ModelError::malformed(file, format!("{key} is {width}, but config.json has {hidden}")));
        }
    }
    let mut modes = Vec::new();
    match keys.get("pooling_mode") {
        Some(named) => {
            for name in named.as_array().map_or(std::slice::from_ref(named), Vec::as_slice) {
                let mode = MODES.iter().find(|(_, known, _)| name == known);
                let (_, _, mode) = mode.ok_or_else(|| ModelError::unsupported(file, "pooling_mode", name, ADVICE))?;
                modes.push(*mode);
            }
        }
        None => {
            let is_on = |key: &str| keys.get(key).is_some_and(|value| value == &Value::Bool(true));
            let known = |key: &str| MODES.iter().any(|(flag, _, _)| *flag == key);
            if let Some(key) = keys.keys().find(|key| key.starts_with("pooling_mode_") && is_on(key) && !known(key)) {
                return Err(ModelError::unsupported(file, key, true, ADVICE));
            }
            modes.extend(MODES.iter().filter(|(flag, _, _)| is_on(flag)).map(|(_, _, mode)| *mode));
        }
    }
    match modes.is_empty() {
        true => Err(ModelError::malformed(file, "no pooling mode is on")),
        false => Ok(modes),
    }
}

/// A prompt before every text would have to be part of the text that a job writes.
fn refuse_default_prompt(file: &Path) -> Result<(), ModelError> {
    #[derive(Deserialize)]
    struct Prompts {
        #[serde(default)]
        prompts: Option<Map<String, Value>>,
        default_prompt_name: Option<String>,
    }
    let Prompts { prompts, default_prompt_name } = read_json(file)?;
    let Some(name) = default_prompt_name else { return Ok(()) };
    match prompts.unwrap_or_default().get(&name).and_then(Value::as_str) {
        Some("") => Ok(()),
        _ => {
            let advice = "set it to null and begin the texts with the prompt";
            Err(ModelError::unsupported(file, "default_prompt_name", name, advice))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSFORMER: &str = r#"{"path": "", "type": "sentence_transformers.models.Transformer"}"#;
    const POOLING: &str = r#"{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}"#;
    const NORMALIZE: &str = r#"{"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}"#;

    fn directory(modules: &[&str], pooling: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(MODULES), format!("[{}]", modules.join(","))).unwrap();
        std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        std::fs::write(directory.path().join("1_Pooling/config.json"), pooling).unwrap();
        directory
    }

    fn pooling_of(json: &str) -> Result<Vec<Pooling>, ModelError> {
        let directory = directory(&[TRANSFORMER, POOLING], json);
        SentenceSettings::read(directory.path(), 8).map(|settings| settings.pooling)
    }

    #[test]
    fn without_modules_a_text_is_the_mean_of_its_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let settings = SentenceSettings::read(directory.path(), 8).unwrap();
        let expected =
            SentenceSettings { pooling: vec![Pooling::Mean], limit: None, lower_case: false, files: Vec::new() };
        assert_eq!(settings, expected);
    }

    #[test]
    fn all_files_of_a_full_directory_are_honoured_and_listed() {
        let directory = directory(
            &[TRANSFORMER, POOLING, NORMALIZE],
            r#"{"pooling_mode_cls_token": true, "include_prompt": true}"#,
        );
        let write = |name: &str, json: &str| std::fs::write(directory.path().join(name), json).unwrap();
        write(LIMITS[0], r#"{"max_seq_length": 12, "do_lower_case": true}"#);
        write(PROMPTS, r#"{"prompts": {"query": "", "document": ""}, "default_prompt_name": null}"#);
        let settings = SentenceSettings::read(directory.path(), 8).unwrap();
        assert_eq!((settings.pooling, settings.limit, settings.lower_case), (vec![Pooling::First], Some(12), true));
        assert_eq!(settings.files.len(), 4);
    }

    #[test]
    fn several_pooling_modes_are_joined_in_the_order_of_the_reference() {
        let json = r#"{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true,
            "pooling_mode_max_tokens": false, "word_embedding_dimension": 8}"#;
        assert_eq!(pooling_of(json).unwrap(), [Pooling::First, Pooling::Mean, Pooling::Last]);
        assert_eq!(pooling_of(r#"{"pooling_mode": "max"}"#).unwrap(), [Pooling::Max]);
        assert_eq!(pooling_of(r#"{"pooling_mode": ["mean", "cls"]}"#).unwrap(), [Pooling::Mean, Pooling::First]);
    }

    #[test]
    fn a_pooling_that_is_not_known_or_does_not_fit_is_refused_with_key_and_file() {
        for (json, part) in [
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, "pooling_mode_weightedmean_tokens = true"),
            (r#"{"pooling_mode": "weightedmean"}"#, "pooling_mode = \"weightedmean\""),
            (r#"{"pooling_mode_mean_tokens": false}"#, "no pooling mode"),
            (r#"{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 9}"#, "word_embedding_dimension is 9"),
        ] {
            let refusal = pooling_of(json).unwrap_err().to_string();
            assert!(refusal.contains(part) && refusal.contains("1_Pooling/config.json"), "{json}: {refusal}");
        }
    }

    #[test]
    fn modules_that_cannot_be_honoured_are_refused_with_their_type() {
        let dense = r#"{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}"#;
        let inside = r#"{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}"#;
        let outside = r#"{"path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"}"#;
        for (modules, part) in [
            (vec![TRANSFORMER, POOLING, dense], "[2].type = sentence_transformers.models.Dense"),
            (vec![POOLING, TRANSFORMER], "[0].type"),
            (vec![TRANSFORMER], "a Transformer and a Pooling"),
            (vec![inside, POOLING], "[0].path = 0_Transformer"),
            (vec![TRANSFORMER, outside], "[1].path = ../1_Pooling"),
        ] {
            let directory = directory(&modules, r#"{"pooling_mode_mean_tokens": true}"#);
            let refusal = SentenceSettings::read(directory.path(), 8).unwrap_err().to_string();
            assert!(refusal.contains(part) && refusal.contains(MODULES), "{refusal}");
        }
    }

    #[test]
    fn a_prompt_before_every_text_is_refused_and_an_empty_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let read = |json: &str| {
            std::fs::write(directory.path().join(PROMPTS), json).unwrap();
            SentenceSettings::read(directory.path(), 8)
        };
        assert!(read(r#"{"prompts": {"q": ""}, "default_prompt_name": "q"}"#).is_ok());
        let refusal = read(r#"{"prompts": {"q": "query: "}, "default_prompt_name": "q"}"#).unwrap_err().to_string();
        assert!(refusal.contains(PROMPTS) && refusal.contains("default_prompt_name = q"), "{refusal}");
    }
}
