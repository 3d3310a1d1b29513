//! The binary as scripts use it: verbs, formats, exit codes, and what it says when something is wrong.

use std::io::Write;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::stage::worker::{JOB_FILE, assay};

fn run(arguments: &[&str]) -> Output {
    assay().args(arguments).output().expect("the binary starts")
}

fn succeeded(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

fn failed(output: Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "results only on standard output");
    stderr
}

fn write(path: &Path, text: &str) -> String {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_demo_leaves_a_folder_that_every_other_verb_can_use() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let dir = dir.to_str().unwrap();
    let told = succeeded(run(&["demo", "--dir", dir, "--assets", "40", "--seed", "5"]));
    assert!(told.contains("rejected: schema_violation") && told.contains("similarity"), "{told}");
    let config = format!("{dir}/config.toml");

    let told = succeeded(run(&["check", "--config", &config]));
    assert!(told.contains("ad-annotation, product-annotation"), "{told}");

    let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM product_annotation.results UNION ALL SELECT 1 FROM ad_annotation.results \
               UNION ALL SELECT 1 FROM product_annotation.rejections UNION ALL SELECT 1 FROM ad_annotation.rejections)";
    let query = |arguments: &[&str]| succeeded(run(&[&["query", "--config", &config], arguments].concat()));
    let counted: Value = serde_json::from_str(&query(&["--format", "json", sql])).unwrap();
    assert_eq!(counted[0]["n"], 47, "40 assets, 4 faults, 2 updates, 1 tombstone");
    assert_eq!(query(&["--format", "csv", sql]), "n\n47\n");
    assert!(query(&[sql]).contains("| 47 |"));
    let bare = query(&["--job", "product-annotation", "--format", "csv", "SELECT count(*) AS n FROM rejections"]);
    assert_eq!(bare, "n\n4\n");
    let parquet = format!("{dir}/out.parquet");
    assert_eq!(
        query(&["--format", "parquet", "--output", &parquet, "SELECT category, brand FROM product_annotation.latest"]),
        ""
    );
    assert_eq!(&std::fs::read(&parquet).unwrap()[..4], b"PAR1");

    // The page shows each asset with its answer, and holds all that it shows.
    let page = std::fs::read_to_string(format!("{dir}/gallery.html")).unwrap();
    assert!(page.contains("fault-bomb") && page.contains("data:image/jpeg;base64,") && page.contains("second_hand"));

    // The truth of each asset lies beside it, and most of what the model says is true.
    let labels = format!("{dir}/labels.jsonl");
    let told = succeeded(run(&[
        "eval",
        "--job",
        "product-annotation",
        "--labels",
        &labels,
        "--format",
        "json",
        "--config",
        &config,
    ]));
    let judged: Value = serde_json::from_str(&told).unwrap();
    for (figure, least) in [
        ("/category/f1", 0.8),
        ("/brand/share", 0.7),
        ("/is_secondhand/f1", 0.9),
        ("/fields/colour/share", 0.85),
        ("/schema_validity/share", 0.99),
    ] {
        let reached = judged.pointer(figure).and_then(Value::as_f64).unwrap();
        assert!(reached >= least, "{figure} is {reached}: {judged}");
    }

    // The same records again, replayed: every offset is known. A new line is not.
    let worker = |job: &str| succeeded(run(&["run", "--job", job, "--once", "--config", &config]));
    worker("product-annotation");
    assert_eq!(query(&["--format", "csv", sql]), "n\n47\n");
    let mut topic = std::fs::OpenOptions::new().append(true).open(format!("{dir}/topics/products/0.jsonl")).unwrap();
    writeln!(
        topic,
        r#"{{"id":"new","title":"A blue mug","candidate_categories":["Home & Garden > Kitchen > Mugs"],"event_time":"2026-05-01T00:00:00Z"}}"#
    )
    .unwrap();
    worker("product-annotation");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n");

    let told = succeeded(run(&["upkeep", "--config", &config]));
    assert!(told.contains("product-annotation/results: ") && told.contains("checkpoint at version"), "{told}");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n");
    worker("product-annotation");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n", "offsets survive a checkpoint");

    let refused = failed(run(&["demo", "--dir", dir]), 1);
    assert!(refused.contains("is not empty"), "{refused}");
}

