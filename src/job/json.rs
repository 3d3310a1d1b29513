//! JSON as a message holds it: names and texts are borrowed from its bytes, unless they have escapes.
//!
//! A message is looked at once, and few of its texts are kept; here only those are copied. It knows no schema, but lets
//! the validator look at it. Invariant: it reads what `serde_json::Value` reads, with the same errors, and of equal names
//! in an object it, too, keeps the last.

use std::borrow::Cow;
use std::fmt;

use jsonschema::JsonType;
use jsonschema::json::{self, NodeIdentity};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

/// One JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Boolean(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Fields<'a>),
}

/// The fields of an object, sorted by their names, each name once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

impl<'a> Json<'a> {
    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.into_owned()),
            _ => None,
        }
    }

    pub(super) fn into_list(self) -> Vec<Json<'a>> {
        match self {
            Self::List(values) => values,
            _ => Vec::new(),
        }
    }

    pub(super) fn into_fields(self) -> Option<Fields<'a>> {
        match self {
            Self::Object(fields) => Some(fields),
            _ => None,
        }
    }
}

impl<'a> Fields<'a> {
    fn sorted(mut fields: Vec<(Cow<'a, str>, Json<'a>)>) -> Self {
        // Stable, so that of equal names the last stays behind the others.
        fields.sort_by(|(left, _), (right, _)| left.cmp(right));
        fields.dedup_by(|later, earlier| {
            let is_again = later.0 == earlier.0;
            if is_again {
                std::mem::swap(later, earlier);
            }
            is_again
        });
        Self(fields)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by(|(field, _)| field.as_ref().cmp(name)).ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.place(name).map(|place| &self.0[place].1)
    }

    /// Moves a field's value out and leaves null in its place.
    pub(super) fn take(&mut self, name: &str) -> Option<Json<'a>> {
        self.place(name).map(|place| std::mem::replace(&mut self.0[place].1, Json::Null))
    }
}

impl<'a> IntoIterator for Fields<'a> {
    type Item = (Cow<'a, str>, Json<'a>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<&Json<'_>> for Value {
    fn from(json: &Json<'_>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Boolean(boolean) => Self::Bool(*boolean),
            Json::Number(number) => Self::Number(number.clone()),
            Json::Text(text) => Self::String(text.to_string()),
            Json::List(values) => Self::Array(values.iter().map(Self::from).collect()),
            Json::Object(fields) => {
                Self::Object(fields.0.iter().map(|(name, value)| (name.to_string(), Self::from(value))).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Json<'de>, E> {
        Ok(Json::Boolean(boolean))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json<'de>, E> {
        Ok(Number::from_f64(number).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = object.next_entry()? {
            fields.push((name, value));
        }
        Ok(Json::Object(Fields::sorted(fields)))
    }
}

/// A field's name.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// [`Json`] for the validator.
pub(super) struct BorrowedJson;

impl json::Json for BorrowedJson {
    type Node<'a> = &'a Json<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, look: impl FnOnce(Self::Node<'_>) -> T) -> T {
        look(&Json::Text(Cow::Borrowed(string)))
    }
}

impl<'a> json::Node<'a, BorrowedJson> for &'a Json<'a> {
    type Object = &'a Fields<'a>;
    type Array = &'a [Json<'a>];
    type Number = &'a Number;

    fn as_object(&self) -> Option<&'a Fields<'a>> {
        match self {
            Json::Object(fields) => Some(fields),
            _ => None,
        }
    }

    fn as_array(&self) -> Option<&'a [Json<'a>]> {
        match self {
            Json::List(values) => Some(values),
            _ => None,
        }
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        match self {
            Json::Text(text) => Some(Cow::Borrowed(text)),
            _ => None,
        }
    }

    fn as_number(&self) -> Option<&'a Number> {
        match self {
            Json::Number(number) => Some(number),
            _ => None,
        }
    }

    fn as_boolean(&self) -> Option<bool> {
        match self {
            Json::Boolean(boolean) => Some(*boolean),
            _ => None,
        }
    }

    fn is_null(&self) -> bool {
        matches!(self, Json::Null)
    }

    fn json_type(&self) -> JsonType {
        match self {
            Json::Null => JsonType::Null,
            Json::Boolean(_) => JsonType::Boolean,
            Json::Number(_) => JsonType::Number,
            Json::Text(_) => JsonType::String,
            Json::List(_) => JsonType::Array,
            Json::Object(_) => JsonType::Object,
        }
    }

    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Owned(Value::from(*self))
    }

