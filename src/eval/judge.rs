//! Judges one answer by its label: how right is each field.
//!
//! Pure: it knows JSON values, labels and the metrics, no tables. Invariant: a field is judged if and only if both the
//! label and the job have it; an answer that is missing or invalid is wrong in every field that is judged.

use std::collections::BTreeMap;

use serde_json::Value;

use super::labels::{Label, is_secondhand, plain};
use super::metrics::{PathScore, brands_match};
use crate::domain::{Column, ColumnType};
use crate::query::Object;

pub(super) const CATEGORY: &str = "category";
pub(super) const BRAND: &str = "brand";
pub(super) const IS_SECONDHAND: &str = "is_secondhand";
const CONDITION: &str = "condition";

/// The columns of a job that can be held against labels.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    /// Texts, numbers, true and false.
    plain: Vec<String>,
}

/// How right one answer is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Verdict {
    pub category: Option<PathScore>,
    pub brand: Option<bool>,
    /// What was answered and what is true; a missing answer is the contrary of what is true.
    pub is_secondhand: Option<(bool, bool)>,
    /// Every other field, by name.
    pub fields: BTreeMap<String, bool>,
}

impl Judge {
    pub(super) fn new(columns: &[Column]) -> Self {
        let is_plain = |column: &&Column| {
            matches!(column.kind, ColumnType::Text | ColumnType::Boolean | ColumnType::Int64 | ColumnType::Float64)
        };
        Self { plain: columns.iter().filter(is_plain).map(|column| column.name.clone()).collect() }
    }

    fn has(&self, name: &str) -> bool {
        self.plain.iter().any(|column| column == name)
    }

    /// Judges an answer; none if there is none that satisfies its schema.
    pub(super) fn verdict(&self, label: &Label, answer: Option<&Object>) -> Verdict {
        let truth = |name: &str| label.fields.get(name).filter(|_| self.has(name));
        let given = |name: &str| answer.and_then(|fields| fields.get(name));
        let text = |name: &str| given(name).and_then(Value::as_str);
        let category = truth(CATEGORY).and_then(Value::as_str).map(|truth| match text(CATEGORY) {
            Some(path) => PathScore::of(path, truth),
            None => PathScore::missing(truth),
        });
        // Null is how an answer and a label say that there is no brand; the benchmark has an empty text for it.
        let brand = truth(BRAND).map(|truth| {
            answer.is_some() && brands_match(text(BRAND).unwrap_or_default(), truth.as_str().unwrap_or_default())
        });
        let told = if self.has(IS_SECONDHAND) {
            given(IS_SECONDHAND).and_then(Value::as_bool)
        } else {
            text(CONDITION).map(is_secondhand)
        };
        let asked = self.has(IS_SECONDHAND) || self.has(CONDITION);
        let is_secondhand = label.is_secondhand().filter(|_| asked).map(|truth| (told.unwrap_or(!truth), truth));
        let others = self.plain.iter().filter(|name| ![CATEGORY, BRAND, IS_SECONDHAND].contains(&name.as_str()));
        let fields = others.filter_map(|name| {
            let truth = truth(name)?;
            Some((name.clone(), answer.is_some_and(|fields| agree(fields.get(name), truth))))
        });
        Verdict { category, brand, is_secondhand, fields: fields.collect() }
    }
}

impl Verdict {
    /// From 0 to 1 for each field that was judged: of a category the F1 of its path, else whether it is right.
    pub(super) fn scores(&self) -> BTreeMap<&str, f64> {
        let right = |is_right: bool| f64::from(u8::from(is_right));
        let category = self.category.map(|path| {
            let levels = path.predicted + path.truth;
            (CATEGORY, if levels == 0 { 0.0 } else { 2.0 * path.common as f64 / levels as f64 })
        });
        let brand = self.brand.map(|matches| (BRAND, right(matches)));
        let secondhand = self.is_secondhand.map(|(told, truth)| (IS_SECONDHAND, right(told == truth)));
        let fields = self.fields.iter().map(|(name, is_right)| (name.as_str(), right(*is_right)));
        category.into_iter().chain(brand).chain(secondhand).chain(fields).collect()
    }
}

/// The value of a field as it was answered; of `is_secondhand` also by the condition.
pub(super) fn told(fields: &Object, name: &str) -> Value {
    let by_condition = || Some(is_secondhand(fields.get(CONDITION)?.as_str()?).into());
    let value = fields.get(name).cloned();
    value.or_else(|| by_condition().filter(|_| name == IS_SECONDHAND)).unwrap_or(Value::Null)
}

