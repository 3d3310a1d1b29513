//! From an answer's JSON to the values of a job's annotation columns.
//!
//! It knows columns and JSON, no model. Invariant: one value for each column, null where the answer leaves a property out.

use serde_json::{Map, Value as Json};

use super::annotate::Annotate;
use crate::domain::{Column, ColumnType, Value};

/// An answer that is not what the output schema asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("text that is not JSON: {detail}")]
    NotJson { detail: String },
    #[error("JSON in which {pointer} is {found}, not {wanted}")]
    Type { pointer: String, found: &'static str, wanted: &'static str },
}

impl Annotate {
    /// One value for each of `columns`, read from the text of an answer.
    pub fn values(&self, answer: &str) -> Result<Vec<Value>, AnswerError> {
        let json: Json =
            serde_json::from_str(answer).map_err(|error| AnswerError::NotJson { detail: error.to_string() })?;
        let Json::Object(fields) = json else { return Err(mismatch("", &json, "an object")) };
        members(&self.columns, &fields, "")
    }
}

fn members(columns: &[Column], fields: &Map<String, Json>, pointer: &str) -> Result<Vec<Value>, AnswerError> {
    let member = |column: &Column| match fields.get(&column.name) {
        None | Some(Json::Null) => Ok(Value::Null),
        Some(json) => value(&column.kind, json, &format!("{pointer}/{}", column.name)),
    };
    columns.iter().map(member).collect()
}

fn value(kind: &ColumnType, json: &Json, pointer: &str) -> Result<Value, AnswerError> {
    let wanted = match (kind, json) {
        (_, Json::Null) => return Ok(Value::Null),
        (ColumnType::Boolean, Json::Bool(flag)) => return Ok(Value::Boolean(*flag)),
        (ColumnType::Text, Json::String(text)) => return Ok(Value::Text(text.clone())),
        (ColumnType::Int64, Json::Number(number)) => match integer(number) {
            Some(integer) => return Ok(Value::Integer(integer)),
            None => "a whole number of 64 bits",
        },
        (ColumnType::Float64, Json::Number(number)) => return Ok(number.as_f64().map_or(Value::Null, Value::Float)),
        (ColumnType::List(items), Json::Array(values)) => {
            let item = |(index, json)| value(items, json, &format!("{pointer}/{index}"));
            return values.iter().enumerate().map(item).collect::<Result<_, _>>().map(Value::List);
        }
        (ColumnType::Struct(columns), Json::Object(fields)) => {
            return members(columns, fields, pointer).map(Value::Struct);
        }
        (ColumnType::Boolean, _) => "true or false",
        (ColumnType::Text, _) => "a text",
        (ColumnType::Int64 | ColumnType::Float64, _) => "a number",
        (ColumnType::List(_), _) => "a list",
        _ => "an object",
    };
    Err(mismatch(pointer, json, wanted))
}

/// Whole numbers may be spelled with a fraction of zero.
fn integer(number: &serde_json::Number) -> Option<i64> {
    let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64);
    number.as_i64().or_else(|| whole(number.as_f64()?))
}

fn mismatch(pointer: &str, json: &Json, wanted: &'static str) -> AnswerError {
    let found = match json {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    let pointer = if pointer.is_empty() { "the whole".to_owned() } else { pointer.to_owned() };
    AnswerError::Type { pointer, found, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            Column::optional("brand", ColumnType::Text),
            Column::optional("count", ColumnType::Int64),
            Column::optional("weight", ColumnType::Float64),
            Column::optional("tags", ColumnType::List(Box::new(ColumnType::Text))),
            Column::optional("maker", ColumnType::Struct(vec![Column::optional("known", ColumnType::Boolean)])),
        ]
    }

    fn read(answer: &str) -> Result<Vec<Value>, AnswerError> {
        let Json::Object(fields) = serde_json::from_str(answer).unwrap() else { panic!("an object") };
        members(&columns(), &fields, "")
    }

    #[test]
    fn every_property_becomes_the_value_of_its_column_and_what_is_missing_is_null() {
        let values = read(r#"{"weight": 2, "count": 3.0, "tags": ["a", null], "maker": {"known": true}}"#).unwrap();
        let tags = Value::List(vec![Value::Text("a".into()), Value::Null]);
        let maker = Value::Struct(vec![Value::Boolean(true)]);
        assert_eq!(values, [Value::Null, Value::Integer(3), Value::Float(2.0), tags, maker]);
    }

    #[test]
    fn a_value_of_another_type_is_named_by_its_pointer() {
        let wrong = [
            (r#"{"brand": 3}"#, "/brand is a number, not a text"),
            (r#"{"count": 3.5}"#, "/count is a number, not a whole number of 64 bits"),
            (r#"{"tags": ["a", 1]}"#, "/tags/1 is a number, not a text"),
            (r#"{"maker": []}"#, "/maker is a list, not an object"),
            (r#"{"maker": {"known": "no"}}"#, "/maker/known is a text, not true or false"),
        ];
        for (answer, words) in wrong {
            let refusal = read(answer).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