#[test]
fn the_cold_start_study_tells_how_well_each_system_finds_what_nobody_has_clicked_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("study");
    let flags = ["demo", "--cold-start", "--assets", "64", "--seed", "2", "--dir", dir.to_str().unwrap()];
    let told = succeeded(run(&flags));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("cold-start.json")).unwrap()).unwrap();
    assert_eq!(report["products"]["warm"].as_u64().unwrap() + report["products"]["cold"].as_u64().unwrap(), 64);

    let systems = report["systems"].as_array().unwrap();
    let figure = |name: &str, path: &str| {
        let found = systems.iter().find(|system| system["system"].as_str().unwrap().starts_with(name));
        found.and_then(|system| system.pointer(path)).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name} {path}"))
    };
    for name in ["unified", "separate", "CLIP", "popularity", "chance"] {
        assert!(told.contains(&format!("| {name}")), "{name}: {told}");
        for candidates in ["among_all_cold", "among_shown"] {
            for metric in ["recall@10", "ndcg@10"] {
                let mean = figure(name, &format!("/{candidates}/{metric}/mean"));
                assert!((0.0..=1.0).contains(&mean), "{name}, {candidates}, {metric}: {mean}");
                assert!(told.contains(&format!("{mean:.3} ± ")), "{name}, {candidates}, {metric}: {mean}");
            }
        }
    }
    // So few users say little about embeddings; whoever knows the tastes is above chance all the same.
    let path = "/among_shown/ndcg@10/mean";
    assert!(figure("oracle", path) > figure("chance", path), "{told}");

    // It leaves an ordinary deployment with both jobs.
    let config = dir.join("config.toml");
    let told = succeeded(run(&["check", "--config", config.to_str().unwrap()]));
    assert!(told.contains("cold-start-encoders, product-annotation"), "{told}");
    assert!(dir.join("interactions/held_out.jsonl").exists());

    for wrong in [&["--catalogue", "5"][..], &["--split", "test"], &["--masks"]] {
        let refused = failed(run(&[&flags[..], wrong].concat()), 2);
        assert!(refused.contains("--cold-start") && refused.contains(wrong[0]), "{refused}");
    }
}

#[test]
fn a_catalogue_can_be_had_by_itself_and_its_folder_must_be_empty() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("catalogue");
    let flags = ["demo", "--catalogue", "12", "--seed", "3", "--split", "test", "--dir", dir.to_str().unwrap()];
    let told = succeeded(run(&flags));
    assert!(told.starts_with("12 assets of the test split with 1"), "{told}");
    let labels = std::fs::read_to_string(dir.join("labels.jsonl")).unwrap();
    assert_eq!(labels.lines().count(), 12);
    let label: Value = serde_json::from_str(labels.lines().next().unwrap()).unwrap();
    assert!(
        label["id"].as_str().unwrap().starts_with("test-") && label["ground_truth_category"].is_string(),
        "{label}"
    );
    for name in ["topics/products/0.jsonl", "topics/ads/0.jsonl", "media", "interactions/held_out.jsonl"] {
        assert!(dir.join(name).exists(), "{name}");
    }
    assert!(!dir.join("config.toml").exists() && !dir.join("masks").exists());
    assert!(failed(run(&flags), 1).contains("is not empty"));
    failed(run(&["demo", "--split", "test"]), 2);
    let large = [
        "demo",
        "--catalogue",
        "1",
        "--seed",
        "4611686018427387904",
        "--dir",
        folder.path().join("x").to_str().unwrap(),
    ]
    .map(str::to_owned);
    assert!(failed(run(&large.each_ref().map(String::as_str)), 1).contains("below 2^62"));
}

#[test]
fn mistakes_in_configuration_and_jobs_are_named_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(&folder.path().join("config.toml"), "jobs = \"jobs\"\n[media]\nconcurency = 3\n");
    let job =
        write(&folder.path().join("jobs/embedding.toml"), &JOB_FILE.replace("kind = \"product\"", "kind = \"cat\""));
    let told = failed(run(&["check", "--config", &config]), 2);
    assert!(told.contains(&format!("{config}:3: media.concurency")), "{told}");
    assert!(told.contains(&format!("{job}:3: kind")), "{told}");
    let told = failed(run(&["run", "--job", "embedding", "--config", &config]), 2);
    assert!(told.contains("media.concurency"), "{told}");
}

