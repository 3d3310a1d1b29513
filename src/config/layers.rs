//! The layers of the configuration, one over the other: built-in defaults, a file, the environment.
//!
//! It knows where each value came from and nothing of what it means. Invariant: a value that may be a secret never
//! appears in a complaint.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use figment::Figment;
use figment::error::{Actual, Error, Kind};
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::de::DeserializeOwned;
use url::Url;

use crate::job::{KeyLines, Problem, did_you_mean, join_key};

/// The defaults, which are also the documentation of all keys.
const DEFAULTS: &str = include_str!("../../config/default.toml");
const PREFIX: &str = "ASSAY__";
const KAFKA_PROPERTIES: &str = "source.kafka.properties";
/// Sections whose values are texts that nobody but their receiver understands, and may be secrets.
const OPAQUE: [&str; 3] = [KAFKA_PROPERTIES, "tables.options", "media.stores"];

/// Where values came from, for complaints about them.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins {
    file: Option<PathBuf>,
    lines: KeyLines,
    /// Key path -> name of the environment variable.
    variables: BTreeMap<String, String>,
}

impl Origins {
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// A complaint about a key: names the variable that set it, else the file and line, else the defaults.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let (file, line) = match (self.variable(key), &self.file) {
            (Some(variable), _) => (PathBuf::from(format!("environment variable {variable}")), None),
            (None, Some(file)) => (file.clone(), self.lines.line(key)),
            (None, None) => (PathBuf::from("built-in configuration"), None),
        };
        Problem { file, line, key: key.to_owned(), message: message.into() }
    }

    /// The variable that set the key or what lies around it; of a key that the file does not mention, also one that set
    /// something inside it.
    fn variable(&self, key: &str) -> Option<&str> {
        let is_in_file = self.lines.contains(key);
        let mut variables = self.variables.iter();
        let found = variables.find(|(set, _)| is_inside(key, set) || (!is_in_file && is_inside(set, key)));
        found.map(|(_, variable)| variable.as_str())
    }
}

fn is_inside(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The merged values, and what was found wrong with them so far.
pub(super) struct Layers {
    values: Dict,
    origins: Origins,
    problems: Vec<Problem>,
}

impl Layers {
    /// Merges the layers. Relative paths are resolved against the folder of the file, else against the current folder.
    pub(super) fn merge(
        file: Option<(&Path, &str)>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Problem>> {
        let mut origins = Origins::default();
        let mut problems = Vec::new();
        let mut figment = Figment::from(Toml::string(DEFAULTS));
        if let Some((path, text)) = file {
            origins.lines = KeyLines::parse(path, text).map_err(|problem| vec![problem])?;
            origins.file = Some(path.to_owned());
            figment = figment.merge(Toml::string(text));
        }
        let mut variables = Dict::new();
        for (name, value) in environment {
            match key_of_variable(&name) {
                Some(Ok(key)) => {
                    origins.variables.insert(path_text(&key), name);
                    insert(&mut variables, &key, value_of_variable(&key, &value));
                }
                Some(Err(message)) => problems.push(Problem::of_file(Path::new(&name), message)),
                None => {}
            }
        }
        figment = figment.merge(Serialized::defaults(variables));
        let whole = figment.find_value("").map_err(|error| vec![origins.problem("", error.to_string())])?;
        let values = whole.into_dict().unwrap_or_default();
        let mut layers = Self { values, origins, problems };
        layers.resolve_paths();
        Ok(layers)
    }

    /// Takes one section, or one top-level key. Everything wrong in it is noted.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let mut value = self.values.remove(name)?;
        let before = self.problems.len();
        loop {
            let error = match value.deserialize::<T>() {
                Ok(section) => return (self.problems.len() == before).then_some(section),
                Err(error) => error,
            };
            // What was wrong is taken out and the rest read again, so that all mistakes are told at once. Then a field
            // may be missing only because it was taken out.
            let is_consequence = self.problems.len() > before && matches!(error.kind, Kind::MissingField(_));
            if is_consequence {
                return None;
            }
            self.note(name, &value, &error);
            if !remove(&mut value, &error.path) {
                return None;
            }
        }
    }

    /// Complains about top-level keys that nobody took, and gives back what was noted.
    pub(super) fn finish(mut self, known: &[&str]) -> (Origins, Vec<Problem>) {
        for name in self.values.keys() {
            let help = did_you_mean(name, known.iter().copied());
            let message = format!("is not a section that is known; {help}");
            self.problems.push(self.origins.problem(&join_key("", name), message));
        }
        self.problems.sort_by_key(|problem| problem.line);
        (self.origins, self.problems)
    }

    fn note(&mut self, section: &str, value: &Value, error: &Error) {
        let mut key = join_key("", section);
        let mut inner = Some(value);
        for name in &error.path {
            let is_list = matches!(inner, Some(Value::Array(..)));
            inner = match inner {
                Some(Value::Dict(_, entries)) => entries.get(name),
                Some(Value::Array(_, items)) => name.parse::<usize>().ok().and_then(|index| items.get(index)),
                _ => None,
            };
            key = if is_list { format!("{key}[{name}]") } else { join_key(&key, name) };
        }
        if let Kind::MissingField(name) = &error.kind {
            key = join_key(&key, name);
        }
        self.problems.push(self.origins.problem(&key, in_words(&key, &error.kind)));
    }

    fn resolve_paths(&mut self) {
        let folder = self.origins.file().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let resolve = |value: &mut Value| {
            if let Value::String(_, text) = value
                && !text.contains("://")
            {
                *text = absolute(&folder, text).to_string_lossy().into_owned();
            }
        };
        if let Some(jobs) = self.values.get_mut("jobs") {
            resolve(jobs);
        }
        let topics = inner(&mut self.values, &["source", "replay", "topics"]);
        topics.into_iter().flat_map(Dict::values_mut).for_each(resolve);
        for model in inner(&mut self.values, &["models"]).into_iter().flat_map(Dict::values_mut) {
            if let Value::Dict(_, options) = model {
                options.get_mut("path").into_iter().for_each(resolve);
            }
        }
        let url = inner(&mut self.values, &["tables"]).and_then(|tables| tables.get_mut("url"));
        if let Some(Value::String(_, url)) = url
            && !url.contains("://")
            && let Ok(resolved) = Url::from_directory_path(absolute(&folder, url))
        {
            *url = resolved.as_str().trim_end_matches('/').to_owned();
        }
    }
}

/// The key that a variable sets; none for a variable of somebody else.
fn key_of_variable(name: &str) -> Option<Result<Vec<String>, String>> {
    let rest = name.strip_prefix(PREFIX)?;
    let mut key: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    if key.iter().any(String::is_empty) {
        let message = "names no key; write ASSAY__SECTION__KEY, for example ASSAY__TABLES__URL".to_owned();
        return Some(Err(message));
    }
    let depth = KAFKA_PROPERTIES.split('.').count();
    if key.len() > depth && key[..depth].join(".") == KAFKA_PROPERTIES {
        // Names of librdkafka's properties hold dots, which a shell does not allow in a variable.
        let property = key.split_off(depth).join(".").replace('_', ".");
        key.push(property);
    }
    Some(Ok(key))
}

fn value_of_variable(key: &[String], text: &str) -> Value {
    let key = path_text(key);
    let is_opaque = OPAQUE.iter().any(|section| key.starts_with(&format!("{section}.")));
    // A password of digits is a text all the same.
    if is_opaque { Value::from(text) } else { text.parse().unwrap_or_else(|_| Value::from(text)) }
}

fn in_words(key: &str, kind: &Kind) -> String {
    let is_opaque = OPAQUE.iter().any(|section| is_inside(key, section));
    match kind {
        Kind::UnknownField(name, known) => {
            format!("is not a key that is known here; {}", did_you_mean(name, known.iter().copied()))
        }
        Kind::MissingField(_) => "is missing; config/default.toml says what to write".to_owned(),
        _ if OPAQUE.contains(&key) => "must be a section of names and texts".to_owned(),
        _ if is_opaque => "must be a text in quotes, or a section of them".to_owned(),
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            format!("is {}; it must be {}", found_in_words(found), wanted_in_words(wanted))
        }
        Kind::UnknownVariant(found, known) => {
            format!("is {found:?}; it must be one of {}", known.join(", "))
        }
        other => format!("cannot be used: {other}"),
    }
}

