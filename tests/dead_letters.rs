//! Dead letters by the command line: listed, shown, sent again, cured; poison stays.

use std::path::Path;
use std::process::Output;

use assay::source::{EmbeddedBroker, KafkaOptions, Submitter};
use serde_json::{Value, json};

use crate::stage::fakes::png;
use crate::stage::worker::{JOB, JOB_FILE, Run, assay, pictured, product};

/// A job over a broker of this process, and the verbs on it.
struct Desk {
    run: Run,
    broker: EmbeddedBroker,
}

impl Desk {
    fn open() -> Self {
        let broker = EmbeddedBroker::start().expect("the mock cluster starts");
        broker.create_topic("products", 2).expect("topics can be made");
        let run = Run::new();
        let (jobs, media) = (run.path().join("jobs"), run.path().join("media"));
        std::fs::create_dir_all(&jobs).unwrap();
        std::fs::create_dir_all(&media).unwrap();
        std::fs::write(jobs.join("embedding.toml"), JOB_FILE).unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
        let config = format!(
            "jobs = \"jobs\"\n[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n\"session.timeout.ms\" = 4000\n\
             [media]\nallow = [\"file://{}\"]\n\
             [tables]\nurl = \"tables\"\n[models.tiny]\npath = \"{model}\"\n[server]\naddress = \"127.0.0.1:0\"\n",
            broker.bootstrap_servers(),
            media.display(),
        );
        std::fs::write(run.path().join("config.toml"), config).unwrap();
        Self { run, broker }
    }

    async fn send(&self, key: Option<&str>, message: &[u8], headers: &[(String, String)]) {
        let bootstrap_servers = self.broker.bootstrap_servers().to_owned();
        let submitter = Submitter::new(&KafkaOptions { bootstrap_servers, ..KafkaOptions::default() }).unwrap();
        submitter.send("products", Some(1), key, Some(message), headers).await.unwrap();
        submitter.flush().await.unwrap();
    }

