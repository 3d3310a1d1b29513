//! `assay status` as scripts use it: from Kafka and the tables alone, with no worker running.

use std::process::Output;

use assay::source::EmbeddedBroker;
use serde_json::Value;

use crate::stage::worker::{JOB_FILE, assay};

struct Deployment {
    folder: tempfile::TempDir,
    config: String,
}

impl Deployment {
    fn new(broker: &EmbeddedBroker) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
        let text = format!(
            "jobs = \"jobs\"\n[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n\
             \"session.timeout.ms\" = 6000\n[tables]\nurl = \"tables\"\n[models.tiny]\npath = \"{model}\"\n\
             [server]\naddress = \"127.0.0.1:0\"\n",
            broker.bootstrap_servers()
        );
        let config = folder.path().join("config.toml");
        std::fs::write(&config, text).unwrap();
        std::fs::create_dir(folder.path().join("jobs")).unwrap();
        std::fs::write(folder.path().join("jobs/embedding.toml"), JOB_FILE).unwrap();
        Self { config: config.display().to_string(), folder }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        assay().args(arguments).args(["--config", &self.config]).output().expect("the binary starts")
    }

    fn submit(&self, lines: &str) {
        let file = self.folder.path().join("lines.jsonl");
        std::fs::write(&file, lines).unwrap();
        let output = self.run(&["submit", "--topic", "products", "--no-validate", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The status of the only job, and whether everything could be read. The mock cluster cannot tell members.
    fn status(&self) -> Value {
        let output = self.run(&["status", "--json"]);
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}{}", String::from_utf8_lossy(&output.stderr));
        let statuses: Value = serde_json::from_str(&told).unwrap();
        statuses[0].clone()
    }
}

fn sum(status: &Value, column: &str) -> i64 {
    status["partitions"].as_array().unwrap().iter().map(|row| row[column].as_i64().unwrap_or(0)).sum()
}

#[test]
fn status_tells_lag_commits_rejections_and_fingerprints_while_no_worker_runs() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("products", 2).unwrap();
    let deployment = Deployment::new(&broker);
    let good = |id: &str| format!("{{\"id\":\"{id}\",\"title\":\"t\",\"event_time\":\"2026-01-01T00:00:00Z\"}}\n");
    deployment.submit(&(good("a") + &good("b") + "{\"id\":\"c\"}\n"));

    let before = deployment.status();
    assert_eq!((&before["job"], &before["group"]), (&"embedding".into(), &"assay-embedding".into()));
    assert_eq!((before["lag"].as_i64(), sum(&before, "end")), (Some(3), 3), "{before}");
    assert!(before["last_commit"].is_null() && before["last_row"].is_null(), "{before}");

    let worked = deployment.run(&["run", "--job", "embedding", "--once"]);
    assert!(worked.status.success(), "{}", String::from_utf8_lossy(&worked.stderr));
    let after = deployment.status();
    assert_eq!(after["lag"].as_i64(), Some(0), "{after}");
    assert_eq!((sum(&after, "committed"), sum(&after, "in_tables")), (3, 3), "{after}");
    assert!(after["last_commit"]["seconds_ago"].as_u64().unwrap() < 300, "{after}");
    assert!(after["assets_per_second"].as_f64().unwrap() > 0.0, "{after}");
    let rejected = &after["rejections"][0];
    assert_eq!((&rejected["reason"], &rejected["rows"]), (&"schema_violation".into(), &1.into()), "{after}");
    assert_eq!(after["last_row"]["job_fingerprint"], after["job_fingerprint"]);
    assert!(after["last_row"]["models"]["tiny"].is_string(), "{after}");

    deployment.submit(&good("d"));
    assert_eq!(deployment.status()["lag"].as_i64(), Some(1));
    let text = String::from_utf8(deployment.run(&["status"]).stdout).unwrap();
    assert!(text.starts_with("embedding: lag 1, ") && text.contains("schema_violation"), "{text}");
}

#[test]
fn what_the_tables_know_is_told_while_the_broker_is_gone() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("products", 1).unwrap();
    let deployment = Deployment::new(&broker);
    deployment.submit("{\"id\":\"a\",\"title\":\"t\",\"event_time\":\"2026-01-01T00:00:00Z\"}\n");
    let worked = deployment.run(&["run", "--job", "embedding", "--once"]);
    assert!(worked.status.success(), "{}", String::from_utf8_lossy(&worked.stderr));
    drop(broker);
    let output = deployment.run(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(1), "what could not be read is a failure for scripts");
    let statuses: Value = serde_json::from_slice(&output.stdout).unwrap();
    let status = &statuses[0];
    assert!(status["lag"].is_null() && status["partitions"][0]["in_tables"] == 1, "{status}");
    assert!(status["problems"][0].as_str().unwrap().contains("Kafka"), "{status}");
}
