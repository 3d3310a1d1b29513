//! What a message did against its schema, in words for the person who sends such messages.
//!
//! It knows JSON Schema's keywords and the schemas' descriptions, and nothing of products or ads. Values of messages
//! are quoted shortened, so that an error never grows with its message.

use std::fmt;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

use super::suggestion::did_you_mean;

const QUOTED_CHARACTERS: usize = 60;

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON Pointer to the field, such as `/media/0/url`; empty for the message as a whole.
    pub field: String,
    /// What is wrong with it and what to do.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "the message" } else { &self.field };
        write!(f, "{field} {}", self.detail)
    }
}

impl Violation {
    pub(super) fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), detail: detail.into() }
    }

    /// Puts a validator's complaint into words, with what `schema` says about the field.
    pub(super) fn of(error: &ValidationError<'_>, schema: &Value) -> Self {
        let at = error.instance_path().as_str();
        let rules = Rules::of(error, schema);
        match error.kind() {
            Kind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                let meaning = rules.sentence_about(name);
                Self::new(pointer(at, name), format!("is missing; add it{meaning}"))
            }
            Kind::AdditionalProperties { unexpected } => {
                let name = unexpected.first().map_or("", String::as_str);
                let help = did_you_mean(&shortened(name), rules.properties());
                Self::new(pointer(at, name), format!("is not a field that is known here; {help}"))
            }
            Kind::Type { .. } => {
                let found = kind_of(error.instance());
                Self::new(at, format!("is {found}; send {}{}", rules.wanted_types(), rules.sentence()))
            }
            Kind::MinLength { .. } => Self::new(at, format!("is empty; give it a text{}", rules.sentence())),
            Kind::MaxLength { limit } => {
                let length = error.instance().as_str().map_or(0, |text| text.chars().count());
                Self::new(at, format!("has {length} characters; at most {limit} are allowed"))
            }
            Kind::Minimum { limit } => {
                Self::new(at, format!("is {}; at least {limit} is allowed", quoted(error.instance())))
            }
            Kind::Pattern { .. } | Kind::Format { .. } => {
                Self::new(at, format!("is {}, which does not fit{}", quoted(error.instance()), rules.sentence()))
            }
            _ => Self::new(at, format!("breaks the schema: {}", error.masked())),
        }
    }
}

/// The part of the schema that a field broke.
struct Rules<'a> {
    schema: Option<&'a Value>,
}

impl<'a> Rules<'a> {
    fn of(error: &ValidationError<'_>, schema: &'a Value) -> Self {
        let keyword = error.schema_path().as_str();
        let rules = keyword.rfind('/').map_or("", |end| &keyword[..end]);
        Self { schema: schema.pointer(rules) }
    }

    fn properties(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let properties = self.schema.and_then(|schema| schema.get("properties")?.as_object());
        properties.into_iter().flat_map(|properties| properties.keys().map(String::as_str))
    }

    fn sentence(&self) -> String {
        sentence(self.schema)
    }

    fn sentence_about(&self, property: &str) -> String {
        sentence(self.schema.and_then(|schema| schema.get("properties")?.get(property)))
    }

    fn wanted_types(&self) -> String {
        let types = self.schema.and_then(|schema| schema.get("type"));
        let names: Vec<&str> = match types {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
            }
            _ => Vec::new(),
        };
        names.into_iter().map(type_in_words).collect::<Vec<_>>().join(" or ")
    }
}

fn sentence(schema: Option<&Value>) -> String {
    let description = schema.and_then(|schema| schema.get("description")?.as_str());
    description.map_or_else(String::new, |text| format!(" ({})", text.trim_end_matches('.')))
}

fn type_in_words(name: &str) -> &str {
    match name {
        "string" => "a text",
        "object" => "an object",
        "array" => "a list",
        "number" => "a number",
        "integer" => "a whole number",
        "boolean" => "true or false",
        other => other,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value as JSON, cut after some characters.
pub(super) fn quoted(value: &Value) -> String {
    shortened(&value.to_string())
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn pointer(parent: &str, name: &str) -> String {
    format!("{parent}/{}", shortened(name).replace('~', "~0").replace('/', "~1"))
}
