//! Single mishaps of the machine: a disk that is full for a while, a clock that is far off.

use std::process::Command;

use crate::stage::deployment::Deployment;
use crate::stage::tables::{count, places};
use crate::stage::worker::{JOB, Leash, product, until};

use super::fleet::build_clock;

const LINES: i64 = 400;

fn deployment() -> Deployment {
    let sections = "[source]\nkind = \"replay\"\n[source.replay.topics]\nproducts = \"topics/products\"\n\
        [tables]\nurl = \"tables\"\n[tables.commit]\nrows = 100\n[tables.retry]\nmaximum = \"200ms\"\n\
        [media.retry]\nmaximum = \"200ms\"\n";
    let deployment = Deployment::new("products", sections);
    deployment.run.write(0, &(0..LINES).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>());
    deployment
}

fn expected() -> Vec<(String, i32, i64)> {
    (0..LINES).map(|offset| ("products".to_owned(), 0, offset)).collect()
}

/// Files cannot grow beyond a few KiB, as on a disk without room: writes fail in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_leaves_nothing_half_written() {
    let deployment = deployment();
    let config = deployment.run.path().join("config.toml");
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -S -f 3; exec \"$0\" run --job embedding --once --log warn --config \"$1\"");
    command.arg(env!("CARGO_BIN_EXE_assay")).arg(config);
    let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let mut worker = command.stderr(std::process::Stdio::piped()).spawn().expect("bash is there");
    let mut errors = worker.stderr.take().expect("piped");
    let told = log.clone();
    // A file would be as limited as the tables are.
    let reading = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length) = std::io::Read::read(&mut errors, &mut piece) {
            if length == 0 {
                return;
            }
            told.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    });
    let mut worker = Leash(worker);
    until("commits fail", || log.lock().unwrap().matches("commit will be tried again").count() >= 3).await;
    assert!(places(&deployment.run.tables(), JOB).await.len() < LINES as usize, "not everything can be written");
    let id = worker.0.id().to_string();
    let room = Command::new("prlimit").args(["--pid", &id, "--fsize=unlimited"]).output().expect("prlimit is there");
    assert!(room.status.success(), "{}", String::from_utf8_lossy(&room.stderr));
    let mut status = None;
    until("the worker ends", || {
        status = worker.0.try_wait().expect("a child");
        status.is_some()
    })
    .await;
    reading.join().expect("the log was read");
    assert!(status.expect("it has ended").success(), "{}", log.lock().unwrap());
    assert_eq!(places(&deployment.run.tables(), JOB).await, expected());
}

/// Workers whose clocks are years apart take turns on one table.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_years_off_change_no_row_but_its_processing_time() {
    let deployment = deployment();
    let folder = deployment.run.path();
    let Some(clock) = build_clock(folder) else {
        crate::services::say("LEFT OUT, tests with a moved clock: missing: a C compiler with glibc");
        return;
    };
    const YEAR: i64 = 365 * 86_400;
    for (turn, seconds) in [-5 * YEAR, 5 * YEAR, -YEAR, 0].into_iter().enumerate() {
        let lines = (0..LINES / 4 * (turn as i64 + 1)).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>();
        deployment.run.write(0, &lines);
        std::fs::write(folder.join("clock"), seconds.to_ne_bytes()).unwrap();
        let mut worker = deployment.verb(&["run", "--job", JOB, "--once"]);
        worker.env("LD_PRELOAD", &clock).env("ASSAY_TEST_CLOCK", folder.join("clock"));
        let output = worker.output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(places(&deployment.run.tables(), JOB).await, expected());
    let years = "SELECT count(DISTINCT date_part('year', processed_time)) FROM results";
    assert!(count(&deployment.run.tables(), JOB, years).await >= 3, "the clocks were off");
    let newest = "SELECT count(*) FROM latest";
    assert_eq!(count(&deployment.run.tables(), JOB, newest).await, LINES);
}
