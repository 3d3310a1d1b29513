//! The keywords of JSON Schema: which a grammar keeps, which only describe, and what to write instead of the others.
//!
//! Knows words, not schemas. Invariant: a keyword is kept exactly, or it is refused.

/// What the grammar keeps.
const KEPT: [&str; 20] = [
    "$defs",
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "multipleOf",
    "pattern",
    "properties",
    "required",
];

/// What describes and rules nothing out.
const NOTES: [&str; 9] =
    ["$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"];

const DATE: &str = concat!(
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))",
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
);
const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";

/// What becomes of a keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Kept,
    Note,
    /// With what to do instead.
    Refused(&'static str),
}

/// Looks a keyword up. Words that start with `x-` are notes.
pub fn use_of(keyword: &str) -> Use {
    if keyword == "type" || KEPT.contains(&keyword) {
        return Use::Kept;
    }
    if NOTES.contains(&keyword) || keyword.starts_with("x-") {
        return Use::Note;
    }
    Use::Refused(match keyword {
        "oneOf" => "write anyOf, with members that exclude each other by themselves",
        "allOf" => "write its members into one schema",
        "not" => "list what is allowed, with enum or pattern",
        "if" | "then" | "else" | "dependentRequired" | "dependentSchemas" | "dependencies" => {
            "make the property required and let it be null"
        }
        "uniqueItems" | "contains" | "minContains" | "maxContains" => {
            "leave it out and ask for it in the description; a grammar does not compare items"
        }
        "patternProperties" | "propertyNames" | "unevaluatedProperties" | "minProperties" | "maxProperties" => {
            "name every property under properties, and those that must be there under required"
        }
        "prefixItems" | "additionalItems" | "unevaluatedItems" => {
            "write an object with a property for each item, or one schema for all items"
        }
        "definitions" | "$id" | "id" | "$anchor" | "$dynamicAnchor" | "$dynamicRef" | "$recursiveAnchor"
        | "$recursiveRef" => "put the schema under $defs of the outermost schema and write $ref: \"#/$defs/NAME\"",
        "contentEncoding" | "contentMediaType" | "contentSchema" => "leave it out, or write a pattern",
        _ => "correct its spelling, or let it start with x- if it is a note",
    })
}

/// The pattern of a format; only those that a pattern keeps exactly.
pub fn pattern_of_format(format: &str) -> Option<String> {
    match format {
        "date" => Some(format!("^{DATE}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{DATE}T{TIME}$")),
        "uuid" => Some("^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$".to_owned()),
        _ => None,
    }
}
