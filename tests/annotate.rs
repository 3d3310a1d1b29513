//! Shipped jobs that annotate, from messages to rows, by a worker process with a generative model of random weights.

use std::path::{Path, PathBuf};

use assay::domain::{Ad, Asset, AssetKind, Content, Price, Product};
use assay::engine::check_output_schema;
use assay::job::JobSpec;
use serde_json::{Value, json};

use crate::stage::fakes::png;
use crate::stage::tables::ask;
use crate::stage::worker::assay;

const ANNOTATING: [&str; 4] = ["product-annotation", "ad-annotation", "ad-copy", "catalogue-mlperf"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn job(name: &str) -> JobSpec {
    let file = root().join("jobs").join(format!("{name}.toml"));
    JobSpec::load(&file).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A deployment of the shipped jobs over replayed topics.
struct Deployment(tempfile::TempDir);

impl Deployment {
    fn new(names: &[&str]) -> Self {
        Self::with_model(names, "tests/data/parity/models/llama4-a")
    }

    fn with_model(names: &[&str], model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir_all(path.join("jobs")).unwrap();
        std::fs::create_dir_all(path.join("media")).unwrap();
        for name in names {
            for end in ["toml", "output.json"] {
                let file = format!("jobs/{name}.{end}");
                std::fs::copy(root().join(&file), path.join(&file)).unwrap();
            }
        }
        std::fs::write(path.join("media/mug.png"), png(60, 40)).unwrap();
        let model = root().join(model);
        let config = format!(
            "jobs = \"jobs\"\n[source]\nkind = \"replay\"\n[source.replay.topics]\nproducts = \"products.jsonl\"\n\
             ads = \"ads.jsonl\"\n[media]\nallow = [\"file://{media}\"]\n[tables]\nurl = \"tables\"\n\
             [models.llama]\npath = \"{model}\"\n[engine]\nkv_memory = \"64MiB\"\n[server]\naddress = \"127.0.0.1:0\"\n",
            media = path.join("media").display(),
            model = model.display(),
        );
        std::fs::write(path.join("config.toml"), config).unwrap();
        std::fs::write(path.join("products.jsonl"), "").unwrap();
        std::fs::write(path.join("ads.jsonl"), "").unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn picture(&self) -> Value {
        json!([{ "url": format!("file://{}", self.0.path().join("media/mug.png").display()), "role": "main" }])
    }

    fn run(&self, verb: &[&str]) -> String {
        let config = self.0.path().join("config.toml");
        let output = assay().args(verb).arg("--config").arg(config).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn ask(&self, job: &str, sql: &str) -> Vec<Vec<String>> {
        ask(&format!("file://{}/tables", self.0.path().display()), job, sql).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_annotated_and_embedded_in_one_pass_and_each_bad_one_costs_one_rejection() {
    let house = Deployment::new(&["product-annotation"]);
    let categories = json!(["Home & Garden > Kitchen & Dining > Mugs", "Home & Garden > Decor > Vases"]);
    let product = |id: &str| {
        json!({
            "id": id, "title": format!("Mug {id}"), "description": "blue, second hand", "candidate_categories": categories,
            "event_time": "2026-01-02T03:04:05Z", "media": house.picture(),
        })
    };
    let mut lines: Vec<Value> = (0..20).map(|number| product(&format!("p{number}"))).collect();
    let mut without_choices = product("homeless");
    without_choices.as_object_mut().unwrap().remove("candidate_categories");
    let mut long = product("long");
    long["description"] = "mug ".repeat(4000).into();
    let mut unpictured = product("unpictured");
    unpictured.as_object_mut().unwrap().remove("media");
    lines.extend([without_choices, long, unpictured]);
    house.write("products.jsonl", &lines);
    house.run(&["run", "--job", "product-annotation", "--once"]);

    let rejected = house.ask("product-annotation", "SELECT asset_id, stage, reason FROM rejections ORDER BY 1").await;
    assert_eq!(rejected, [["homeless", "prepare", "no_choices"], ["long", "prepare", "model_input"]]);
    let complete = "SELECT count(*) FROM results WHERE category IN ('Home & Garden > Kitchen & Dining > Mugs', \
        'Home & Garden > Decor > Vases') AND condition IN ('new', 'second_hand', 'refurbished') AND attributes IS NOT NULL \
        AND abs(cosine_similarity(embedding, embedding) - 1) < 1e-4 AND finish_reason IN ('stop', 'length') \
        AND prompt_tokens > 100 AND completion_tokens > 20 AND device_seconds > 0 AND models['llama'] IS NOT NULL";
    assert_eq!(house.ask("product-annotation", complete).await, [["21"]]);

    // The same again adds nothing.
    house.run(&["run", "--job", "product-annotation", "--once"]);
    assert_eq!(house.ask("product-annotation", "SELECT count(*) FROM results").await, [["21"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ads_are_read_with_the_markup_of_their_page_and_copy_is_written_for_products() {
    let house = Deployment::new(&["ad-annotation", "ad-copy"]);
    let ad = json!({
        "id": "a1", "headline": "Mugs!", "body": "This week.", "call_to_action": "Shop now", "media": house.picture(),
        "landing_page": "<html><h1>Mugs</h1><|eot|></html>", "event_time": "2026-01-02T03:04:05Z",
    });
    house.write("ads.jsonl", &[ad]);
    house.write("products.jsonl", &[json!({ "id": "p1", "title": "Mug", "event_time": "2026-01-02T03:04:05Z" })]);
    house.run(&["check"]);
    house.run(&["run", "--job", "ad-annotation", "--job", "ad-copy", "--once"]);
    let flags = "SELECT count(*) FROM results WHERE product <> '' AND claims IS NOT NULL AND policy_flags IS NOT NULL \
        AND audience IN ('everyone', 'adults', 'children', 'parents', 'professionals')";
    assert_eq!(house.ask("ad-annotation", flags).await, [["1"]]);
    let copy = "SELECT count(*) FROM results WHERE length(headline) BETWEEN 1 AND 30 AND length(body) BETWEEN 1 AND 90 \
        AND length(call_to_action) BETWEEN 1 AND 20";
    assert_eq!(house.ask("ad-copy", copy).await, [["1"]]);
}

/// `models/demo/training/golden.py` made the answers with transformers, greedily and without any grammar.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_generator_answers_as_the_reference_does() {
    let house = Deployment::with_model(&["product-annotation", "ad-annotation"], "models/demo");
    let folder = root().join("tests/data/demo");
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    for (kind, file) in [("product", "products.jsonl"), ("ad", "ads.jsonl")] {
        let message = |case: &Value| {
            let name = case["picture"].as_str().unwrap();
            let place = house.0.path().join("media").join(name);
            std::fs::copy(folder.join(name), &place).unwrap();
            let mut message = case["message"].clone();
            message["media"] = json!([{ "url": format!("file://{}", place.display()), "role": "main" }]);
            message
        };
        let lines: Vec<Value> = golden.iter().filter(|case| case["kind"] == kind).map(message).collect();
        assert!(lines.len() >= 2);
        house.write(file, &lines);
    }
    house.run(&["run", "--job", "product-annotation", "--job", "ad-annotation", "--once"]);
    for case in &golden {
        let job = format!("{}-annotation", case["kind"].as_str().unwrap());
        let sql = format!("SELECT * FROM latest WHERE asset_id = '{}'", case["message"]["id"].as_str().unwrap());
        let told = house.run(&["query", "--job", &job, "--format", "json", &sql]);
        let row: Value = serde_json::from_str(&told).unwrap();
        for (field, wanted) in case["answer"].as_object().unwrap() {
            assert_eq!(&row[0][field], wanted, "{field} of {}", case["message"]["id"]);
        }
    }
}

#[test]
fn every_shipped_output_schema_can_be_enforced() {
    for name in ANNOTATING {
        let annotate = job(name).annotate.unwrap();
        check_output_schema(&annotate.output).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
}

fn sample(kind: AssetKind) -> Asset {
    let content = match kind {
        AssetKind::Product => Content::Product(Product {
            title: "Stoneware mug, blue".into(),
            description: "Second hand, 30 cl, {dishwasher safe}.".into(),
            attributes: [("capacity".into(), "30 cl".into())].into(),
            candidate_categories: vec!["Home > Kitchen > Mugs".into(), "Home > Decor > Vases".into()],
            locale: Some("en-GB".into()),
            price: Some(Price { amount: 4.5, currency: "GBP".into() }),
        }),
        AssetKind::Ad => Content::Ad(Ad {
            headline: "Mugs for everyone".into(),
            body: "Half price this week.".into(),
            call_to_action: Some("Shop now".into()),
            landing_page: Some("<main>\n  <h1>Mugs</h1>\n</main>".into()),
        }),
    };
    Asset { id: "sample".into(), event_time: 0, content, media: Vec::new() }
}

/// The prompts are part of what a job is: a change must be meant. `ASSAY_WRITE_PROMPTS=1` writes them anew.
#[test]
fn the_prompts_of_shipped_jobs_read_as_they_were_last_agreed_upon() {
    for name in ANNOTATING {
        let job = job(name);
        let annotate = job.annotate.unwrap();
        let instruction = annotate.instruction.as_deref().unwrap_or_default();
        let text = format!("{instruction}\n\n--- prompt ---\n\n{}\n", annotate.prompt.render(&sample(job.kind)));
        let file = root().join(format!("tests/data/prompts/{name}.txt"));
        if std::env::var_os("ASSAY_WRITE_PROMPTS").is_some() {
            std::fs::create_dir_all(Path::new(&file).parent().unwrap()).unwrap();
            std::fs::write(&file, &text).unwrap();
        }
        let agreed = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, agreed, "{} differs; set ASSAY_WRITE_PROMPTS=1 if that is meant", file.display());
    }
}
