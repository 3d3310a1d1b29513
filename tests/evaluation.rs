//! `assay eval` as scripts use it, over tables that the sink wrote; its figures against a second implementation of the
//! public benchmark's metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use assay::domain::{Row, TableSchema, TopicPartition, Value as Cell};
use assay::job::{JobSpec, rejections_schema, results_schema};
use assay::metrics::Metrics;
use assay::sink::{Batch, DeltaSink, Options, Range, RejectionMark, Sink};
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::stage::worker::assay;

/// The annotation of an asset; none for a rejection, null for a tombstone.
type Written = (String, Option<Value>);

/// A folder with jobs and tables, as a worker leaves it.
struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("jobs")).unwrap();
        std::fs::write(folder.path().join("config.toml"), "jobs = \"jobs\"\n[tables]\nurl = \"tables\"\n").unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies a shipped job under a name of its own.
    fn job(&self, shipped: &str, name: &str) -> JobSpec {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("jobs");
        let text = std::fs::read_to_string(root.join(format!("{shipped}.toml"))).unwrap();
        let text = text.replace(&format!("name = \"{shipped}\""), &format!("name = \"{name}\""));
        let _ = std::fs::copy(
            root.join(format!("{shipped}.output.json")),
            self.path("jobs").join(format!("{shipped}.output.json")),
        );
        let file = self.path("jobs").join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        JobSpec::load(&file).unwrap()
    }

    /// Writes one row for each asset, in one commit.
    async fn write(&self, job: &JobSpec, written: &[Written]) {
        let options = Options { url: format!("file://{}", self.path("tables").display()), ..Options::default() };
        let results = results_schema(job, |_| Some(2)).unwrap();
        let sink = DeltaSink::new(&job.name, &options, results.clone(), rejections_schema(), Arc::new(Metrics::new()))
            .unwrap();
        sink.open().await.unwrap();
        let partition = TopicPartition::new("products", 0);
        sink.resume(std::slice::from_ref(&partition)).await.unwrap();
        let mut batch = Batch::default();
        for (offset, (id, annotation)) in written.iter().enumerate() {
            let offset = offset as i64;
            match annotation {
                Some(annotation) => batch.results.push(row(&results, job, id, offset, annotation)),
                None => {
                    let row = row(&rejections_schema(), job, id, offset, &Value::Null);
                    batch.rejections.push((partition.clone(), offset, row));
                }
            }
        }
        let resumed = sink.resume(std::slice::from_ref(&partition)).await.unwrap();
        let rejections: RejectionMark = resumed[0].rejections;
        batch.ranges = vec![Range { partition, from: None, to: written.len() as i64 - 1, rejections }];
        assert!(sink.commit(&batch).await.unwrap().fenced.is_empty());
    }

    fn labels(&self, labels: &[Value]) -> String {
        let text: String = labels.iter().map(|label| format!("{label}\n")).collect();
        std::fs::write(self.path("labels.jsonl"), text).unwrap();
        self.path("labels.jsonl").display().to_string()
    }

    fn eval(&self, arguments: &[&str]) -> Output {
        assay().arg("eval").args(arguments).arg("--config").arg(self.path("config.toml")).output().unwrap()
    }

    fn told(&self, arguments: &[&str]) -> String {
        let output = self.eval(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn report(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[arguments, &["--format", "json"]].concat())).unwrap()
    }
}

