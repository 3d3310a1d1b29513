//! A job's schema as the grammar engine gets it: checked, and narrowed to what can be kept.
//!
//! The grammar engine passes over what it does not know, so only known keywords pass. Knows no model and no asset.
//! Invariant: every instance of the narrowed schema is an instance of the schema.

use serde_json::{Map, Value, json};

use super::choices::CHOICES;
use super::keywords::{Use, pattern_of_format, use_of};
use super::numbers::{LARGEST_EXACT, narrow_integer, narrow_number};
use super::pointer::child;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const DEFINITIONS: &str = "#/$defs/";
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
const MOST_NESTING: usize = 32;
/// Longest text that may be asked for; filling up a longer one would cost more than its answer.
const MOST_LEAST_LENGTH: u64 = 1000;

/// Checks and narrows a schema. Otherwise one line for each place: its JSON pointer, what is wrong, what to do.
pub fn narrowed(schema: &Value) -> Result<Value, String> {
    let mut reading = Reading { definitions: schema.get("$defs").and_then(Value::as_object), problems: Vec::new() };
    if let Some(draft) = schema.get("$schema")
        && draft.as_str().is_none_or(|draft| draft.trim_end_matches('#') != DRAFT)
    {
        reading.complain("/$schema", format!("is {draft}; write {DRAFT:?}, and the schema as that says"));
    }
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        reading.complain("/type", "must be \"object\": an answer is an object");
    }
    let schema = reading.schema("", schema, 0);
    match reading.problems.is_empty() {
        true => Ok(schema),
        false => Err(reading.problems.join("\n")),
    }
}

struct Reading<'a> {
    definitions: Option<&'a Map<String, Value>>,
    problems: Vec<String>,
}

