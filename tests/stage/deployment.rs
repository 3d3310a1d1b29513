//! Worker processes as they are deployed: a configuration file, a job file, a log each.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use super::worker::{JOB, JOB_FILE, Leash, Run, assay, until};

/// A folder with everything that workers need.
pub struct Deployment {
    pub run: Run,
}

/// A running worker.
pub struct Worker {
    process: Leash,
    log: PathBuf,
}

impl Deployment {
    /// Writes the job, whose deadline no outage reaches and whose group is named like its topic, and the configuration: these
    /// sections and what every worker needs.
    pub fn new(topic: &str, sections: &str) -> Self {
        let run = Run::new();
        let folder = run.path();
        std::fs::create_dir_all(folder.join("jobs")).unwrap();
        let job = JOB_FILE.replace("deadline = \"2s\"", "deadline = \"60s\"");
        let job = job.replace("topics = [\"products\"]", &format!("topics = [\"{topic}\"]\ngroup = \"{topic}\""));
        std::fs::write(folder.join("jobs/embedding.toml"), job).unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
        let text = format!(
            "jobs = \"jobs\"\n{sections}\n[models.tiny]\npath = \"{model}\"\n[server]\naddress = \"127.0.0.1:0\"\n"
        );
        std::fs::write(folder.join("config.toml"), text).unwrap();
        Self { run }
    }

    /// A verb with the configuration.
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = assay();
        command.args(arguments).arg("--config").arg(self.run.path().join("config.toml"));
        command
    }

    /// Starts a worker whose log has this name.
    pub fn worker(&self, name: &str, flags: &[&str]) -> Worker {
        self.start(name, self.verb(&[&["run", "--job", JOB], flags].concat()))
    }

    /// Starts a worker with these settings in its environment.
    pub fn worker_with(&self, name: &str, environment: &[(&str, &str)]) -> Worker {
        let mut command = self.verb(&["run", "--job", JOB]);
        command.envs(environment.iter().copied());
        self.start(name, command)
    }

    fn start(&self, name: &str, mut command: Command) -> Worker {
        let log = self.run.path().join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        command.stdout(file.try_clone().expect("a log")).stderr(file);
        Worker { process: Leash(command.spawn().expect("the binary starts")), log }
    }

    /// Works until everything that is there is durable.
    pub async fn once(&self) {
        let mut worker = self.worker("once", &["--once"]);
        let status = worker.ended().await;
        assert!(status.success(), "{status}: {}", worker.log());
    }
}

impl Worker {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log has this text.
    pub async fn says(&self, text: &str) {
        until(&format!("the worker says {text:?}"), || self.log().contains(text)).await;
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).output();
        assert!(sent.expect("kill is there").status.success(), "the worker has ended: {}", self.log());
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("a child");
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the worker ends", || {
            status = self.process.0.try_wait().expect("a child");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }
}