/// A cell for each column: the annotation's, else what every row has.
fn row(schema: &TableSchema, job: &JobSpec, id: &str, offset: i64, annotation: &Value) -> Row {
    let cell = |name: &str| match name {
        "asset_id" => Cell::Text(id.to_owned()),
        "kind" => Cell::Text("product".to_owned()),
        "topic" => Cell::Text("products".to_owned()),
        "partition" => Cell::Integer(0),
        "offset" => Cell::Integer(offset),
        "message_time" => Cell::Integer(1_000_000),
        "processed_time" => Cell::Integer(1_000_000 + (offset + 1) * 500_000),
        "job" => Cell::Text(job.name.clone()),
        "job_fingerprint" => Cell::Text(job.fingerprint()),
        "deleted" => Cell::Boolean(annotation.is_null()),
        "stage" => Cell::Text("infer".to_owned()),
        "reason" => Cell::Text("model_output".to_owned()),
        "detail" | "blame" => Cell::Text("asset".to_owned()),
        "attempts" => Cell::Integer(1),
        "prompt_tokens" => Cell::Integer(100 + offset),
        "completion_tokens" => Cell::Integer(10),
        "device_seconds" => Cell::Float(0.25),
        "finish_reason" => Cell::Text("stop".to_owned()),
        name => match &annotation[name] {
            Value::String(text) => Cell::Text(text.clone()),
            Value::Bool(flag) => Cell::Boolean(*flag),
            Value::Array(_) => Cell::List(Vec::new()),
            _ => Cell::Null,
        },
    };
    schema.columns.iter().map(|column| cell(&column.name)).collect()
}

/// The metrics of the public benchmark a second time, by other algorithms: sets of prefixes, an edit table in which a
/// replacement costs two, and a confusion matrix.
mod second {
    use super::*;

    /// Every beginning of a path.
    fn beginnings(path: &str) -> BTreeSet<Vec<String>> {
        let levels: Vec<String> = path.split(" > ").map(|level| level.trim().to_owned()).collect();
        (1..=levels.len()).map(|length| levels[..length].to_vec()).collect()
    }

    pub fn hierarchical_f1(pairs: &[(Option<String>, String)]) -> f64 {
        let (mut common, mut predicted, mut truth) = (0.0, 0.0, 0.0);
        for (answer, label) in pairs {
            let label = beginnings(label);
            let padding = vec!["<|pad|>"; label.len()].join(" > ");
            let answer = beginnings(answer.as_deref().unwrap_or(&padding));
            common += answer.intersection(&label).count() as f64;
            predicted += answer.len() as f64;
            truth += label.len() as f64;
        }
        if common == 0.0 { 0.0 } else { 2.0 / (predicted / common + truth / common) }
    }

    /// 0 to 100.
    fn similarity(one: &str, other: &str) -> f64 {
        let [one, other]: [Vec<char>; 2] = [one, other].map(|text| text.trim().to_lowercase().chars().collect());
        if one.is_empty() && other.is_empty() {
            return 100.0;
        }
        let mut table = vec![vec![0_usize; other.len() + 1]; one.len() + 1];
        for left in 0..=one.len() {
            for right in 0..=other.len() {
                table[left][right] = if left == 0 || right == 0 {
                    left + right
                } else {
                    let replaced = table[left - 1][right - 1] + if one[left - 1] == other[right - 1] { 0 } else { 2 };
                    replaced.min(table[left - 1][right] + 1).min(table[left][right - 1] + 1)
                };
            }
        }
        (1.0 - table[one.len()][other.len()] as f64 / (one.len() + other.len()) as f64) * 100.0
    }

    pub fn brand_matches(pairs: &[(Option<String>, String)]) -> f64 {
        let matches = |(answer, label): &&(Option<String>, String)| {
            similarity(answer.as_deref().unwrap_or("<|padding|>"), label) > 90.0
        };
        pairs.iter().filter(matches).count() as f64 / pairs.len() as f64
    }

    pub fn secondhand_f1(pairs: &[(Option<bool>, bool)]) -> f64 {
        let cells = pairs.iter().map(|(answer, label)| (answer.unwrap_or(!label), *label));
        let mut matrix: BTreeMap<(bool, bool), f64> = BTreeMap::new();
        cells.for_each(|cell| *matrix.entry(cell).or_default() += 1.0);
        let at = |cell| matrix.get(&cell).copied().unwrap_or(0.0);
        let hits = at((true, true));
        if hits == 0.0 { 0.0 } else { 2.0 * hits / (2.0 * hits + at((true, false)) + at((false, true))) }
    }
}

const LEVELS: [&str; 4] = ["Mugs", "Vases", "Home & Garden", "Decor"];
const BRANDS: [&str; 6] = ["Aldermoor", "Kestrel & Co", "Fjellborg", "Ünïque ß", "", "abcdefghij"];

