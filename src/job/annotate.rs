//! The `[annotate]` section of a job file: what is asked of a generative model, and what its answer must be.
//!
//! It knows keys, templates and output schemas; it knows no model and no token. Invariant: every property of the output
//! schema has a column; which schemas a grammar can enforce is for the engine to say.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::annotation::annotation_columns;
use super::choices::CANDIDATE_CATEGORIES;
use super::problem::Problem;
use super::prompt::{Template, read_template};
use super::reader::{Reader, Section};
use crate::domain::{AssetKind, Column};

const DEFAULT_MAX_TOKENS: usize = 512;
const DEFAULT_DEADLINE: Duration = Duration::from_secs(300);

/// Structured answers of a generative model.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotate {
    pub model: Arc<str>,
    /// The system message, the same for every asset; it is computed once.
    pub instruction: Option<Arc<str>>,
    /// What is said of one asset.
    pub prompt: Template,
    /// The most pictures of an asset that are shown before the prompt; the main one comes first.
    pub images: usize,
    /// The JSON Schema that every answer satisfies.
    pub output: Arc<Value>,
    /// The file that holds it.
    pub output_file: Arc<Path>,
    /// One column for each property of `output`.
    pub columns: Vec<Column>,
    /// The most tokens of an answer; one that would be longer is closed in time.
    pub max_tokens: usize,
    /// The longest time from the first computation to the end of an answer.
    pub deadline: Duration,
    pub sampling: AnswerSampling,
}

/// How the next token is chosen; greedily by default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerSampling {
    /// 0 takes the likeliest token always.
    pub temperature: f64,
    pub top_p: f64,
    pub min_p: f64,
    /// 0 for all.
    pub top_k: usize,
    /// 1 for none.
    pub repetition_penalty: f64,
    /// With the asset's id it decides every draw, so an asset gets the same answer again.
    pub seed: u64,
}

impl Default for AnswerSampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Annotate {
    /// What an answer depends on, in one fixed form.
    pub(super) fn canonical(&self) -> Value {
        let AnswerSampling { temperature, top_p, min_p, top_k, repetition_penalty, seed } = self.sampling;
        json!({
            "model": *self.model,
            "instruction": self.instruction.as_deref(),
            "prompt": self.prompt.source(),
            "images": self.images,
            "output": *self.output,
            "max_tokens": self.max_tokens,
            "deadline_ms": self.deadline.as_millis() as u64,
            "sampling": [temperature, top_p, min_p, top_k, repetition_penalty, seed],
        })
    }
}

pub(super) fn read_annotate(
    mut section: Section<'_>,
    kind: Option<AssetKind>,
    reader: &Reader,
    file: &Path,
) -> Option<Annotate> {
    let model = section.required_text("model", "llama");
    let instruction = section.text("instruction");
    if instruction.is_some_and(|text| text.trim().is_empty()) {
        section.complain("instruction", "is empty; leave it out for none");
    }
    let prompt = section.required_text("prompt", "Describe {id}.");
    let prompt = prompt.and_then(|source| read_template(&section, "prompt", source, kind));
    let images = section.number("images", (0.0, 64.0)).map_or(1, |images| images as usize);
    let max_tokens = section.count("max_tokens", 1 << 17).map_or(DEFAULT_MAX_TOKENS, |most| most as usize);
    let deadline = section.duration("deadline").unwrap_or(DEFAULT_DEADLINE);
    let sampling = section.section("sampling").map_or_else(AnswerSampling::default, read_sampling);
    let output = section.required_text("output", "output-schema.json");
    let output = output.and_then(|output| {
        let path = file.parent().unwrap_or(Path::new("")).join(output);
        match std::fs::read_to_string(&path) {
            Ok(text) => read_output_schema(reader, (&path, &text), kind).map(|schema| (path, schema)),
            Err(error) => {
                section.complain("output", format!("names {}, which cannot be read: {error}", path.display()));
                None
            }
        }
    });
    section.finish();
    let (output_file, (output, columns)) = output?;
    Some(Annotate {
        model: model?.into(),
        instruction: instruction.map(Into::into),
        prompt: prompt?,
        images,
        output: Arc::new(output),
        output_file: output_file.into(),
        columns,
        max_tokens,
        deadline,
        sampling,
    })
}

fn read_sampling(mut section: Section<'_>) -> AnswerSampling {
    let defaults = AnswerSampling::default();
    let sampling = AnswerSampling {
        temperature: section.number("temperature", (0.0, 10.0)).unwrap_or(defaults.temperature),
        top_p: section.number("top_p", (0.001, 1.0)).unwrap_or(defaults.top_p),
        min_p: section.number("min_p", (0.0, 1.0)).unwrap_or(defaults.min_p),
        top_k: section.count("top_k", 1 << 20).map_or(defaults.top_k, |most| most as usize),
        repetition_penalty: section.number("repetition_penalty", (0.1, 10.0)).unwrap_or(defaults.repetition_penalty),
        seed: section.count("seed", 1 << 53).unwrap_or(defaults.seed),
    };
    section.finish();
    sampling
}

fn read_output_schema(
    reader: &Reader,
    (path, text): (&Path, &str),
    kind: Option<AssetKind>,
) -> Option<(Value, Vec<Column>)> {
    let schema: Value = match serde_json::from_str(text) {
        Ok(schema) => schema,
        Err(error) => {
            let problem = Problem::of_file(path, format!("this is not JSON: {error}"));
            reader.add([Problem { line: Some(error.line()), ..problem }]);
            return None;
        }
    };
    if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
        let key = error.instance_path().as_str().to_owned();
        reader.add([Problem { key, ..Problem::of_file(path, format!("this is not a JSON Schema: {error}")) }]);
        return None;
    }
    let unknown = unknown_choices("", &schema, kind);
    if !unknown.is_empty() {
        reader.add(unknown.into_iter().map(|(key, message)| Problem { key, ..Problem::of_file(path, message) }));
        return None;
    }
    match annotation_columns(path, &schema) {
        Ok(columns) => Some((schema, columns)),
        Err(problems) => {
            reader.add(problems);
            None
        }
    }
}

/// The `x-assay-choices` of a schema that assets of this kind have no values for, by pointer.
fn unknown_choices(pointer: &str, schema: &Value, kind: Option<AssetKind>) -> Vec<(String, String)> {
    let children: Vec<(String, &Value)> = match schema {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!("{pointer}/{name}"), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (format!("{pointer}/{at}"), value)).collect(),
        _ => Vec::new(),
    };
    let known = kind == Some(AssetKind::Product);
    children
        .into_iter()
        .flat_map(|(pointer, value)| {
            let named = pointer.ends_with("/x-assay-choices");
            match value.as_str() {
                Some(CANDIDATE_CATEGORIES) if named && known => Vec::new(),
                _ if named => {
                    let rule = format!("{CANDIDATE_CATEGORIES:?} of a product is the only list to choose from");
                    vec![(pointer, format!("is {value}; {rule}"))]
                }
                _ => unknown_choices(&pointer, value, kind),
            }
        })
        .collect()
}