    fn picture(&self) -> std::path::PathBuf {
        self.run.path().join("media/late.png")
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        assay().args(arguments).arg("--config").arg(self.run.path().join("config.toml")).output().expect("it starts")
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.verb(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn work(&self) {
        self.said(&["run", "--job", JOB, "--once"]);
    }

    /// Name and reason of each letter in a list.
    fn list(&self, arguments: &[&str]) -> Vec<(String, String)> {
        let told = self.said(&[&["dlq", "list", "--format", "json"], arguments].concat());
        let letters: Vec<Value> = serde_json::from_str(&told).unwrap();
        let text = |letter: &Value, field: &str| letter[field].as_str().unwrap_or_default().to_owned();
        letters.iter().map(|letter| (text(letter, "letter"), text(letter, "reason"))).collect()
    }
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn letter(offset: i64, reason: &str) -> (String, String) {
    (format!("products/1/{offset}"), reason.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_sent_again_is_cured_and_poison_stays() {
    let desk = Desk::open();
    let late = pictured("late", &file_url(&desk.picture())).to_string();
    desk.send(Some("late"), late.as_bytes(), &[("trace".to_owned(), "t1".to_owned())]).await;
    desk.send(Some("good"), product("good").to_string().as_bytes(), &[]).await;
    desk.send(Some("poison"), b"{not json", &[]).await;
    let output = desk.verb(&["dlq", "list"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not written anything"), "before the first run");
    desk.work();

    let both = [letter(0, "media_not_found"), letter(2, "json_malformed")];
    assert_eq!(desk.list(&[]), both);
    assert_eq!(desk.list(&["--stage", "fetch"]), both[..1]);
    assert_eq!(desk.list(&["--reason", "json_malformed", "--since", "1h"]), both[1..]);
    assert_eq!(desk.list(&["--until", "1h"]), []);
    assert_eq!(desk.list(&["--asset", "late", "--job", JOB]), both[..1]);
    assert_eq!(desk.list(&["products/1/2"]), both[1..]);
    let shown: Value = serde_json::from_str(&desk.said(&["dlq", "show", "products/1/0"])).unwrap();
    assert_eq!((&shown[0]["raw"]["id"], &shown[0]["headers"]["trace"]), (&json!("late"), &json!("t1")));

    // Without conditions nothing is sent by accident; a dry run sends nothing at all.
    assert!(String::from_utf8_lossy(&desk.verb(&["dlq", "retry"]).stderr).contains("--all"));
    let told = desk.said(&["dlq", "retry", "--all", "--dry-run"]);
    assert!(told.starts_with("2 messages would be sent again"), "{told}");
    std::fs::write(desk.picture(), png(6, 4)).unwrap();
    for attempt in 2..=3 {
        let told = desk.said(&["dlq", "retry", "--all"]);
        let sent = if attempt == 2 { 2 } else { 1 };
        assert!(told.starts_with(&format!("{sent} messages sent again, 0 left")), "{told}");
        desk.work();
        assert_eq!(desk.list(&[]), both[1..], "the cured letter is gone, poison stays");
    }
    let told = desk.said(&["dlq", "retry", "--all"]);
    assert!(told.starts_with("0 messages sent again, 1 left that failed 3 times"), "{told}");
    let shown: Value = serde_json::from_str(&desk.said(&["dlq", "show", "products/1/2"])).unwrap();
    let attempts: Vec<_> = shown.as_array().unwrap().iter().map(|row| row["attempt"].as_i64().unwrap()).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(shown[2]["headers"]["assay-first-origin"], "products/1/2");
    assert_eq!(shown[2]["raw"], "{not json");

    assert_eq!(desk.list(&["--cured"]), both, "the history keeps what was cured");
    let latest = "SELECT asset_id, picture IS NOT NULL AS pictured, headers['trace'] AS trace FROM latest ORDER BY 1";
    let told = desk.said(&["query", "--format", "csv", latest]);
    assert_eq!(told, "asset_id,pictured,trace\ngood,false,\nlate,true,t1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_asset_came_again_by_itself_is_cured_and_a_removal_without_a_key_is_never_sent() {
    let desk = Desk::open();
    let mut untitled = product("a");
    untitled.as_object_mut().unwrap().remove("title");
    desk.send(Some("a"), untitled.to_string().as_bytes(), &[]).await;
    desk.work();
    assert_eq!(desk.list(&[]), [letter(0, "schema_violation")]);
    desk.send(Some("a"), product("a").to_string().as_bytes(), &[]).await;
    let bootstrap_servers = desk.broker.bootstrap_servers().to_owned();
    let submitter = Submitter::new(&KafkaOptions { bootstrap_servers, ..KafkaOptions::default() }).unwrap();
    submitter.send("products", Some(1), None, None, &[]).await.unwrap();
    submitter.flush().await.unwrap();
    desk.work();
    assert_eq!(desk.list(&[]), [letter(2, "tombstone_without_key")]);
    let told = desk.said(&["dlq", "retry", "--all"]);
    assert!(told.starts_with("0 messages sent again") && told.contains("1 left without a message"), "{told}");
}

#[test]
fn letters_of_a_replay_cannot_be_sent_again_and_unknown_names_are_told() {
    let run = Run::new();
    std::fs::create_dir_all(run.path().join("jobs")).unwrap();
    std::fs::write(run.path().join("jobs/embedding.toml"), JOB_FILE).unwrap();
    let config =
        "[source]\nkind = \"replay\"\n[source.replay.topics]\nproducts = \"topics/products\"\n[tables]\nurl = \"t\"\n";
    let config_file = run.path().join("config.toml");
    std::fs::write(&config_file, config).unwrap();
    for (arguments, code, words) in [
        (&["dlq", "retry", "--all"][..], 1, "source.kind"),
        (&["dlq", "show", "products/0/1"], 1, "no job has a letter"),
        (&["dlq", "list", "--job", "nobody"], 2, "nobody"),
        (&["dlq", "list", "--since", "soon"], 2, "how long ago"),
        (&["dlq", "list", "--format", "parquet"], 1, "--format"),
    ] {
        let output = assay().args(arguments).arg("--config").arg(&config_file).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
}
