//! Choices that come with each asset: a place of the schema names them, and each asset brings its own.
//!
//! Knows the schema and how to ask for choices by name; what an asset is, it does not know. Invariant: a schema whose
//! choices are filled in allows nothing that the asset does not list, null excepted where the schema allows it.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::pointer::child;

/// The keyword whose value names the choices.
pub const CHOICES: &str = "x-assay-choices";

/// The schema with every [`CHOICES`] replaced by an enumeration. Without choices a place that may be null is null, and
/// a list that may be empty is empty; otherwise it is [`GrammarError::NoChoices`].
pub fn with_choices<'a>(schema: &Value, choices: &dyn Fn(&str) -> &'a [String]) -> Result<Value, GrammarError> {
    fill("", schema, choices)
}

fn fill<'a>(pointer: &str, schema: &Value, choices: &dyn Fn(&str) -> &'a [String]) -> Result<Value, GrammarError> {
    let Some(found) = schema.as_object() else { return Ok(schema.clone()) };
    let mut rules = found.clone();
    if let Some(name) = rules.remove(CHOICES) {
        enumerate(pointer, &mut rules, &name, choices)?;
    }
    for keyword in ["properties", "$defs"] {
        let Some(Value::Object(members)) = rules.get_mut(keyword) else { continue };
        for (name, member) in members.iter_mut() {
            *member = fill(&child(&child(pointer, keyword), name), member, choices)?;
        }
    }
    if let Some(Value::Array(members)) = rules.get_mut("anyOf") {
        for (place, member) in members.iter_mut().enumerate() {
            *member = fill(&child(&child(pointer, "anyOf"), &place.to_string()), member, choices)?;
        }
    }
    if let Some(items) = rules.get("items") {
        match fill(&child(pointer, "items"), items, choices) {
            Ok(items) => drop(rules.insert("items".to_owned(), items)),
            Err(GrammarError::NoChoices { .. }) if may_be_empty(&rules) => {
                rules.insert("items".to_owned(), json!({ "type": "null" }));
                rules.insert("maxItems".to_owned(), json!(0));
            }
            Err(other) => return Err(other),
        }
    }
    Ok(Value::Object(rules))
}

fn enumerate<'a>(
    pointer: &str,
    rules: &mut Map<String, Value>,
    name: &Value,
    choices: &dyn Fn(&str) -> &'a [String],
) -> Result<(), GrammarError> {
    let Some(name) = name.as_str() else {
        let detail = format!("{} is {name}; write the name of a list of the asset", child(pointer, CHOICES));
        return Err(GrammarError::Schema { detail });
    };
    let nullable = rules.get("type").and_then(Value::as_array).is_some_and(|types| types.contains(&json!("null")));
    let mut seen = HashSet::new();
    let listed = choices(name).iter().filter(|value| seen.insert(value.as_str()));
    let mut values: Vec<Value> = listed.map(|value| json!(value)).collect();
    if nullable {
        values.push(Value::Null);
    }
    if values.is_empty() {
        return Err(GrammarError::NoChoices { pointer: pointer.to_owned(), choices: name.to_owned() });
    }
    rules.insert("enum".to_owned(), Value::Array(values));
    Ok(())
}

fn may_be_empty(rules: &Map<String, Value>) -> bool {
    rules.get("minItems").and_then(Value::as_u64).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn each_asset_gets_an_enumeration_of_its_own() {
        let category = json!({ "type": ["string", "null"], "x-assay-choices": "candidate_categories" });
        let schema = json!({ "type": "object", "properties": { "category": category } });
        let filled = |values: &[&str]| {
            let values = texts(values);
            with_choices(&schema, &|name| {
                assert_eq!(name, "candidate_categories");
                &values
            })
        };
        let mugs = filled(&["Mugs", "Cups", "Mugs"]).unwrap();
        assert_eq!(
            mugs["properties"]["category"],
            json!({ "type": ["string", "null"], "enum": ["Mugs", "Cups", null] })
        );
        assert_eq!(filled(&["Hats"]).unwrap()["properties"]["category"]["enum"], json!(["Hats", null]));
        assert_eq!(filled(&[]).unwrap()["properties"]["category"]["enum"], json!([null]));
    }

    #[test]
    fn an_asset_without_choices_is_refused_where_null_is_not_allowed() {
        let schema = json!({ "properties": { "kind": { "type": "string", "x-assay-choices": "kinds" } } });
        let refusal = with_choices(&schema, &|_| &[]).unwrap_err();
        let expected = GrammarError::NoChoices { pointer: "/properties/kind".to_owned(), choices: "kinds".to_owned() };
        assert_eq!(refusal, expected);
    }

    #[test]
    fn a_list_without_choices_is_empty_unless_it_must_not_be() {
        let items = json!({ "type": "string", "x-assay-choices": "tags" });
        let list = |least: u32| json!({ "type": "array", "minItems": least, "items": items });
        assert_eq!(with_choices(&list(0), &|_| &[]).unwrap()["maxItems"], 0);
        assert!(with_choices(&list(1), &|_| &[]).is_err());
        let tags = texts(&["a", "b"]);
        assert_eq!(with_choices(&list(1), &|_| &tags).unwrap()["items"]["enum"], json!(["a", "b"]));
    }
}