fn path(random: &mut ChaCha8Rng) -> String {
    let length = random.random_range(1..=5);
    (0..length).map(|_| *LEVELS.choose(random).unwrap()).collect::<Vec<_>>().join(" > ")
}

/// The true path with an edit, or any.
fn near_path(truth: &str, random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..5) {
        0 | 1 => truth.to_owned(),
        2 => truth.rsplit_once(" > ").map_or(truth, |(parent, _)| parent).to_owned(),
        3 => format!(" {truth}  >  {} ", LEVELS.choose(random).unwrap()),
        _ => path(random),
    }
}

/// The true brand with some edits, or any.
fn near_brand(truth: &str, random: &mut ChaCha8Rng) -> String {
    let mut letters: Vec<char> = truth.chars().collect();
    for _ in 0..random.random_range(0..3) {
        let at = random.random_range(0..=letters.len());
        match random.random_range(0..3) {
            0 => letters.insert(at, 'x'),
            1 if at < letters.len() => drop(letters.remove(at)),
            _ if at < letters.len() => letters[at] = letters[at].to_uppercase().next().unwrap(),
            _ => letters.push(' '),
        }
    }
    if random.random_bool(0.1) { (*BRANDS.choose(random).unwrap()).to_owned() } else { letters.into_iter().collect() }
}

/// Labels, what the tables get for them, and what each of them would answer.
struct Drawn {
    labels: Vec<Value>,
    written: Vec<Written>,
    /// None for a missing answer; removed assets are left out.
    answers: Vec<(Option<Value>, Value)>,
}

fn drawn(count: usize, random: &mut ChaCha8Rng) -> Drawn {
    let mut drawn = Drawn { labels: Vec::new(), written: Vec::new(), answers: Vec::new() };
    for number in 0..count {
        let (category, brand, used) = (path(random), *BRANDS.choose(random).unwrap(), random.random_bool(0.4));
        let label = json!({
            "ground_truth_category": category, "ground_truth_brand": brand, "ground_truth_is_secondhand": used,
        });
        let told = if random.random_bool(0.85) { used } else { !used };
        let answer = json!({
            "category": near_path(&category, random), "brand": near_brand(brand, random), "is_secondhand": told,
        });
        let id = number.to_string();
        let fate = random.random_range(0..20);
        match fate {
            0 => drawn.written.push((id, None)),
            // A brand of null does not satisfy the output schema of this job.
            1 => drawn.written.push((id, Some(json!({"category": "Mugs", "is_secondhand": used})))),
            2 => drawn.written.push((id, Some(Value::Null))),
            3 => {}
            _ => drawn.written.push((id, Some(answer.clone()))),
        }
        match fate {
            2 => {}
            0 | 1 | 3 => drawn.answers.push((None, label.clone())),
            _ => drawn.answers.push((Some(answer), label.clone())),
        }
        drawn.labels.push(label);
    }
    drawn
}

fn expected(answers: &[(Option<Value>, Value)]) -> [f64; 3] {
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let texts = |name: &str| -> Vec<(Option<String>, String)> {
        let pair = |(answer, label): &(Option<Value>, Value)| {
            (answer.as_ref().map(|answer| text(answer, name)), text(label, &format!("ground_truth_{name}")))
        };
        answers.iter().map(pair).collect()
    };
    let flags: Vec<_> = answers
        .iter()
        .map(|(answer, label)| {
            let told = answer.as_ref().map(|answer| answer["is_secondhand"].as_bool().unwrap());
            (told, label["ground_truth_is_secondhand"].as_bool().unwrap())
        })
        .collect();
    [second::hierarchical_f1(&texts("category")), second::brand_matches(&texts("brand")), second::secondhand_f1(&flags)]
}

fn figures(report: &Value) -> [f64; 3] {
    let figure = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    [figure("/category/f1"), figure("/brand/share"), figure("/is_secondhand/f1")]
}

fn assert_close(found: [f64; 3], expected: [f64; 3]) {
    for (found, expected) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        assert!((0.05..0.95).contains(&expected), "{expected} would be met by chance");
    }
}

