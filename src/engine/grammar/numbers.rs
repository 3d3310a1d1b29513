//! Bounds for numbers, so that each is read back as it was written.
//!
//! Knows one schema of a number. Invariant: what the narrowed schema allows, the schema allowed too; an integer is
//! exact as a 64-bit float and never `-0`, and other numbers have at most 15 digits.

use serde_json::{Map, Value, json};

/// The largest integer up to which a 64-bit float holds all.
pub const LARGEST_EXACT: f64 = 9_007_199_254_740_991.0;
/// Bound of a number that has none of its own.
const USUAL_BOUND: f64 = 999_999_999.0;
/// Digits that a 64-bit float keeps whatever they are, and the most of them behind the point.
const DIGITS: i32 = 15;
const MOST_DECIMALS: i32 = 6;

/// Longest integer and longest number in characters: sign, digits, point.
pub const LONGEST: usize = 18;

/// Narrows a schema that allows integers but no other numbers.
pub fn narrow_integer(rules: &mut Map<String, Value>) {
    let below = set_bound(rules, "minimum", "exclusiveMinimum", -LARGEST_EXACT);
    let above = set_bound(rules, "maximum", "exclusiveMaximum", LARGEST_EXACT);
    if below < 0.0 && above >= 0.0 {
        // Keeps the grammar engine from writing -0, which JSON readers take for a float.
        rules.insert("anyOf".to_owned(), json!([{ "maximum": -1 }, { "minimum": 0 }]));
    }
}

/// Narrows a schema that allows numbers of any kind.
pub fn narrow_number(rules: &mut Map<String, Value>) {
    let usual = |other: Option<f64>| match other {
        Some(other) if other.abs() > USUAL_BOUND => (other.abs() * 10.0).min(LARGEST_EXACT),
        _ => USUAL_BOUND,
    };
    let above = bound(rules, "maximum", "exclusiveMaximum");
    let below = set_bound(rules, "minimum", "exclusiveMinimum", -usual(above.filter(|above| *above < 0.0)));
    let above = set_bound(rules, "maximum", "exclusiveMaximum", usual(Some(below).filter(|below| *below > 0.0)));
    let largest = below.abs().max(above.abs()).max(1.0);
    let integer_digits = largest.log10().floor() as i32 + 1;
    let decimals = (DIGITS - integer_digits).clamp(0, MOST_DECIMALS);
    // A step is how a schema can say how many digits stand behind the point.
    let step = if decimals == 0 { json!(1) } else { json!(1.0 / 10_f64.powi(decimals)) };
    rules.insert("multipleOf".to_owned(), step);
}

fn bound(rules: &Map<String, Value>, key: &str, exclusive: &str) -> Option<f64> {
    let of = |key: &str| rules.get(key).and_then(Value::as_f64);
    of(key).or_else(|| of(exclusive))
}

/// The bound that is there, or the usual one put there.
fn set_bound(rules: &mut Map<String, Value>, key: &str, exclusive: &str, usual: f64) -> f64 {
    bound(rules, key, exclusive).unwrap_or_else(|| {
        rules.insert(key.to_owned(), json!(usual));
        usual
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(mut rules: Value, narrow: fn(&mut Map<String, Value>)) -> Value {
        narrow(rules.as_object_mut().unwrap());
        rules
    }

    #[test]
    fn the_digits_of_a_number_are_no_more_than_are_kept() {
        let step =
            |largest: f64| narrowed(json!({ "minimum": 0, "maximum": largest }), narrow_number)["multipleOf"].clone();
        assert_eq!([step(1.0), step(999_999_999.0), step(1e9)], [json!(1e-6), json!(1e-6), json!(1e-5)]);
        assert_eq!([step(1e11), step(1e13), step(1e14), step(9e15)], [json!(1e-3), json!(0.1), json!(1), json!(1)]);
    }

    #[test]
    fn a_missing_bound_lies_beyond_the_one_that_is_there() {
        let above = narrowed(json!({ "exclusiveMinimum": 5e9 }), narrow_number);
        assert_eq!(above, json!({ "exclusiveMinimum": 5e9, "maximum": 5e10, "multipleOf": 1e-4 }));
        let below = narrowed(json!({ "maximum": -5e9 }), narrow_number);
        assert_eq!(below["minimum"], -5e10);
        assert_eq!(narrowed(json!({}), narrow_number)["minimum"], -USUAL_BOUND);
    }

    #[test]
    fn only_integers_around_zero_are_split_at_it() {
        assert!(narrowed(json!({}), narrow_integer).get("anyOf").is_some());
        assert!(narrowed(json!({ "minimum": 0 }), narrow_integer).get("anyOf").is_none());
        assert!(narrowed(json!({ "maximum": -1 }), narrow_integer).get("anyOf").is_none());
    }
}
