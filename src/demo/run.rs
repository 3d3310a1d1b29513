//! `assay demo`: the whole way of an asset on one machine, in one process.
//!
//! A catalogue is drawn, enqueued on an in-process broker, worked off by an ordinary worker, and asked in SQL. What it leaves is an
//! ordinary deployment: configuration, jobs, model, topics as JSON lines and tables, which every other verb can use, and a
//! page that shows each asset.

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

use super::files::{PARTITIONS, TOPICS};
use super::gallery::{self, About};
use super::market::{Extras, Market, Seed, Shop};

/// What `assay demo` was asked to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where everything of the run goes; must be new or empty.
    pub dir: PathBuf,
    pub assets: usize,
    pub seed: u64,
}

/// The files of a demo folder that do not depend on the catalogue.
const FILES: [(&str, &[u8]); 12] = [
    ("config.toml", include_bytes!("config.toml")),
    ("jobs/product-annotation.toml", include_bytes!("../../jobs/product-annotation.toml")),
    ("jobs/product-annotation.output.json", include_bytes!("../../jobs/product-annotation.output.json")),
    ("jobs/ad-annotation.toml", include_bytes!("../../jobs/ad-annotation.toml")),
    ("jobs/ad-annotation.output.json", include_bytes!("../../jobs/ad-annotation.output.json")),
    ("models/demo/config.json", include_bytes!("../../models/demo/config.json")),
    ("models/demo/generation_config.json", include_bytes!("../../models/demo/generation_config.json")),
    ("models/demo/model.safetensors", include_bytes!("../../models/demo/model.safetensors")),
    ("models/demo/tokenizer.json", include_bytes!("../../models/demo/tokenizer.json")),
    ("models/demo/tokenizer_config.json", include_bytes!("../../models/demo/tokenizer_config.json")),
    ("models/demo/chat_template.jinja", include_bytes!("../../models/demo/chat_template.jinja")),
    ("models/demo/preprocessor_config.json", include_bytes!("../../models/demo/preprocessor_config.json")),
];

/// The questions that the demo asks at its end.
const QUESTIONS: [(&str, &str); 5] = [
    (
        "What became of the messages?",
        "SELECT kind, outcome, count(*) AS messages FROM (\
         SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END AS outcome FROM product_annotation.results \
         UNION ALL SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END FROM ad_annotation.results \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM product_annotation.rejections \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM ad_annotation.rejections) \
         GROUP BY kind, outcome ORDER BY kind DESC, outcome",
    ),
    (
        "What is in the shop?",
        "SELECT category, count(*) AS products, count(DISTINCT brand) AS brands FROM product_annotation.latest \
         GROUP BY category ORDER BY products DESC, category LIMIT 6",
    ),
    (
        "Which brands are sold second-hand?",
        "SELECT brand, count(*) AS products, \
         round(100.0 * avg(CASE WHEN condition = 'second_hand' THEN 1.0 ELSE 0.0 END)) AS second_hand_percent \
         FROM product_annotation.latest WHERE brand IS NOT NULL GROUP BY brand \
         HAVING count(*) > 1 ORDER BY products DESC, brand LIMIT 6",
    ),
    (
        "Which products are most like the first one, whatever their texts say?",
        "WITH one AS (SELECT asset_id, embedding, colour || ' ' || pattern || ' ' || split_part(category, ' > ', 3) AS what \
         FROM product_annotation.latest ORDER BY asset_id LIMIT 1) \
         SELECT one.what AS product, other.colour || ' ' || other.pattern || ' ' || split_part(other.category, ' > ', 3) AS like_it, \
         other.headers['title'] AS title, round(cosine_similarity(other.embedding, one.embedding), 3) AS similarity \
         FROM product_annotation.latest AS other CROSS JOIN one WHERE other.asset_id <> one.asset_id \
         ORDER BY similarity DESC, other.asset_id LIMIT 5",
    ),
    (
        "Which ads must a reviewer see?",
        "SELECT asset_id, product, array_to_string(policy_flags, ', ') AS flags, call_to_action FROM ad_annotation.latest \
         WHERE cardinality(policy_flags) > 0 ORDER BY asset_id LIMIT 5",
    ),
];

/// Runs the demo.
///
/// # Errors
/// A folder that is not empty or cannot be written, or whatever ends a worker.
pub async fn run(options: DemoOptions, shutdown: CancellationToken) -> Result<()> {
    let started = Instant::now();
    let dir = make_empty(&options.dir)?;
    let (seed, assets) = (Seed::<Shop>::new(options.seed)?, options.assets);
    eprintln!("Drawing {assets} products and ads into {}", dir.display());
    let target = dir.clone();
    let extras = Extras { faults: true, ..Extras::default() };
    let written = tokio::task::spawn_blocking(move || Market::generate(seed, assets).write(&target, extras));
    let written = written.await??;
    write_files(&dir)?;

    let broker = EmbeddedBroker::start()?;
    let kafka =
        KafkaOptions { bootstrap_servers: broker.bootstrap_servers().to_owned(), properties: Default::default() };
    for topic in TOPICS {
        broker.create_topic(topic, PARTITIONS as i32)?;
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
    let session = ask::open(&config, None).await?;
    for (question, sql) in QUESTIONS {
        println!("\n{question}\n");
        ask::print_table(&session, sql).await?;
    }
    let about = About { seed: options.seed, seconds: started.elapsed().as_secs_f64() };
    gallery::write(&session, &dir, about).await?;
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
                submitter.send(topic, Some(partition as i32), key.as_deref(), payload.as_deref(), &headers).await?;
            }
        }
    }
    Ok(submitter.flush().await?)
}

fn print_places(dir: &Path, started: Instant) {
    let dir = dir.display();
    println!(
        "\nDone in {:.1} s. Everything lies in {dir}:\n\
         \x20 gallery.html        each asset with its picture, answer and neighbours: open it in a browser\n\
         \x20 config.toml         for every other verb: assay query --config {dir}/config.toml\n\
         \x20 jobs/, models/      what was done, and with which model\n\
         \x20 topics/, media/     the messages, one file a partition, and their pictures\n\
         \x20 labels.jsonl        the truth: assay eval --job product-annotation --labels {dir}/labels.jsonl --config {dir}/config.toml\n\
         \x20 tables/             Delta tables, for Assay and any other reader",
        started.elapsed().as_secs_f64()
    );
}