/// As the benchmark has its labels: no id, the number of the row is the sample.
fn parquet_labels(labels: &[Value], file: &PathBuf) {
    let texts = |name: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(labels.iter().map(|label| label[name].as_str().unwrap())))
    };
    let flags = labels.iter().map(|label| label["ground_truth_is_secondhand"].as_bool());
    let flags: ArrayRef = Arc::new(BooleanArray::from_iter(flags));
    let batch = RecordBatch::try_from_iter([
        ("product_title", texts("ground_truth_category")),
        ("ground_truth_category", texts("ground_truth_category")),
        ("ground_truth_brand", texts("ground_truth_brand")),
        ("ground_truth_is_secondhand", flags),
    ]);
    let batch = batch.unwrap();
    let mut writer = ArrowWriter::try_new(File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_equal_those_of_a_second_implementation_on_a_thousand_random_answers() {
    let mut random = ChaCha8Rng::seed_from_u64(1_000);
    let drawn = drawn(1_000, &mut random);
    let house = House::new();
    let job = house.job("catalogue-mlperf", "catalogue-mlperf");
    house.write(&job, &drawn.written).await;
    let with_ids = drawn.labels.iter().enumerate().map(|(number, label)| {
        let mut label = label.clone();
        label["sku"] = number.into();
        label
    });
    let labels = house.labels(&with_ids.collect::<Vec<_>>());
    let report = house.report(&["--job", "catalogue-mlperf", "--labels", &labels, "--id", "sku"]);
    assert_close(figures(&report), expected(&drawn.answers));

    let assets = &report["assets"];
    let count = |wanted: fn(&Option<Value>) -> bool| drawn.written.iter().filter(|row| wanted(&row.1)).count();
    let removed = count(|row| row.as_ref().is_some_and(Value::is_null));
    let rejected = count(Option::is_none);
    let invalid = count(|row| row.as_ref().is_some_and(|row| row.is_object() && row.get("brand").is_none()));
    let answered = drawn.written.len() - removed - rejected - invalid;
    assert_eq!((&assets["judged"], &assets["removed"]), (&(1_000 - removed).into(), &removed.into()), "{assets}");
    assert_eq!((&assets["answered"], &assets["invalid"]), (&answered.into(), &invalid.into()), "{assets}");
    assert_eq!((&assets["rejected"]["model_output"], &assets["unlabelled"]), (&rejected.into(), &0.into()));
    let validity = report["schema_validity"]["share"].as_f64().unwrap();
    assert!((validity - answered as f64 / (answered + invalid + rejected) as f64).abs() < 1e-12);

    let parquet = house.path("labels.parquet");
    parquet_labels(&drawn.labels, &parquet);
    let same = house.report(&["--job", "catalogue-mlperf", "--labels", parquet.to_str().unwrap()]);
    assert_eq!(same, report, "labels of a Parquet file give the same report");
}

fn annotated(category: &str, brand: Option<&str>, condition: &str, colour: &str) -> Value {
    json!({
        "category": category, "brand": brand, "condition": condition, "colour": colour, "pattern": "plain",
        "material": null, "attributes": [],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_says_which_fields_changed_and_which_assets_got_better_or_worse() {
    let house = House::new();
    let (old, new) = (house.job("product-annotation", "old-prompt"), house.job("product-annotation", "new-prompt"));
    let rows = |changed: [Value; 3]| {
        let ids = ["a", "b", "c"].map(str::to_owned);
        ids.into_iter().zip(changed.map(Some)).collect::<Vec<Written>>()
    };
    let before = rows([
        annotated("A > B", None, "new", "red"),
        annotated("A > C", Some("Acme"), "second_hand", "red"),
        annotated("A > B", Some("Acme"), "new", "blue"),
    ]);
    let after = rows([
        annotated("A > B", None, "second_hand", "red"),
        annotated("A > B", Some("Acme"), "second_hand", "blue"),
        annotated("A > B", Some("Acme"), "new", "blue"),
    ]);
    house.write(&old, &before).await;
    house.write(&new, &after).await;
    let label = |id: &str, colour: &str| {
        json!({"id": id, "kind": "product", "category": "A > B", "brand": if id == "a" { None } else { Some("acme") },
               "condition": "second-hand", "colour": colour, "size": "L"})
    };
    let other_kind = json!({"id": "ad", "kind": "ad", "category": "A"});
    let labels = house.labels(&[label("a", "red"), label("b", "red"), label("c", "green"), other_kind]);
    let flags = ["--job", "new-prompt", "--labels", &labels, "--against", "old-prompt"];
    let report = house.report(&flags);
    assert_eq!(report["assets"]["other_kind"], 1);
    assert_eq!((&report["category"]["f1"], &report["brand"]["share"]), (&json!(1.0), &json!(1.0)), "{report:#}");
    assert_eq!(report["statistics"]["latency_seconds"], json!({"count": 3, "mean": 1.0, "p50": 1.0, "p99": 1.5}));
    assert_eq!(report["statistics"]["prompt_tokens"]["p99"], 102.0);
    assert_eq!(report["finish_reasons"], json!({"stop": 3}));
    let against = &report["against"];
    let counts = |field: &str| {
        let change = &against["fields"][field];
        ["changed", "better", "worse"].map(|name| change[name].as_u64().unwrap())
    };
    assert_eq!(counts("category"), [1, 1, 0], "{against:#}");
    assert_eq!(counts("brand"), [0, 0, 0]);
    assert_eq!(counts("is_secondhand"), [1, 1, 0]);
    assert_eq!(counts("colour"), [1, 0, 1]);
    assert!(against["fields"].get("size").is_none(), "no column has the size");
    assert_eq!(against["assets"], json!({"compared": 3, "changed": 2, "better": 1, "worse": 1}));
    let example = &against["examples"][0];
    let expected = ("a".into(), "condition".into(), "new".into(), "second_hand".into());
    let found = ["id", "field", "baseline", "answer"].map(|name| example[name].clone());
    assert_eq!(found, <[Value; 4]>::from(expected), "{against:#}");

    let told = house.told(&flags);
    for words in [
        "category, hierarchical F1  1.0000",
        "against old-prompt in file://",
        "3 assets compared: 2 changed",
        "colour: \"red\" -> \"blue\"",
    ] {
        assert!(told.contains(words), "{words:?} is not in\n{told}");
    }
    // The same job with other tables is another run.
    let elsewhere = house.path("elsewhere.toml");
    std::fs::write(&elsewhere, "jobs = \"jobs\"\n[tables]\nurl = \"tables\"\n").unwrap();
    let itself =
        house.report(&["--job", "new-prompt", "--labels", &labels, "--against-config", elsewhere.to_str().unwrap()]);
    assert_eq!(itself["against"]["assets"], json!({"compared": 3, "changed": 0, "better": 0, "worse": 0}));
}

#[test]
fn wrong_labels_and_jobs_are_named_with_file_and_line() {
    let house = House::new();
    house.job("catalogue-mlperf", "catalogue-mlperf");
    house.job("product-embedding", "product-embedding");
    let refused = |arguments: &[&str], code: i32| {
        let output = house.eval(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(output.stdout.is_empty());
        told
    };
    let wrong = house.labels(&[json!({"id": "a"}), json!({"id": "b", "ground_truth_is_secondhand": "no"})]);
    let told = refused(&["--job", "catalogue-mlperf", "--labels", &wrong], 2);
    assert!(told.contains("labels.jsonl:2: is_secondhand: is \"no\"; it must be true or false"), "{told}");
    let labels = house.labels(&[json!({"id": "a", "category": "A"})]);
    assert!(refused(&["--job", "catalogue", "--labels", &labels], 2).contains("catalogue-mlperf"));
    assert!(refused(&["--job", "product-embedding", "--labels", &labels], 1).contains("no [annotate] section"));
    let told = refused(&["--job", "catalogue-mlperf", "--labels", &labels], 1);
    assert!(told.contains("has not written anything"), "{told}");
    let itself = ["--job", "catalogue-mlperf", "--labels", &labels, "--against", "catalogue-mlperf"];
    assert!(refused(&itself, 1).contains("names the job itself"));
}
