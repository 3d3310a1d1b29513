//! What the demos have in common: a catalogue is drawn into a folder, enqueued on an in-process broker and worked off by an
//! ordinary worker.
//!
//! It asks no question of the tables. Invariant: the folder is an ordinary deployment that every other verb can use.

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use crate::app::{self, Run};
use crate::ask;
use crate::config::{Config, SourceKind};
use crate::pipeline::Mode;
use crate::query::QuerySession;
use crate::source::{EmbeddedBroker, KafkaOptions, Submitter};
use crate::submit::{Draft, read_json_lines};

use super::files::{PARTITIONS, TOPICS};
use super::market::{Extras, Market, MarketFiles, Split};

/// A file of a demo folder that does not depend on the catalogue: its name and its content.
pub(super) type ShippedFile = (&'static str, &'static [u8]);

/// Configuration, job and model of every demo.
const FILES: [ShippedFile; 10] = [
    ("config.toml", include_bytes!("config.toml")),
    ("jobs/product-annotation.toml", include_bytes!("../../jobs/product-annotation.toml")),
    ("jobs/product-annotation.output.json", include_bytes!("../../jobs/product-annotation.output.json")),
    ("models/demo/config.json", include_bytes!("../../models/demo/config.json")),
    ("models/demo/generation_config.json", include_bytes!("../../models/demo/generation_config.json")),
    ("models/demo/model.safetensors", include_bytes!("../../models/demo/model.safetensors")),
    ("models/demo/tokenizer.json", include_bytes!("../../models/demo/tokenizer.json")),
    ("models/demo/tokenizer_config.json", include_bytes!("../../models/demo/tokenizer_config.json")),
    ("models/demo/chat_template.jinja", include_bytes!("../../models/demo/chat_template.jinja")),
    ("models/demo/preprocessor_config.json", include_bytes!("../../models/demo/preprocessor_config.json")),
];

/// A demo folder in the making.
#[derive(Debug)]
pub(super) struct Deployment {
    dir: PathBuf,
    started: Instant,
}

impl Deployment {
    /// The clock of the run starts here.
    pub fn new(dir: &Path) -> Result<Self> {
        let started = Instant::now();
        Ok(Self { dir: make_empty(dir)?, started })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Draws the pictures and writes the messages.
    pub async fn draw<S: Split>(&self, market: Market<S>, extras: Extras) -> Result<(Market<S>, MarketFiles)> {
        let dir = self.dir.clone();
        let drawn = tokio::task::spawn_blocking(move || market.write(&dir, extras).map(|files| (market, files)));
        Ok(drawn.await??)
    }

    /// Writes configuration, jobs and models: those of every demo, and `more`. `models` ends the configuration.
    pub fn write_files(&self, more: &[ShippedFile], models: &str) -> Result<()> {
        for (name, bytes) in FILES.iter().chain(more) {
            let path = self.dir.join(name);
            let parent = path.parent().context("every file of the demo lies in a folder")?;
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, bytes))
                .with_context(|| path.display().to_string())?;
        }
        // The allow-list wants the absolute path of the pictures.
        let config = self.config_file();
        let media = url::Url::from_directory_path(self.dir.join("media"))
            .map_err(|()| anyhow::anyhow!("no URL for {}", self.dir.display()))?;
        let text = fs::read_to_string(&config)?.replace("MEDIA", media.as_str().trim_end_matches('/'));
        fs::write(&config, text + models).with_context(|| config.display().to_string())
    }

    /// Enqueues `records` records, lets a worker run all jobs until the topics are empty, and opens the tables.
    pub async fn work_off(&self, records: usize, shutdown: CancellationToken) -> Result<QuerySession> {
        let broker = EmbeddedBroker::start()?;
        let kafka =
            KafkaOptions { bootstrap_servers: broker.bootstrap_servers().to_owned(), properties: Default::default() };
        for topic in TOPICS {
            broker.create_topic(topic, PARTITIONS as i32)?;
        }
        let submitted = self.submit(&kafka).await?;
        if submitted != records as u64 {
            bail!("{submitted} of {records} records reached the broker");
        }
        eprintln!("Enqueued {submitted} records on the broker at {}", kafka.bootstrap_servers);

        let file = self.config_file();
        let mut config = Config::load(Some(&file)).map_err(crate::check::problems_error)?;
        config.source.kind = SourceKind::Kafka;
        config.source.kafka = kafka;
        let request = Run { jobs: Vec::new(), mode: Mode::Once, serve: false, progress_line: ask::is_terminal() };
        let report = app::run(&config, request, shutdown.clone()).await?;
        if shutdown.is_cancelled() {
            bail!("stopped before the topics were empty; `assay run --once --config {}` does the rest", file.display());
        }
        for (job, done) in report {
            eprintln!("{job}: {} annotated, {} removed, {} rejected", done.annotated, done.removed, done.rejected);
        }
        ask::open(&config, None).await
    }

    /// Enqueues the topics' files, each line on the partition and at the offset that it has in its file.
    async fn submit(&self, kafka: &KafkaOptions) -> Result<u64> {
        let submitter = Submitter::new(kafka)?;
        for topic in TOPICS {
            for partition in 0..PARTITIONS {
                let path = self.dir.join(format!("topics/{topic}/{partition}.jsonl"));
                let reader = BufReader::new(fs::File::open(&path).with_context(|| path.display().to_string())?);
                for found in read_json_lines(path.display().to_string(), reader) {
                    let Draft { key, payload, headers, .. } = found?;
                    submitter.send(topic, Some(partition as i32), key.as_deref(), payload.as_deref(), &headers).await?;
                }
            }
        }
        Ok(submitter.flush().await?)
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Says what lies where: `own` files of this demo with what they are, then those of every demo.
    pub fn print_places(&self, own: &[(&str, &str)]) {
        let dir = self.dir.display();
        println!("\nDone in {:.1} s. Everything lies in {dir}:", self.seconds());
        for (name, what) in own {
            println!("  {name:<19} {what}");
        }
        println!(
            "\x20 config.toml         for every other verb: assay query --config {dir}/config.toml\n\
             \x20 jobs/, models/      what was done, and with which model\n\
             \x20 topics/, media/     the messages, one file a partition, and their pictures\n\
             \x20 labels.jsonl        the truth: assay eval --job product-annotation --labels {dir}/labels.jsonl --config {dir}/config.toml\n\
             \x20 tables/             Delta tables, for Assay and any other reader"
        );
    }
}

/// The absolute path of a folder, which is made if it is not there.
pub(super) fn make_empty(dir: &Path) -> Result<PathBuf> {
    let name = || format!("folder {}", dir.display());
    fs::create_dir_all(dir).with_context(name)?;
    if fs::read_dir(dir).with_context(name)?.next().is_some() {
        bail!("{} is not empty; choose another with --dir, or remove it", name());
    }
    dir.canonicalize().with_context(name)
}