/// Texts agree whatever their case, joints and outer space; numbers as numbers; null only with null.
pub(super) fn agree(given: Option<&Value>, truth: &Value) -> bool {
    match (given.unwrap_or(&Value::Null), truth) {
        (Value::String(given), Value::String(truth)) => plain(given) == plain(truth),
        (Value::Number(given), Value::Number(truth)) => given.as_f64() == truth.as_f64(),
        (given, truth) => given == truth,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(names: &[&str]) -> Judge {
        let kind = |name: &str| if name == IS_SECONDHAND { ColumnType::Boolean } else { ColumnType::Text };
        let mut columns: Vec<Column> = names.iter().map(|name| Column::optional(*name, kind(name))).collect();
        columns.push(Column::optional("attributes", ColumnType::List(Box::new(ColumnType::Text))));
        Judge::new(&columns)
    }

    fn label(fields: Value) -> Label {
        let Value::Object(fields) = fields else { panic!("an object") };
        Label { id: "a".into(), kind: None, fields: fields.into_iter().collect() }
    }

    fn verdict(names: &[&str], truth: Value, given: Value) -> Verdict {
        judge(names).verdict(&label(truth), given.as_object())
    }

    #[test]
    fn only_what_label_and_job_both_have_is_judged() {
        let truth = json!({"category": "A > B", "colour": "red", "size": "L", "attributes": "x"});
        let found = verdict(&["category", "colour", "brand"], truth, json!({"category": "A", "colour": " RED "}));
        assert_eq!(found.category, Some(PathScore { common: 1, predicted: 1, truth: 2 }));
        assert_eq!((found.brand, found.is_secondhand), (None, None));
        assert_eq!(found.fields, BTreeMap::from([("colour".to_owned(), true)]));
    }

    #[test]
    fn a_missing_answer_is_wrong_in_every_field() {
        let truth = json!({"category": "A > B", "brand": null, "condition": "new", "pattern": null});
        let found = verdict(&["category", "brand", "condition", "pattern"], truth, Value::Null);
        assert_eq!(found.category, Some(PathScore { common: 0, predicted: 2, truth: 2 }));
        assert_eq!((found.brand, found.is_secondhand), (Some(false), Some((true, false))));
        assert!(found.fields.values().all(|is_right| !is_right));
        assert!(found.scores().values().all(|score| *score == 0.0));
    }

    #[test]
    fn no_brand_is_null_or_empty_in_answers_and_labels_alike() {
        for (truth, given, expected) in [
            (json!(null), json!(null), true),
            (json!(""), json!(null), true),
            (json!(null), json!(" "), true),
            (json!("Acme"), json!(null), false),
            (json!(null), json!("Acme"), false),
            (json!("Acme"), json!("ACME "), true),
        ] {
            let found = verdict(&["brand"], json!({"brand": truth}), json!({"brand": given}));
            assert_eq!(found.brand, Some(expected), "{truth} {given}");
        }
    }

    #[test]
    fn a_condition_says_whether_a_thing_is_second_hand() {
        for (names, given, expected) in [
            (["is_secondhand"], json!({"is_secondhand": true}), (true, true)),
            (["is_secondhand"], json!({"is_secondhand": null}), (false, true)),
            (["condition"], json!({"condition": "second-hand"}), (true, true)),
            (["condition"], json!({"condition": "refurbished"}), (false, true)),
        ] {
            let found = verdict(&names, json!({"is_secondhand": true}), given.clone());
            assert_eq!(found.is_secondhand, Some(expected), "{given}");
        }
        let by_condition = verdict(&["is_secondhand"], json!({"condition": "new"}), json!({"is_secondhand": true}));
        assert_eq!(by_condition.is_secondhand, Some((true, false)));
        assert_eq!(told(json!({"condition": "second_hand"}).as_object().unwrap(), IS_SECONDHAND), json!(true));
    }

    #[test]
    fn values_agree_by_meaning_and_null_only_with_null() {
        for (given, truth, expected) in [
            (json!("Second-Hand"), json!("second_hand"), true),
            (json!(null), json!("red"), false),
            (json!("red"), json!(null), false),
            (json!(null), json!(null), true),
            (json!(2), json!(2.0), true),
            (json!(true), json!(false), false),
        ] {
            assert_eq!(agree(Some(&given), &truth), expected, "{given} {truth}");
        }
    }
}
