//! `assay demo`: the whole way of an asset on one machine, in one process.
//!
//! A catalogue is drawn, enqueued on an in-process broker, worked off by an ordinary worker, and asked in SQL. What it leaves is an
//! ordinary deployment: configuration, jobs, model, topics as JSON lines and tables, which every other verb can use.

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
use crate::source::{EmbeddedBroker, KafkaOptions, Submitter};
use crate::submit::{Draft, read_json_lines};

use super::catalogue::Catalogue;

/// What `assay demo` was asked to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where everything of the run goes; must be new or empty.
    pub dir: PathBuf,
    pub assets: usize,
    pub seed: u64,
}

const PARTITIONS: i32 = 4;
const TOPICS: [&str; 2] = ["products", "ads"];

/// The files of a demo folder that do not depend on the catalogue.
const FILES: [(&str, &[u8]); 8] = [
    ("config.toml", include_bytes!("config.toml")),
    ("jobs/product-embedding.toml", include_bytes!("../../jobs/product-embedding.toml")),
    ("jobs/ad-embedding.toml", include_bytes!("../../jobs/ad-embedding.toml")),
    ("models/demo-clip/config.json", include_bytes!("../../models/demo-clip/config.json")),
    ("models/demo-clip/model.safetensors", include_bytes!("../../models/demo-clip/model.safetensors")),
    ("models/demo-clip/tokenizer.json", include_bytes!("../../models/demo-clip/tokenizer.json")),
    ("models/demo-clip/tokenizer_config.json", include_bytes!("../../models/demo-clip/tokenizer_config.json")),
    ("models/demo-clip/preprocessor_config.json", include_bytes!("../../models/demo-clip/preprocessor_config.json")),
];

/// The questions that the demo asks at its end.
const QUESTIONS: [(&str, &str); 3] = [
    (
        "What became of the messages?",
        "SELECT kind, outcome, count(*) AS messages FROM (\
         SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END AS outcome FROM product_embedding.results \
         UNION ALL SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END FROM ad_embedding.results \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM product_embedding.rejections \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM ad_embedding.rejections) \
         GROUP BY kind, outcome ORDER BY kind DESC, outcome",
    ),
    (
        "Which products look most like the first one?",
        "WITH one AS (SELECT asset_id, headers['title'] AS title, image_embedding FROM product_embedding.latest \
         WHERE image_embedding IS NOT NULL ORDER BY asset_id LIMIT 1) \
         SELECT one.title AS product, other.headers['title'] AS looks_like, \
         round(cosine_similarity(other.image_embedding, one.image_embedding), 3) AS similarity \
         FROM product_embedding.latest AS other CROSS JOIN one \
         WHERE other.image_embedding IS NOT NULL AND other.asset_id <> one.asset_id \
         ORDER BY similarity DESC, other.asset_id LIMIT 5",
    ),
    (
        "Which new products fit an ad that nobody has clicked on yet?",
        "WITH ad AS (SELECT headers['title'] AS headline, text_embedding FROM ad_embedding.latest ORDER BY asset_id LIMIT 1) \
         SELECT ad.headline, product.headers['title'] AS product, \
         round(cosine_similarity(product.text_embedding, ad.text_embedding), 3) AS similarity \
         FROM product_embedding.latest AS product CROSS JOIN ad ORDER BY similarity DESC, product.asset_id LIMIT 5",
    ),
];

/// Runs the demo.
///
/// # Errors
/// A folder that is not empty or cannot be written, or whatever ends a worker.
pub async fn run(options: DemoOptions, shutdown: CancellationToken) -> Result<()> {
    let started = Instant::now();
    let dir = make_empty(&options.dir)?;
    let (seed, assets) = (options.seed, options.assets);
    eprintln!("Drawing {assets} products and ads into {}", dir.display());
    let target = dir.clone();
    let written = tokio::task::spawn_blocking(move || Catalogue::generate(seed, assets).with_faults().write(&target));
    let written = written.await??;
    write_files(&dir)?;

    let broker = EmbeddedBroker::start()?;
    let kafka =
        KafkaOptions { bootstrap_servers: broker.bootstrap_servers().to_owned(), properties: Default::default() };
    for topic in TOPICS {
        broker.create_topic(topic, PARTITIONS)?;
    }
    let submitted = submit(&dir, &kafka).await?;
    if submitted != written.records as u64 {
        bail!("{submitted} of {} records reached the broker", written.records);
    }
    eprintln!("Enqueued {submitted} records on the broker at {}", kafka.bootstrap_servers);

    let file = dir.join("config.toml");
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
    for (question, sql) in QUESTIONS {
        println!("\n{question}\n");
        ask::print_table(&config, sql).await?;
    }
    print_places(&dir, started);
    Ok(())
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

fn write_files(dir: &Path) -> Result<()> {
    for (name, bytes) in FILES {
        let path = dir.join(name);
        let parent = path.parent().context("every file of the demo lies in a folder")?;
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, bytes))
            .with_context(|| path.display().to_string())?;
    }
    // The allow-list wants the absolute path of the pictures.
    let config = dir.join("config.toml");
    let media = url::Url::from_directory_path(dir.join("media"))
        .map_err(|()| anyhow::anyhow!("no URL for {}", dir.display()))?;
    let text = fs::read_to_string(&config)?.replace("MEDIA", media.as_str().trim_end_matches('/'));
    fs::write(&config, text).with_context(|| config.display().to_string())
}

/// Enqueues the topics' files, each line on the partition and at the offset that it has in its file.
async fn submit(dir: &Path, kafka: &KafkaOptions) -> Result<u64> {
    let submitter = Submitter::new(kafka)?;
    for topic in TOPICS {
        for partition in 0..PARTITIONS {
            let path = dir.join(format!("topics/{topic}/{partition}.jsonl"));
            let reader = BufReader::new(fs::File::open(&path).with_context(|| path.display().to_string())?);
            for found in read_json_lines(path.display().to_string(), reader) {
                let Draft { key, payload, headers, .. } = found?;
                submitter.send(topic, Some(partition), key.as_deref(), payload.as_deref(), &headers).await?;
            }
        }
    }
    Ok(submitter.flush().await?)
}

fn print_places(dir: &Path, started: Instant) {
    let dir = dir.display();
    println!(
        "\nDone in {:.1} s. Everything lies in {dir}:\n\
         \x20 config.toml         for every other verb: assay query --config {dir}/config.toml\n\
         \x20 jobs/, models/      what was done, and with which encoder\n\
         \x20 topics/, media/     the messages, one file a partition, and their pictures; labels.jsonl has the truth\n\
         \x20 tables/             Delta tables, for Assay and any other reader",
        started.elapsed().as_secs_f64()
    );
}