impl Reading<'_> {
    fn complain(&mut self, pointer: &str, message: impl std::fmt::Display) {
        let pointer = if pointer.is_empty() { "/" } else { pointer };
        self.problems.push(format!("{pointer} {message}"));
    }

    fn schema(&mut self, pointer: &str, schema: &Value, depth: usize) -> Value {
        let Some(found) = schema.as_object() else {
            self.complain(pointer, format!("is {schema}; write an object with a type"));
            return Value::Null;
        };
        if depth > MOST_NESTING {
            self.complain(pointer, format!("is nested more than {MOST_NESTING} deep; make it flatter"));
            return Value::Null;
        }
        let mut rules = Map::new();
        for (keyword, value) in found {
            match use_of(keyword) {
                _ if keyword == CHOICES => {
                    self.complain(&child(pointer, CHOICES), "has no choices yet; fill them in from the asset first");
                }
                Use::Kept => drop(rules.insert(keyword.clone(), value.clone())),
                Use::Note => {}
                Use::Refused(advice) => {
                    self.complain(&child(pointer, keyword), format!("cannot be kept by a grammar; {advice}"));
                }
            }
        }
        if depth > 0 && rules.contains_key("$defs") {
            self.complain(&child(pointer, "$defs"), "must stand in the outermost schema; move it there");
        }
        self.definitions(pointer, &mut rules, depth);
        match ["$ref", "anyOf"].into_iter().find(|keyword| rules.contains_key(*keyword)) {
            Some(keyword) => self.alone(pointer, keyword, &mut rules, depth),
            None => self.value(pointer, &mut rules, depth),
        }
        Value::Object(rules)
    }

    fn definitions(&mut self, pointer: &str, rules: &mut Map<String, Value>, depth: usize) {
        let Some(Value::Object(definitions)) = rules.get_mut("$defs") else { return };
        let pointer = child(pointer, "$defs");
        for (name, schema) in definitions.iter_mut() {
            *schema = self.schema(&child(&pointer, name), schema, depth + 1);
        }
    }

    /// A reference, or alternatives: with nothing beside them that rules something out.
    fn alone(&mut self, pointer: &str, keyword: &str, rules: &mut Map<String, Value>, depth: usize) {
        if let Some(other) = rules.keys().find(|key| *key != keyword && *key != "$defs").cloned() {
            let message = format!("stands beside {keyword}; write it into the schema that {keyword} leads to");
            self.complain(&child(pointer, &other), message);
        }
        let pointer = child(pointer, keyword);
        match rules.get_mut(keyword) {
            Some(Value::Array(members)) if keyword == "anyOf" && !members.is_empty() => {
                for (place, member) in members.iter_mut().enumerate() {
                    *member = self.schema(&child(&pointer, &place.to_string()), member, depth + 1);
                }
            }
            Some(Value::String(target)) if keyword == "$ref" => {
                let name = target.strip_prefix(DEFINITIONS).map(|name| name.replace("~1", "/").replace("~0", "~"));
                let known = name.is_some_and(|name| self.definitions.is_some_and(|all| all.contains_key(&name)));
                let message = format!("leads to {target:?}; write {DEFINITIONS}NAME, with NAME under $defs");
                if !known {
                    self.complain(&pointer, message);
                }
            }
            _ => self.complain(&pointer, "must be a list of at least one schema (anyOf) or a text ($ref)"),
        }
    }

    fn value(&mut self, pointer: &str, rules: &mut Map<String, Value>, depth: usize) {
        self.numbers(pointer, rules);
        self.lengths(pointer, rules);
        let listed = self.listed(pointer, rules);
        let types = self.types(pointer, rules, listed);
        let has = |name: &str| types.iter().any(|found| found == name);
        if has("string") {
            self.string(pointer, rules);
        }
        if has("array") {
            self.array(pointer, rules, depth);
        }
        if has("object") {
            self.object(pointer, rules, depth);
        }
        if rules.contains_key("multipleOf") && (has("number") || !has("integer")) {
            let message = "is kept for the type \"integer\" alone; leave it out and ask for it in the description";
            self.complain(&child(pointer, "multipleOf"), message);
        } else if has("number") && !listed {
            narrow_number(rules);
        } else if has("integer") && !listed {
            narrow_integer(rules);
        }
    }

    /// The type names. What lists its values needs none.
    fn types(&mut self, pointer: &str, rules: &Map<String, Value>, listed: bool) -> Vec<String> {
        let names: Vec<Value> = match rules.get("type") {
            None if listed => return Vec::new(),
            None => {
                self.complain(&child(pointer, "type"), "is missing; say what the value is, or list its values as enum");
                return Vec::new();
            }
            Some(Value::Array(names)) => names.clone(),
            Some(name) => vec![name.clone()],
        };
        let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
        if names.is_empty() || !names.iter().all(known) {
            self.complain(&child(pointer, "type"), format!("must name one or more of {}", TYPES.join(", ")));
        }
        names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Whether the schema lists its values.
    fn listed(&mut self, pointer: &str, rules: &Map<String, Value>) -> bool {
        for keyword in ["enum", "const"] {
            let values = match rules.get(keyword) {
                None => continue,
                Some(Value::Array(values)) if keyword == "enum" && !values.is_empty() => values.clone(),
                Some(value) => vec![value.clone()],
            };
            let exact = |value: &Value| value.as_f64().is_none_or(|number| number.abs() <= LARGEST_EXACT);
            if values.iter().any(|value| value.is_array() || value.is_object()) || !values.iter().all(exact) {
                let message = format!("must list texts, booleans, null and numbers up to {LARGEST_EXACT}");
                self.complain(&child(pointer, keyword), message);
            }
        }
        rules.contains_key("enum") || rules.contains_key("const")
    }

    fn numbers(&mut self, pointer: &str, rules: &Map<String, Value>) {
        for keyword in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            let Some(value) = rules.get(keyword) else { continue };
            if value.as_f64().is_none_or(|number| number.abs() > LARGEST_EXACT) {
                let message = format!("is {value}; write a number from -{LARGEST_EXACT} to {LARGEST_EXACT}");
                self.complain(&child(pointer, keyword), message);
            }
        }
        for (keyword, exclusive) in [("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")] {
            if rules.contains_key(keyword) && rules.contains_key(exclusive) {
                self.complain(&child(pointer, exclusive), format!("stands beside {keyword}; keep one of them"));
            }
        }
        if let Some(step) = rules.get("multipleOf")
            && step.as_u64().is_none_or(|step| step == 0 || step > 1_000_000)
        {
            let message = format!("is {step}; write a whole number from 1 to 1000000");
            self.complain(&child(pointer, "multipleOf"), message);
        }
    }

    fn lengths(&mut self, pointer: &str, rules: &Map<String, Value>) {
        for keyword in ["minLength", "maxLength", "minItems", "maxItems"] {
            let Some(value) = rules.get(keyword) else { continue };
            let most = if keyword.starts_with("min") { MOST_LEAST_LENGTH } else { u64::from(u32::MAX) };
            if value.as_u64().is_none_or(|length| length > most) {
                let message = format!("is {value}; write a whole number from 0 to {most}");
                self.complain(&child(pointer, keyword), message);
            }
        }
    }

    /// A format becomes the pattern that it stands for.
    fn string(&mut self, pointer: &str, rules: &mut Map<String, Value>) {
        let Some(format) = rules.remove("format") else { return };
        let pointer = child(pointer, "format");
        match format.as_str().and_then(pattern_of_format) {
            None => {
                let known = "date, date-time, time and uuid are known; write a pattern, or leave it out";
                self.complain(&pointer, format!("is {format}; {known}"));
            }
            Some(_) if rules.contains_key("pattern") => {
                self.complain(&pointer, "stands beside pattern; keep one of them");
            }
            Some(pattern) => drop(rules.insert("pattern".to_owned(), Value::String(pattern))),
        }
    }

    fn array(&mut self, pointer: &str, rules: &mut Map<String, Value>, depth: usize) {
        let pointer = child(pointer, "items");
        match rules.get_mut("items") {
            Some(items) => *items = self.schema(&pointer, items, depth + 1),
            None => self.complain(&pointer, "is missing; say what the list holds"),
        }
    }

    fn object(&mut self, pointer: &str, rules: &mut Map<String, Value>, depth: usize) {
        if !matches!(rules.get("additionalProperties"), None | Some(Value::Bool(false))) {
            let message = "must be false: name every property under properties";
            self.complain(&child(pointer, "additionalProperties"), message);
        }
        rules.insert("additionalProperties".to_owned(), json!(false));
        let inside = child(pointer, "properties");
        let Some(Value::Object(properties)) = rules.get_mut("properties") else {
            return self.complain(&inside, "is missing; name the properties");
        };
        for (name, schema) in properties.iter_mut() {
            *schema = self.schema(&child(&inside, name), schema, depth + 1);
        }
        let required = match rules.get("required") {
            None => return,
            Some(Value::Array(required)) => required.clone(),
            Some(other) => vec![other.clone()],
        };
        let known = |name: &Value| name.as_str().is_some_and(|name| rules["properties"].get(name).is_some());
        if let Some(unknown) = required.iter().find(|name| !known(name)) {
            let message = format!("names {unknown}, which is not under properties; put it there, or take it out");
            self.complain(&child(pointer, "required"), message);
        }
    }
}