    fn identity(&self) -> Option<NodeIdentity> {
        Some(NodeIdentity::new(std::ptr::from_ref(*self).addr()))
    }
}

impl<'a> json::Object<'a, BorrowedJson> for &'a Fields<'a> {
    type Node = &'a Json<'a>;
    type MemberName = &'a str;
    type MembersIter = Members<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<&'a Json<'a>> {
        Fields::get(self, key)
    }

    fn members(&self) -> Members<'a> {
        Members(self.0.iter())
    }
}

/// The fields of an object, one after the other.
pub(super) struct Members<'a>(std::slice::Iter<'a, (Cow<'a, str>, Json<'a>)>);

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, &'a Json<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(name, value)| (name.as_ref(), value))
    }
}

impl<'a> json::Array<'a, BorrowedJson> for &'a [Json<'a>] {
    type Node = &'a Json<'a>;
    type ElementsIter = std::slice::Iter<'a, Json<'a>>;

    fn len(&self) -> usize {
        <[Json<'a>]>::len(self)
    }

    fn elements(&self) -> std::slice::Iter<'a, Json<'a>> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_borrowed(json: &Json<'_>) -> bool {
        matches!(json, Json::Text(Cow::Borrowed(_)))
    }

    #[test]
    fn texts_are_borrowed_unless_they_have_escapes() {
        let message = r#"{"plain": "a mug", "escaped": "a \"mug\"", "n\u0061me": 1}"#;
        let mut fields = serde_json::from_str::<Json<'_>>(message).unwrap().into_fields().unwrap();
        assert!(is_borrowed(fields.get("plain").unwrap()) && !is_borrowed(fields.get("escaped").unwrap()));
        let names = fields.0.iter().filter(|(name, _)| matches!(name, Cow::Borrowed(_))).map(|(name, _)| name.as_ref());
        assert_eq!(names.collect::<Vec<_>>(), ["escaped", "plain"]);
        assert_eq!(fields.take("escaped").and_then(Json::into_text).as_deref(), Some("a \"mug\""));
        assert_eq!(fields.get("name"), Some(&Json::Number(1.into())));
        assert_eq!(fields.get("escaped"), Some(&Json::Null), "what was taken is null");
        assert_eq!(fields.get("missing"), None);
    }

    #[test]
    fn errors_are_those_of_the_library() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "{1: 2}", "1e999", "nul", "{} {}", "\"\\ud800\"", &"[".repeat(200)] {
            let expected = serde_json::from_str::<Value>(text).unwrap_err().to_string();
            assert_eq!(serde_json::from_str::<Json<'_>>(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    fn text_of_json() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec!["\"a\"", "\"b\"", "\"\\u0061\"", "\"ä\\n\"", "\"\""]);
        let leaf = prop_oneof![
            prop::sample::select(vec![
                "null",
                "true",
                "false",
                "0",
                "-1",
                "18446744073709551615",
                "1e5",
                "-0.0",
                "2.5"
            ])
            .prop_map(str::to_owned),
            any::<String>().prop_map(|text| Value::String(text).to_string()),
        ];
        leaf.prop_recursive(4, 64, 6, move |inner| {
            let field = (name.clone(), inner.clone()).prop_map(|(name, value)| format!("{name}: {value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..6).prop_map(|values| format!("[{}]", values.join(", "))),
                prop::collection::vec(field, 0..6).prop_map(|fields| format!("{{{}}}", fields.join(", "))),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_reads_what_the_library_reads_and_keeps_the_last_of_equal_names(text in text_of_json()) {
            let expected: Value = serde_json::from_str(&text).unwrap();
            let read: Json<'_> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Value::from(&read), expected);
        }
    }
}
