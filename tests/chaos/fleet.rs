//! The worker processes of a run: killed, frozen, stopped in order, and always replaced.
//!
//! It plays the supervisor: a worker that has ended is started again. It knows no Kafka and no tables.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::stage::worker::{JOB, Leash, assay, until};

/// Several places for workers.
pub struct Fleet {
    folder: PathBuf,
    /// The library that moves clocks, where it could be built.
    clock: Option<PathBuf>,
    places: Vec<Place>,
    /// Exits that nobody asked for.
    pub surprises: Vec<String>,
    pub tally: BTreeMap<&'static str, u64>,
}

struct Place {
    worker: Leash,
    port: u16,
    thaw_at: Option<Instant>,
    /// A signal was sent, so its end is no surprise.
    doomed: bool,
}

impl Fleet {
    /// Starts workers with the configuration file `config.toml` of the folder.
    pub fn start(folder: &Path, workers: usize) -> Self {
        let clock = build_clock(folder);
        let mut fleet = Self {
            folder: folder.to_owned(),
            clock,
            places: Vec::new(),
            surprises: Vec::new(),
            tally: BTreeMap::new(),
        };
        for number in 0..workers {
            fleet.set_clock(number, 0);
            let port = free_port();
            let worker = fleet.spawn(number, port);
            fleet.places.push(Place { worker, port, thaw_at: None, doomed: false });
        }
        fleet
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn kill(&mut self, number: usize) {
        self.count("kills");
        self.places[number].doomed = true;
        self.signal(number, "KILL");
        self.revive();
    }

    pub fn freeze(&mut self, number: usize, length: Duration) {
        self.count("zombies");
        self.signal(number, "STOP");
        self.places[number].thaw_at = Some(Instant::now() + length);
    }

    pub fn terminate(&mut self, number: usize) {
        self.count("drains");
        self.thaw(number);
        self.places[number].doomed = true;
        self.signal(number, "TERM");
    }

    pub fn set_clock(&mut self, number: usize, seconds: i64) {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.clock_file(number));
        file.expect("a file").write_all(&seconds.to_ne_bytes()).expect("written");
    }

    /// Whether clocks can be moved here.
    pub fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// Thaws who has been frozen long enough and replaces who has ended; to be called often.
    pub fn tend(&mut self) {
        for number in 0..self.places.len() {
            if self.places[number].thaw_at.is_some_and(|at| Instant::now() >= at) {
                self.thaw(number);
            }
        }
        self.revive();
    }

    /// Lets all of them drain; their exit must be orderly.
    pub async fn stop(mut self) -> BTreeMap<&'static str, u64> {
        for number in 0..self.places.len() {
            self.set_clock(number, 0);
            self.thaw(number);
            self.signal(number, "TERM");
        }
        for number in 0..self.places.len() {
            let mut status = None;
            until("a worker drains", || {
                status = self.places[number].worker.0.try_wait().expect("a child");
                status.is_some()
            })
            .await;
            let status = status.expect("it has ended");
            assert!(status.success(), "worker {number} drained badly: {status}\n{}", self.last_words(number));
        }
        self.tally
    }

    /// Copies the logs of the workers beside the history of the run.
    pub fn keep_logs(&self, history: &Path) {
        for number in 0..self.places.len() {
            let kept = history.with_extension(format!("worker-{number}.log"));
            std::fs::copy(self.log(number), kept).expect("a log is copied");
        }
    }

    /// The addresses of the workers' metrics.
    pub fn metrics(&self) -> Vec<String> {
        self.places.iter().map(|place| format!("http://127.0.0.1:{}/metrics", place.port)).collect()
    }

    /// The number of the process in a place.
    pub fn process(&self, number: usize) -> u32 {
        self.places[number].worker.0.id()
    }

    fn thaw(&mut self, number: usize) {
        if self.places[number].thaw_at.take().is_some() {
            self.signal(number, "CONT");
        }
    }

    fn revive(&mut self) {
        for number in 0..self.places.len() {
            let Some(status) = self.places[number].worker.0.try_wait().expect("a child") else { continue };
            self.judge(number, status);
            let worker = self.spawn(number, self.places[number].port);
            self.places[number] = Place { worker, port: self.places[number].port, thaw_at: None, doomed: false };
        }
    }

    fn judge(&mut self, number: usize, status: ExitStatus) {
        // A drain that found no time for all its work says so; the next worker goes on.
        let orderly = status.code().is_some_and(|code| code == 0 || code == 6);
        let killed = status.signal() == Some(9);
        if !(self.places[number].doomed && (orderly || killed)) {
            self.surprises.push(format!("worker {number} ended with {status}: {}", self.last_words(number)));
        }
    }

    fn spawn(&self, number: usize, port: u16) -> Leash {
        let log = OpenOptions::new().create(true).append(true).open(self.log(number)).expect("a log");
        let mut command = assay();
        command.args(["run", "--job", JOB, "--config"]).arg(self.folder.join("config.toml"));
        command.env("ASSAY__SERVER__ADDRESS", format!("127.0.0.1:{port}")).env("RAYON_NUM_THREADS", "1");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        if let Some(clock) = &self.clock {
            command.env("LD_PRELOAD", clock).env("ASSAY_TEST_CLOCK", self.clock_file(number));
        }
        Leash(command.spawn().expect("the binary starts"))
    }

    fn signal(&self, number: usize, name: &str) {
        let id = self.process(number).to_string();
        // It may have ended by itself a moment ago.
        let _ = Command::new("kill").args([&format!("-{name}"), &id]).output();
        if name == "KILL" {
            let stat = format!("/proc/{id}/stat");
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                std::thread::yield_now();
            }
        }
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.join(format!("worker-{number}.log"))
    }

    fn clock_file(&self, number: usize) -> PathBuf {
        self.folder.join(format!("clock-{number}"))
    }

    fn last_words(&self, number: usize) -> String {
        let log = std::fs::read_to_string(self.log(number)).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Compiles the library that moves clocks; none where there is no C compiler or no glibc.
pub fn build_clock(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/clock.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).args([source, "-ldl"]).output();
    built.is_ok_and(|output| output.status.success()).then_some(library)
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Adds a line to the history of a run.
pub fn note(history: &mut File, line: &str) {
    writeln!(history, "{line}").expect("the history is written");
}