fn found_in_words(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Str(text) => format!("the text {text:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a section".to_owned(),
        other => other.to_string(),
    }
}

/// Serde names Rust's types, which whoever writes a configuration need not know.
fn wanted_in_words(wanted: &str) -> &str {
    match wanted {
        "a string" => "a text in quotes",
        "a sequence" => "a list",
        "a map" => "a section",
        "usize" | "u16" | "u32" | "u64" => "a whole number, not negative",
        "parsable string" => "a size in quotes such as \"64MiB\"",
        "a duration" => "a duration in quotes such as \"30s\"",
        "path string" => "a path in quotes",
        other if other.starts_with("struct ") => "a section",
        other => other,
    }
}

fn path_text(key: &[String]) -> String {
    key.iter().fold(String::new(), |path, name| join_key(&path, name))
}

fn insert(values: &mut Dict, key: &[String], value: Value) {
    let Some((name, rest)) = key.split_first() else { return };
    if rest.is_empty() {
        values.insert(name.clone(), value);
        return;
    }
    let entry = values.entry(name.clone()).or_insert_with(|| Value::from(Dict::new()));
    if !matches!(entry, Value::Dict(..)) {
        *entry = Value::from(Dict::new());
    }
    if let Value::Dict(_, inner) = entry {
        insert(inner, rest, value);
    }
}

fn inner<'a>(values: &'a mut Dict, path: &[&str]) -> Option<&'a mut Dict> {
    path.iter().try_fold(values, |values, name| match values.get_mut(*name) {
        Some(Value::Dict(_, inner)) => Some(inner),
        _ => None,
    })
}

/// Takes out what an error is about; false when it is not to be found. A wrong element takes its whole list with it.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let (Value::Dict(_, entries), Some((name, rest))) = (value, path.split_first()) else { return false };
    match entries.get_mut(name) {
        None => false,
        Some(inner) => (!rest.is_empty() && remove(inner, rest)) || entries.remove(name).is_some(),
    }
}

/// Without `.` and `..`, so that a path reads the same wherever it is shown.
fn absolute(folder: &Path, path: &str) -> PathBuf {
    let joined = folder.join(path);
    let whole = std::path::absolute(&joined).unwrap_or(joined);
    let mut clean = PathBuf::new();
    for component in whole.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}