#[test]
fn wrong_command_lines_end_with_code_two() {
    for arguments in
        [&["fly"][..], &["run"], &["run", "--job"], &["query", "--format", "xml", "SELECT 1"], &["submit", "a.csv"]]
    {
        failed(run(arguments), 2);
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
    let text = format!(
        "[source]\nkind = \"replay\"\n[source.replay.topics]\nproducts = \"products.jsonl\"\n[tables]\nurl = \"tables\"\n\
         [models.tiny]\npath = \"{model}\"\n[server]\naddress = \"127.0.0.1:0\"\n"
    );
    let config = write(&folder.path().join("config.toml"), &text);
    write(&folder.path().join("jobs/embedding.toml"), JOB_FILE);
    let told = failed(run(&["check", "--config", &config]), 2);
    assert!(told.contains("products.jsonl"), "{told}");
    write(&folder.path().join("products.jsonl"), "");
    succeeded(run(&["check", "--config", &config]));
    let told = failed(run(&["run", "--job", "embeding", "--config", &config]), 2);
    assert!(told.contains("embeding") && told.contains("embedding"), "{told}");
    let told = failed(run(&["query", "--config", &config, "SELECT * FROM results"]), 1);
    assert!(told.contains("has not written"), "{told}");
    let told = failed(run(&["check", "--config", "/no/such/config.toml"]), 2);
    assert!(told.contains("/no/such/config.toml"), "{told}");
    // An empty topic is nothing to do, not an error.
    succeeded(run(&["run", "--job", "embedding", "--once", "--config", &config]));
    let told = failed(run(&["submit", "--topic", "products", "x.csv", "--config", &config]), 1);
    assert!(told.contains("source.kind"), "{told}");
    let told = failed(run(&["query", "--config", &config, "DROP TABLE results"]), 1);
    assert!(told.contains("DROP is refused"), "{told}");
}

#[test]
fn submit_counts_what_was_delivered_and_names_what_was_left_out() {
    let broker = assay::source::EmbeddedBroker::start().unwrap();
    broker.create_topic("products", 3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[source.kafka]\nbootstrap_servers = \"{}\"\n", broker.bootstrap_servers());
    let config = write(&folder.path().join("config.toml"), &text);
    let lines =
        "{\"id\":\"a\",\"title\":\"t\",\"event_time\":\"2026-01-01T00:00:00Z\"}\n{\"key\":\"b\",\"value\":null}\n";
    let good = write(&folder.path().join("good.jsonl"), lines);
    let table = write(&folder.path().join("more.csv"), "id,title\nc,Cup\nd,Dish\n");
    write(&folder.path().join("pictures/e.png"), "x");
    let pictures = folder.path().join("pictures");
    let submit = |paths: &[&str]| run(&[&["submit", "--topic", "products", "--config", &config], paths].concat());
    let told = succeeded(submit(&[&good, &table, pictures.to_str().unwrap()]));
    assert_eq!(told, "5 product records delivered to topic products, 0 left out\n");

    let bad = write(
        &folder.path().join("bad.jsonl"),
        "{\"id\":\"a\"}\n{\n{\"id\":\"f\",\"title\":\"t\",\"event_time\":\"2026-01-01T00:00:00Z\"}\n",
    );
    let output = submit(&[&bad]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 product records delivered to topic products, 2 left out\n");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("bad.jsonl:1: ") && told.contains("bad.jsonl:2: is not JSON"), "{told}");
    let told = failed(submit(&["/no/such/file.csv"]), 1);
    assert!(told.contains("/no/such/file.csv"), "{told}");
}

#[test]
fn completions_and_help_are_printed() {
    assert!(succeeded(run(&["completions", "bash"])).contains("_assay"));
    for verb in
        ["demo", "check", "run", "submit", "query", "status", "health", "metrics", "upkeep", "bench", "completions"]
    {
        assert!(succeeded(run(&[verb, "--help"])).contains("Example: assay "), "{verb}");
    }
}
