//! How long the way out of an answer can be, wherever the answer stands.
//!
//! It knows how [`super::closing`] goes: it closes what it can, and passes at most once through every property and
//! through as many items as must be there. Invariant: no closing has more bytes than the bound.

use serde_json::{Map, Value};

use super::numbers::LONGEST;

/// Bytes of a character that is begun: an escape with its digits.
const CHARACTER: usize = 6;
/// Bytes of a separator.
const SEPARATOR: usize = 2;
const MOST_NESTING: usize = 64;

/// The most bytes that complete an answer to this narrowed schema; none when no bound is known.
pub fn longest_closing(schema: &Value) -> Option<usize> {
    let definitions = schema.get("$defs").and_then(Value::as_object);
    longest(schema, definitions, 0)
}

fn longest(schema: &Value, definitions: Option<&Map<String, Value>>, depth: usize) -> Option<usize> {
    if depth > MOST_NESTING {
        return None;
    }
    let rules = schema.as_object()?;
    let inner = |schema: &Value| longest(schema, definitions, depth + 1);
    if let Some(target) = rules.get("$ref").and_then(Value::as_str) {
        let name = target.rsplit('/').next()?.replace("~1", "/").replace("~0", "~");
        return inner(definitions?.get(&name)?);
    }
    if let Some(values) = rules.get("enum").and_then(Value::as_array) {
        return values.iter().map(written).max();
    }
    if let Some(value) = rules.get("const") {
        return Some(written(value));
    }
    let Some(types) = rules.get("type") else {
        let members = rules.get("anyOf")?.as_array()?;
        return members.iter().map(inner).try_fold(0, |most, member| Some(most.max(member?)));
    };
    let names: Vec<&str> = match types {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        name => name.as_str().into_iter().collect(),
    };
    let of_type = |name: &&str| match *name {
        "object" => object(rules, inner),
        "array" => {
            let least = rules.get("minItems").and_then(Value::as_u64).unwrap_or(0).max(1) as usize;
            Some(2 + least.checked_mul(inner(rules.get("items")?)? + SEPARATOR)?)
        }
        // A pattern may take any way to its end.
        "string" if rules.contains_key("pattern") => None,
        "string" => {
            let least = rules.get("minLength").and_then(Value::as_u64).unwrap_or(0) as usize;
            Some(2 + least + CHARACTER)
        }
        "integer" | "number" => Some(LONGEST),
        _ => Some("false".len()),
    };
    names.iter().map(of_type).try_fold(0, |most, found| Some(most.max(found?)))
}

fn object(rules: &Map<String, Value>, inner: impl Fn(&Value) -> Option<usize>) -> Option<usize> {
    let properties = rules.get("properties")?.as_object()?;
    properties.iter().try_fold(2, |sum: usize, (name, schema)| {
        let name = written(&Value::String(name.clone()));
        sum.checked_add(name + 2 * SEPARATOR)?.checked_add(inner(schema)?)
    })
}

/// Bytes of a value with its control characters in their longest escape.
fn written(value: &Value) -> usize {
    match value {
        Value::String(text) => {
            2 + text
                .chars()
                .map(|letter| match letter {
                    letter if letter.is_control() => CHARACTER,
                    '"' | '\\' => 2,
                    letter => letter.len_utf8(),
                })
                .sum::<usize>()
        }
        other => other.to_string().len().max(LONGEST),
    }
}
