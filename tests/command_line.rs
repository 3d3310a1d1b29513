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
    assert!(told.contains("ad-embedding, product-embedding"), "{told}");

    let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM product_embedding.results UNION ALL SELECT 1 FROM ad_embedding.results \
               UNION ALL SELECT 1 FROM product_embedding.rejections UNION ALL SELECT 1 FROM ad_embedding.rejections)";
    let query = |arguments: &[&str]| succeeded(run(&[&["query", "--config", &config], arguments].concat()));
    let counted: Value = serde_json::from_str(&query(&["--format", "json", sql])).unwrap();
    assert_eq!(counted[0]["n"], 47, "40 assets, 4 faults, 2 updates, 1 tombstone");
    assert_eq!(query(&["--format", "csv", sql]), "n\n47\n");
    assert!(query(&[sql]).contains("| 47 |"));
    let bare = query(&["--job", "product-embedding", "--format", "csv", "SELECT count(*) AS n FROM rejections"]);
    assert_eq!(bare, "n\n4\n");
    let parquet = format!("{dir}/out.parquet");
    assert_eq!(query(&["--format", "parquet", "--output", &parquet, sql]), "");
    assert_eq!(&std::fs::read(&parquet).unwrap()[..4], b"PAR1");

    // The same records again, replayed: every offset is known. A new line is not.
    let worker = |job: &str| succeeded(run(&["run", "--job", job, "--once", "--config", &config]));
    worker("product-embedding");
    assert_eq!(query(&["--format", "csv", sql]), "n\n47\n");
    let mut topic = std::fs::OpenOptions::new().append(true).open(format!("{dir}/topics/products/0.jsonl")).unwrap();
    writeln!(topic, r#"{{"id":"new","title":"A blue mug","event_time":"2026-05-01T00:00:00Z"}}"#).unwrap();
    worker("product-embedding");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n");

    let told = succeeded(run(&["upkeep", "--config", &config]));
    assert!(told.contains("product-embedding/results: ") && told.contains("checkpoint at version"), "{told}");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n");
    worker("product-embedding");
    assert_eq!(query(&["--format", "csv", sql]), "n\n48\n", "offsets survive a checkpoint");

    let refused = failed(run(&["demo", "--dir", dir]), 1);
    assert!(refused.contains("is not empty"), "{refused}");
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
