//! Labels: what is true of each asset, from JSON lines or a Parquet file.
//!
//! It knows the names that the public benchmark gives its columns (`ground_truth_category` and so on) and those of a demo
//! folder; it knows no job and no answer. Invariant: no two labels have the same id, and a field that a line leaves out is
//! not there, which is not the same as null.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::job::Problem;
use crate::query::read_parquet;

/// The prefix of the benchmark's columns.
const TRUTH: &str = "ground_truth_";
/// Where the id stands, in this order.
const IDS: [&str; 2] = ["asset_id", "id"];
/// Told before giving up; more would only fill the screen.
const MOST_PROBLEMS: usize = 10;

/// What is true of one asset.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Label {
    pub id: String,
    /// `product` or `ad`; labels that do not say fit every job.
    pub kind: Option<String>,
    /// Texts, numbers, true, false and null, by name without the benchmark's prefix.
    pub fields: BTreeMap<String, Value>,
}

impl Label {
    /// Whether the thing is second-hand: said so, or by its condition.
    pub(super) fn is_secondhand(&self) -> Option<bool> {
        let told = self.fields.get("is_secondhand").and_then(Value::as_bool);
        told.or_else(|| self.fields.get("condition").and_then(Value::as_str).map(is_secondhand))
    }
}

/// Whether a condition is that of a second-hand thing.
pub(super) fn is_secondhand(condition: &str) -> bool {
    matches!(plain(condition).as_str(), "second_hand" | "secondhand")
}

/// How texts of fields are compared: without space around them, in lower case, with one kind of joint.
pub(super) fn plain(text: &str) -> String {
    super::metrics::stripped(text).to_lowercase().replace(['-', ' '], "_")
}

/// Reads labels. `id` names the field with the asset's id; without it that is `asset_id` or `id`, and in a Parquet file
/// that has neither the number of the row, from 0, as the benchmark numbers its samples.
///
/// # Errors
/// Every line that is no label, with file and line, up to a few.
pub(super) fn read(file: &Path, id: Option<&str>) -> Result<Vec<Label>, Vec<Problem>> {
    let is_parquet = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
    let numbered = if is_parquet { rows(file, id)? } else { lines(file)? };
    let mut problems = Vec::new();
    let (mut labels, mut seen) = (Vec::new(), HashSet::new());
    for (place, found) in numbered {
        let label = found.and_then(|fields| label(fields, id));
        let fresh = label.and_then(|label| match seen.insert(label.id.clone()) {
            true => Ok(label),
            false => Err((id.unwrap_or("id").to_owned(), format!("is {:?}, which has a label already", label.id))),
        });
        match fresh {
            Ok(label) => labels.push(label),
            Err((key, message)) => problems.push(place.problem(file, key, message)),
        }
        if problems.len() == MOST_PROBLEMS {
            break;
        }
    }
    match (problems.is_empty(), labels.is_empty()) {
        (true, false) => Ok(labels),
        (true, true) => Err(vec![Problem::of_file(file, "holds no label; write one JSON object a line")]),
        (false, _) => Err(problems),
    }
}

/// The key and what is wrong with it.
type Complaint = (String, String);

/// Where a label stands.
enum Place {
    Line(usize),
    Row(usize),
}

impl Place {
    fn problem(&self, file: &Path, key: String, message: String) -> Problem {
        let (line, message) = match self {
            Self::Line(line) => (Some(*line), message),
            Self::Row(row) => (None, format!("{message} (row {row}, counted from 0)")),
        };
        Problem { line, key, ..Problem::of_file(file, message) }
    }
}

type Numbered = Vec<(Place, Result<Map<String, Value>, Complaint>)>;

