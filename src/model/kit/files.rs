//! The files of a kit: which models it lists, their cases and tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::model::api::{ChatProcessor, Message, Part, Picture, Prompt, Role};
use crate::model::fixture::{self, Decoded};

/// A folder with models, goldens, images and a manifest.
pub struct Kit {
    root: PathBuf,
}

/// A picture or a text of a message.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CasePart {
    Text { text: String },
    Image { file: String },
}

#[derive(Debug, Clone, Deserialize)]
pub struct CaseMessage {
    pub role: String,
    pub content: CaseContent,
}

/// A text alone, or parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum CaseContent {
    Text(String),
    Parts(Vec<CasePart>),
}

impl CaseContent {
    pub fn parts(&self) -> Vec<CasePart> {
        match self {
            Self::Text(text) => vec![CasePart::Text { text: text.clone() }],
            Self::Parts(parts) => parts.clone(),
        }
    }
}

/// One case of a generator.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub name: String,
    /// A chat, a plain text, or neither: ids alone.
    pub messages: Option<Vec<CaseMessage>>,
    pub text: Option<String>,
    pub input_ids: Vec<u32>,
    pub greedy_ids: Vec<u32>,
    /// Llama 4: rows and columns of tiles of each picture.
    pub aspect_ratios: Option<Vec<(usize, usize)>>,
    /// Qwen: frames, rows and columns of patches of each picture.
    pub image_grid_thw: Option<Vec<[usize; 3]>>,
    tensors: String,
}

impl Kit {
    /// The kit of the environment, else the one in the sources.
    pub fn find() -> Self {
        let Some(root) = std::env::var_os("ASSAY_PARITY_KIT").map(PathBuf::from) else { return Self::own() };
        assert!(root.is_dir(), "the parity kit {} is no folder", root.display());
        Self { root }
    }

    /// The one in the sources.
    pub fn own() -> Self {
        Self { root: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity").into() }
    }

    pub fn root(&self) -> &PathBuf {
        &self.root
    }

    /// The models whose goldens the manifest lists; without a manifest, those that have any.
    pub fn models(&self) -> Vec<String> {
        let manifest = self.root.join("manifest.json");
        let mut names: Vec<String> = if manifest.is_file() {
            let listed: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
            let cases = listed.keys().filter_map(|path| path.strip_prefix("goldens/")?.strip_suffix("/cases.json"));
            cases.map(str::to_owned).collect()
        } else {
            let folders = std::fs::read_dir(self.root.join("goldens")).unwrap();
            folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        names.sort();
        names
    }

    pub fn model(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// The cases of a generator; none for an encoder.
    pub fn cases(&self, name: &str) -> Vec<Case> {
        #[derive(Deserialize)]
        struct Cases {
            #[serde(default)]
            cases: Vec<Case>,
        }
        let file = self.root.join("goldens").join(name).join("cases.json");
        let found: Cases = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        found.cases
    }

    pub fn tensors(&self, name: &str, case: &Case) -> HashMap<String, Tensor> {
        let file = self.root.join("goldens").join(name).join(&case.tensors);
        candle_core::safetensors::load(file, &Device::Cpu).unwrap()
    }
}

impl Kit {
    /// What a processor makes of a case.
    pub fn prompt(&self, case: &Case, processor: &dyn ChatProcessor) -> Prompt {
        if let Some(text) = &case.text {
            return processor.text(text).unwrap();
        }
        let Some(messages) = &case.messages else {
            let ids = case.input_ids.clone();
            let positions = (0..ids.len() as u32).map(|position| [position; 3]).collect();
            return Prompt { ids, positions, position_offset: 0, images: Vec::new() };
        };
        let parts: Vec<Vec<CasePart>> = messages.iter().map(|message| message.content.parts()).collect();
        let files = parts.iter().flatten().filter_map(|part| match part {
            CasePart::Image { file } => Some(file),
            CasePart::Text { .. } => None,
        });
        let pictures: Vec<Decoded> =
            files.map(|file| fixture::Kit(self.root.clone()).picture(&case_file(file))).collect();
        let mut pictures = pictures.iter();
        let messages: Vec<Message<'_>> = messages
            .iter()
            .zip(&parts)
            .map(|(message, parts)| Message {
                role: match message.role.as_str() {
                    "system" => Role::System,
                    "user" => Role::User,
                    "assistant" => Role::Assistant,
                    other => panic!("{}: role {other}", case.name),
                },
                parts: parts
                    .iter()
                    .map(|part| match part {
                        CasePart::Text { text } => Part::Text(text),
                        CasePart::Image { .. } => {
                            let Decoded { width, height, rgb } = pictures.next().unwrap();
                            Part::Image(Picture { width: *width, height: *height, rgb })
                        }
                    })
                    .collect(),
            })
            .collect();
        processor.prompt(&messages).unwrap()
    }
}

/// Cases name pictures with or without their folder; a JPEG has a twin that is decoded already, so that decoders which
/// differ by a level do not matter.
fn case_file(file: &str) -> String {
    let path = if file.starts_with("images/") { file.to_owned() } else { format!("images/{file}") };
    if path.ends_with(".jpg") { format!("{path}.decoded.png") } else { path }
}
