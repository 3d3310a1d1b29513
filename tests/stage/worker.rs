//! A folder with everything of a run, and pipelines and worker processes over it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};
use std::time::Duration;

use assay::engine::Inference;
use assay::job::{JobSpec, rejections_schema, results_schema};
use assay::media::MediaStore;
use assay::metrics::Metrics;
use assay::pipeline::{self, Mode, Parts, PipelineError, Progress};
use assay::retry;
use assay::sink::{CommitOptions, DeltaSink, Options as SinkOptions, Sink};
use assay::source::{ReplayOptions, ReplaySource, Source};
use assay::traces::Tracer;
use bytesize::ByteSize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const JOB: &str = "embedding";

/// A job that embeds the text and the main picture of products.
pub const JOB_FILE: &str = r#"
name = "embedding"
kind = "product"
topics = ["products"]

[limits]
media_bytes = "1MiB"
pixels = 1000000
deadline = "2s"

[[embeddings]]
column = "picture"
model = "tiny"
input = "image"

[[embeddings]]
column = "words"
model = "tiny"
input = "text"
template = "{title}. {description}"
"#;

/// A temporary folder: topics as JSON lines, tables beside them.
pub struct Run {
    pub folder: TempDir,
}

impl Run {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        std::fs::create_dir_all(folder.path().join("topics/products")).unwrap();
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The URL below which the tables lie.
    pub fn tables(&self) -> String {
        format!("file://{}/tables", self.path().display())
    }

    pub fn topic(&self) -> PathBuf {
        self.path().join("topics/products")
    }

    /// Writes the lines of one partition anew.
    pub fn write(&self, partition: i32, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        self.write_raw(partition, &text);
    }

    pub fn write_raw(&self, partition: i32, text: &str) {
        std::fs::write(self.topic().join(format!("{partition}.jsonl")), text).unwrap();
    }

    pub fn sink_options(&self, commit_rows: usize) -> SinkOptions {
        let commit = CommitOptions { rows: commit_rows, bytes: ByteSize::mib(64), interval: Duration::from_millis(50) };
        SinkOptions { url: self.tables(), commit, retry: quick(), ..SinkOptions::default() }
    }

    /// The parts of a pipeline over the replayed topic.
    pub async fn parts(&self, media: Arc<dyn MediaStore>, inference: Arc<dyn Inference>) -> Parts {
        let topics = [("products".to_owned(), self.topic())].into();
        let source = ReplaySource::new(ReplayOptions { topics }, &["products".to_owned()]).expect("topic exists");
        self.parts_over(Arc::new(source), media, inference).await
    }

    pub async fn parts_over(
        &self,
        source: Arc<dyn Source>,
        media: Arc<dyn MediaStore>,
        inference: Arc<dyn Inference>,
    ) -> Parts {
        self.parts_into(source, media, inference, self.sink_options(50)).await
    }

    /// The same with other tables.
    pub async fn parts_into(
        &self,
        source: Arc<dyn Source>,
        media: Arc<dyn MediaStore>,
        inference: Arc<dyn Inference>,
        options: SinkOptions,
    ) -> Parts {
        let job = Arc::new(JobSpec::parse(Path::new("embedding.toml"), JOB_FILE).expect("the job is right"));
        let metrics = Arc::new(Metrics::new());
        let results = results_schema(&job, |_| Some(1)).expect("the model is known");
        let sink = DeltaSink::new(JOB, &options, results, rejections_schema(), metrics.clone()).expect("sink");
        sink.open().await.expect("tables open");
        Parts {
            job,
            source,
            media,
            inference,
            sink: Arc::new(sink),
            metrics,
            progress: Arc::new(Progress::default()),
            tracer: Tracer::default(),
            options: pipeline::Options { assets: 256, ..pipeline::Options::default() },
            commit: options.commit,
            retry: quick(),
            fetch_concurrency: 8,
            inference_window: 32,
            grace: Duration::from_secs(10),
        }
    }
}

/// Runs until everything that is there is durable.
pub async fn once(parts: Parts) -> Result<(), PipelineError> {
    let run = pipeline::run(parts, Mode::Once, CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(180), run).await.expect("the run ends")
}

/// Waits that do not slow a test down.
pub fn quick() -> retry::Options {
    retry::Options { initial: Duration::from_millis(5), maximum: Duration::from_millis(20) }
}

/// A product message that is right.
pub fn product(id: &str) -> Value {
    json!({ "id": id, "title": format!("title of {id}"), "description": "d", "event_time": "2026-01-02T03:04:05Z" })
}

/// The same with a picture.
pub fn pictured(id: &str, url: &str) -> Value {
    let mut product = product(id);
    product["media"] = json!([{ "url": url, "role": "main" }]);
    product
}

/// Polls a condition until it holds; panics after three minutes.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            poll.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// The binary under test; it does not outlive the tests, even when they are killed.
pub fn assay() -> Command {
    static LEASH: Once = Once::new();
    let owner = std::process::id().to_string();
    LEASH.call_once(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/leash.sh");
        let mut leash = Command::new("setsid");
        leash.args([script, &owner]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Without it, nothing but a killed run is worse.
        let _ = leash.spawn();
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    command.env("ASSAY_TEST_OWNER", owner);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends a process when the test ends, however it ends.
pub struct Leash(pub Child);

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