fn lines(file: &Path) -> Result<Numbered, Vec<Problem>> {
    let unreadable = |error: std::io::Error| vec![Problem::of_file(file, format!("cannot be read: {error}"))];
    let reader = BufReader::new(File::open(file).map_err(unreadable)?);
    let mut found = Vec::new();
    for (index, line) in reader.lines().enumerate() {
        let line = line.map_err(|error| {
            let problem = Problem::of_file(file, format!("cannot be read: {error}"));
            vec![Problem { line: Some(index + 1), ..problem }]
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed = match serde_json::from_str(&line) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err((String::new(), "is not a JSON object".to_owned())),
            Err(error) => Err((String::new(), format!("is not JSON: {error}"))),
        };
        found.push((Place::Line(index + 1), parsed));
    }
    Ok(found)
}

fn rows(file: &Path, id: Option<&str>) -> Result<Numbered, Vec<Problem>> {
    // Texts and pictures of the benchmark stay unread.
    let wanted = |name: &str| Some(name) == id || !name.starts_with("product_");
    let rows = read_parquet(file, &wanted)
        .map_err(|error| vec![Problem::of_file(file, format!("cannot be read as Parquet: {error}"))])?;
    let has_id = rows.first().is_some_and(|row| IDS.iter().any(|name| row.contains_key(*name)));
    let numbered = rows.into_iter().enumerate().map(|(number, mut row)| {
        if id.is_none() && !has_id {
            row.insert(IDS[0].to_owned(), number.to_string().into());
        }
        (Place::Row(number), Ok(row))
    });
    Ok(numbered.collect())
}

fn label(mut fields: Map<String, Value>, id: Option<&str>) -> Result<Label, Complaint> {
    let names = id.map_or_else(|| IDS.to_vec(), |id| vec![id]);
    let found = names.iter().find_map(|name| fields.remove(*name));
    let id = match found {
        Some(Value::String(text)) if !text.is_empty() => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => return Err((names[0].to_owned(), format!("is {other}; it must be a text or a number"))),
        None => {
            let help = "is missing; a label needs the id of its asset (--id names the field that has it)";
            return Err((names.join(" or "), help.to_owned()));
        }
    };
    let kind = fields.remove("kind").and_then(|kind| kind.as_str().map(str::to_owned));
    let mut plain: BTreeMap<String, Value> = BTreeMap::new();
    let mut of_benchmark: BTreeMap<String, Value> = BTreeMap::new();
    for (name, value) in fields {
        if value.is_object() || value.is_array() {
            continue;
        }
        match name.strip_prefix(TRUTH) {
            Some(name) => of_benchmark.insert(name.to_owned(), value),
            None => plain.insert(name, value),
        };
    }
    plain.extend(of_benchmark);
    let label = Label { id, kind, fields: plain };
    label.check().map_or(Ok(label.clone()), Err)
}

impl Label {
    /// What the benchmark's fields must be, where they are there.
    fn check(&self) -> Option<Complaint> {
        let field = |name: &str| self.fields.get(name);
        let complain = |name: &str, value: &Value, rule: &str| Some((name.to_owned(), format!("is {value}; {rule}")));
        match (field("category"), field("brand"), field("is_secondhand")) {
            (Some(value), _, _) if value.as_str().is_none_or(|path| path.trim().is_empty()) => {
                complain("category", value, "it must be a path, such as \"Home & Garden > Kitchen > Mugs\"")
            }
            (_, Some(value), _) if !value.is_string() && !value.is_null() => {
                complain("brand", value, "it must be a text, or null where there is no brand")
            }
            (_, _, Some(value)) if !value.is_boolean() => complain("is_secondhand", value, "it must be true or false"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, id: Option<&str>) -> Result<Vec<Label>, Vec<Problem>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("labels.jsonl");
        std::fs::write(&file, text).unwrap();
        read(&file, id)
    }

    fn complaints(text: &str) -> Vec<String> {
        let told = |problem: &Problem| problem.to_string().split("labels.jsonl").nth(1).unwrap().to_owned();
        read_text(text, None).unwrap_err().iter().map(told).collect()
    }

    #[test]
    fn names_of_the_benchmark_and_of_a_demo_folder_mean_the_same() {
        let text = "{\"id\":\"a\",\"kind\":\"product\",\"category\":\"A > B\",\"brand\":null,\"condition\":\"second-hand\"}\n\n\
                    {\"asset_id\":7,\"ground_truth_category\":\"A\",\"category\":\"B\",\"ground_truth_is_secondhand\":false,\"list\":[1]}\n";
        let labels = read_text(text, None).unwrap();
        assert_eq!((labels[0].id.as_str(), labels[0].kind.as_deref()), ("a", Some("product")));
        assert_eq!((labels[0].is_secondhand(), labels[0].fields.get("brand")), (Some(true), Some(&Value::Null)));
        assert_eq!((labels[1].id.as_str(), &labels[1].fields["category"]), ("7", &"A".into()));
        assert_eq!(labels[1].is_secondhand(), Some(false));
        assert!(!labels[1].fields.contains_key("brand") && !labels[1].fields.contains_key("list"));
        assert_eq!(read_text("{\"sku\":\"x\",\"id\":\"y\"}", Some("sku")).unwrap()[0].id, "x");
    }

    #[test]
    fn labels_of_a_generated_catalogue_are_read_as_they_are() {
        use crate::demo::{Market, Seed, Test};
        let market = Market::<Test>::generate(Seed::new(1).unwrap(), 40);
        let text: String = market.truths().map(|truth| format!("{}\n", serde_json::json!(truth))).collect();
        let labels = read_text(&text, None).unwrap();
        assert_eq!(labels.len(), 40);
        for (label, truth) in labels.iter().zip(market.truths()) {
            assert_eq!((&label.id, label.kind.as_deref()), (&truth.id, Some(truth.kind.as_str())));
            assert_eq!(label.is_secondhand(), Some(truth.condition == "second_hand"));
            assert_eq!(label.fields["category"], truth.category.as_str());
            assert_eq!(label.fields["brand"].as_str(), Some(truth.brand.as_deref().unwrap_or_default()));
        }
    }

    #[test]
    fn a_line_that_is_no_label_is_named_and_the_others_are_looked_at_too() {
        let text = "{\"id\":\"a\"}\n[1]\n{\n{\"name\":1}\n{\"id\":\"a\"}\n{\"id\":\"b\",\"category\":\"\"}\n\
                    {\"id\":\"c\",\"brand\":3}\n{\"id\":\"d\",\"ground_truth_is_secondhand\":\"no\"}\n{\"id\":[]}\n";
        let told = complaints(text);
        let expected = [
            ":2: is not a JSON object",
            ":3: is not JSON",
            ":4: asset_id or id: is missing",
            ":5: id: is \"a\", which has a label already",
            ":6: category: is \"\"",
            ":7: brand: is 3",
            ":8: is_secondhand: is \"no\"",
            ":9: asset_id: is []",
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told} {expected}");
        }
        assert!(complaints("\n")[0].contains("holds no label"));
        assert!(read(Path::new("/nowhere/labels.jsonl"), None).unwrap_err()[0].to_string().contains("cannot be read"));
    }

    #[test]
    fn endless_mistakes_are_not_all_told() {
        assert_eq!(complaints(&"{}\n".repeat(500)).len(), MOST_PROBLEMS);
    }
}
