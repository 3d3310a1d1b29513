//! Worker processes that are killed (SIGKILL) at many points of their work, again and again, until one gets to the end.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::stage::tables::{ask, places};
use crate::stage::worker::{JOB, JOB_FILE, Leash, Run, assay, pictured, product};

const PARTITIONS: i32 = 3;
const LINES: i64 = 80;

/// Writes topics with good, bad and pictured assets, a job and a configuration with small, frequent commits.
fn prepare(run: &Run) {
    let picture = run.path().join("media/red.png");
    std::fs::create_dir_all(picture.parent().unwrap()).unwrap();
    std::fs::write(&picture, crate::stage::fakes::png(40, 30)).unwrap();
    let url = format!("file://{}", picture.display());
    for partition in 0..PARTITIONS {
        let line = |n: i64| match n % 8 {
            3 => json!({ "id": format!("p{partition}-{n}"), "title": 7 }),
            5 => pictured(&format!("p{partition}-{n}"), "file:///etc/hostname"),
            6 => pictured(&format!("p{partition}-{n}"), &url),
            _ => product(&format!("p{partition}-{n}")),
        };
        run.write(partition, &(0..LINES).map(line).collect::<Vec<_>>());
    }
    std::fs::create_dir_all(run.path().join("jobs")).unwrap();
    std::fs::write(run.path().join("jobs/embedding.toml"), JOB_FILE).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
    let config = format!(
        "jobs = \"jobs\"\n\
         [source]\nkind = \"replay\"\n[source.replay.topics]\nproducts = \"topics/products\"\n\
         [media]\nallow = [\"file://{media}\"]\n\
         [tables]\nurl = \"tables\"\n[tables.commit]\nrows = 6\ninterval = \"10ms\"\n\
         [pipeline]\nassets = 24\n\
         [models.tiny]\npath = \"{model}\"\n\
         [server]\naddress = \"127.0.0.1:0\"\n",
        media = run.path().join("media").display(),
    );
    std::fs::write(run.path().join("config.toml"), config).unwrap();
}

/// Files below a folder: every step of a commit adds one.
fn files(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let entries = entries.filter_map(Result::ok);
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// Runs a worker and kills it once it has added `steps` files. True when it got to the end before.
fn run_and_kill(run: &Run, steps: usize) -> bool {
    let tables = run.path().join("tables");
    let before = files(&tables);
    let mut command = assay();
    command.args(["run", "--job", JOB, "--once", "--config"]).arg(run.path().join("config.toml"));
    command.stderr(std::fs::File::create(run.path().join("worker.log")).unwrap());
    let mut worker = Leash(command.spawn().expect("the binary starts"));
    let started = std::time::Instant::now();
    loop {
        if let Some(status) = worker.0.try_wait().unwrap() {
            let log = std::fs::read_to_string(run.path().join("worker.log")).unwrap_or_default();
            assert!(status.success(), "a worker that is left alone ends well: {status}\n{log}");
            return true;
        }
        if files(&tables) >= before.saturating_add(steps) {
            worker.0.kill().unwrap();
            worker.0.wait().unwrap();
            return false;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "the worker hangs");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_at_many_points_lose_nothing_and_double_nothing() {
    let run = Run::new();
    prepare(&run);
    let mut kills = 0;
    // Steps of 1 to 7 files stop a worker before, between and after the writes of both tables.
    while !run_and_kill(&run, 1 + kills % 7) {
        kills += 1;
        assert!(kills < 400, "no progress between kills");
    }
    assert!(kills >= 10, "only {kills} kills: the test does not show what it should");
    let expected: Vec<_> = (0..PARTITIONS)
        .flat_map(|partition| (0..LINES).map(move |offset| ("products".to_owned(), partition, offset)))
        .collect();
    assert_eq!(places(&run.tables(), JOB).await, expected, "after {kills} kills");
    let reasons = "SELECT reason, count(*) FROM rejections GROUP BY reason ORDER BY reason";
    assert_eq!(ask(&run.tables(), JOB, reasons).await, [["media_forbidden", "30"], ["schema_violation", "30"]]);
    assert!(run_and_kill(&run, usize::MAX), "a further run finds nothing to do");
    assert_eq!(places(&run.tables(), JOB).await.len(), expected.len());
}
