//! From the JSON Schema of a job's annotations (`annotate.output`) to table columns.
//!
//! It knows which JSON types a table can hold. Invariant: a schema that is accepted here gives every property a column,
//! and every column may be null, because a removed asset has no annotation.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::problem::Problem;
use crate::domain::{Column, ColumnType};

const MOST_NESTING: usize = 16;

/// One column for each property, in the schema's order. Each problem names the JSON Pointer of what a table cannot
/// hold.
pub fn annotation_columns(file: &Path, schema: &Value) -> Result<Vec<Column>, Vec<Problem>> {
    let mut reading = Reading { file, problems: Vec::new() };
    let columns = reading.top(schema);
    match reading.problems.is_empty() {
        true => Ok(columns),
        false => Err(reading.problems),
    }
}

/// Whether a name can be a column: ASCII letters, digits and underscores, not starting with a digit.
pub(super) fn is_column_name(name: &str) -> bool {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    starts_well && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

struct Reading<'a> {
    file: &'a Path,
    problems: Vec<Problem>,
}

impl Reading<'_> {
    fn top(&mut self, schema: &Value) -> Vec<Column> {
        match self.kind("", schema, 0) {
            Some(ColumnType::Struct(columns)) => columns,
            Some(_) => {
                self.complain::<()>("/type", "must be \"object\": its properties become the columns");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn kind(&mut self, pointer: &str, schema: &Value, depth: usize) -> Option<ColumnType> {
        if depth > MOST_NESTING {
            return self.complain(pointer, format!("is nested more than {MOST_NESTING} deep; make it flatter"));
        }
        let Some(rules) = schema.as_object() else {
            return self.complain(pointer, "is not a schema that a table can hold; write an object with a type");
        };
        const UNREADABLE: [&str; 9] =
            ["$ref", "$dynamicRef", "anyOf", "oneOf", "allOf", "not", "if", "patternProperties", "prefixItems"];
        for keyword in UNREADABLE.into_iter().filter(|keyword| rules.contains_key(*keyword)) {
            let message = "is not supported for tables; write the type out, with [type, \"null\"] for what may be null";
            self.complain::<()>(&child(pointer, keyword), message);
        }
        match self.type_name(pointer, rules)? {
            "string" => Some(ColumnType::Text),
            "integer" => Some(ColumnType::Int64),
            "number" => Some(ColumnType::Float64),
            "boolean" => Some(ColumnType::Boolean),
            "array" => {
                let Some(items) = rules.get("items") else {
                    return self.complain(&child(pointer, "items"), "is missing; say what the list holds");
                };
                let items = self.kind(&child(pointer, "items"), items, depth + 1)?;
                Some(ColumnType::List(Box::new(items)))
            }
            "object" => self.object(pointer, rules, depth),
            other => {
                let message = format!("is {other:?}; a table holds string, integer, number, boolean, array and object");
                self.complain(&child(pointer, "type"), message)
            }
        }
    }

    /// The one type besides null. An enumeration of texts, the schema's or the asset's own, needs no type.
    fn type_name<'s>(&mut self, pointer: &str, rules: &'s Map<String, Value>) -> Option<&'s str> {
        match rules.get("type") {
            Some(Value::String(name)) => Some(name),
            Some(Value::Array(names)) => {
                let mut kinds = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
                match (kinds.next(), kinds.next()) {
                    (Some(name), None) => Some(name),
                    _ => self.complain(&child(pointer, "type"), "must name one type, or one type and \"null\""),
                }
            }
            None if is_text_enumeration(rules) => Some("string"),
            _ => self.complain(&child(pointer, "type"), "is missing; a column needs one type"),
        }
    }

    fn object(&mut self, pointer: &str, rules: &Map<String, Value>, depth: usize) -> Option<ColumnType> {
        let pointer = child(pointer, "properties");
        let properties = rules.get("properties").and_then(Value::as_object).filter(|properties| !properties.is_empty());
        let Some(properties) = properties else {
            return self.complain(&pointer, "is missing or empty; name the properties, each becomes a column");
        };
        let mut columns = Vec::new();
        let mut seen = HashSet::new();
        for (name, schema) in properties {
            let pointer = child(&pointer, name);
            if !is_column_name(name) {
                let message = "is no column name; use ASCII letters, digits and underscores, not a digit first";
                self.complain::<()>(&pointer, message);
            }
            if !seen.insert(name.to_lowercase()) {
                self.complain::<()>(
                    &pointer,
                    "differs from another property only in case, which tables do not tell apart",
                );
            }
            if let Some(kind) = self.kind(&pointer, schema, depth + 1) {
                columns.push(Column::optional(name, kind));
            }
        }
        Some(ColumnType::Struct(columns))
    }

    fn complain<T>(&mut self, pointer: &str, message: impl Into<String>) -> Option<T> {
        let key = if pointer.is_empty() { "/".to_owned() } else { pointer.to_owned() };
        self.problems.push(Problem { key, ..Problem::of_file(self.file, message) });
        None
    }
}

fn is_text_enumeration(rules: &Map<String, Value>) -> bool {
    let values = rules.get("enum").and_then(Value::as_array);
    values.is_some_and(|values| values.iter().all(|value| value.is_string() || value.is_null()))
        || rules.get("const").is_some_and(Value::is_string)
        || rules.contains_key("x-assay-choices")
}

fn child(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_supported_type_becomes_its_column() {
        let schema = json!({"type": "object", "properties": {
            "category": {"type": "string"},
            "audience": {"enum": ["adult", "child", null]},
            "confidence": {"type": ["number", "null"]},
            "count": {"type": "integer"},
            "safe": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "brand": {"type": ["object", "null"], "properties": {"name": {"type": "string"}, "known": {"type": "boolean"}}}
        }});
        let brand = vec![Column::optional("name", ColumnType::Text), Column::optional("known", ColumnType::Boolean)];
        let expected = vec![
            Column::optional("category", ColumnType::Text),
            Column::optional("audience", ColumnType::Text),
            Column::optional("confidence", ColumnType::Float64),
            Column::optional("count", ColumnType::Int64),
            Column::optional("safe", ColumnType::Boolean),
            Column::optional("tags", ColumnType::List(Box::new(ColumnType::Text))),
            Column::optional("brand", ColumnType::Struct(brand)),
        ];
        assert_eq!(annotation_columns(Path::new("o.json"), &schema), Ok(expected));
    }

    #[test]
    fn what_a_table_cannot_hold_is_named_by_its_pointer() {
        let inside = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
        let wrong = [
            (json!({"type": "string"}), "/type"),
            (json!(true), "/"),
            (json!({"type": "object"}), "/properties"),
            (inside(json!({})), "/properties/a/type"),
            (inside(json!({"type": ["string", "integer"]})), "/properties/a/type"),
            (inside(json!({"type": "null"})), "/properties/a/type"),
            (inside(json!({"type": "array"})), "/properties/a/items"),
            (inside(json!({"type": "array", "items": {"type": "object"}})), "/properties/a/items/properties"),
            (inside(json!({"$ref": "#/x", "type": "string"})), "/properties/a/$ref"),
            (inside(json!({"enum": [1, 2]})), "/properties/a/type"),
            (json!({"type": "object", "properties": {"a b": {"type": "string"}}}), "/properties/a b"),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}, "A": {"type": "string"}}}),
                "/properties/A",
            ),
        ];
        for (schema, pointer) in wrong {
            let problems = annotation_columns(Path::new("o.json"), &schema).unwrap_err();
            let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
            assert_eq!(keys, [pointer], "{schema}");
        }
    }

    #[test]
    fn endless_nesting_is_refused() {
        let mut schema = json!({"type": "string"});
        for _ in 0..100 {
            schema = json!({"type": "object", "properties": {"a": schema}});
        }
        assert_eq!(annotation_columns(Path::new("o.json"), &schema).unwrap_err().len(), 1);
    }
}
