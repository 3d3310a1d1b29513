//! A run of the plan: real workers, three real brokers, a real store behind bad weather; then the verdict.
//!
//! The short form is part of every test run; the long one is `make chaos`. The seed is printed and decides the plan, so
//! `ASSAY_CHAOS_SEED` plays a failing history again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use assay::domain::TopicPartition;
use assay::job::{JobSpec, rejections_schema, results_schema};
use assay::metrics::Metrics;
use assay::sink::{DeltaSink, Options, Sink};
use assay::source::Submitter;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::figures::{Commits, Recovery, share_of};
use super::fleet::{Fleet, note};
use super::plan::{Moment, Step, plan};
use super::verdict::{judge, message};
use super::weather::Proxy;
use crate::services::kafka::Kafka;
use crate::services::object_store::ObjectStore;
use crate::services::say;
use crate::stage::fakes::png;
use crate::stage::tables::Warehouse;
use crate::stage::worker::{JOB, JOB_FILE, Run, assay, quick};

const WORKERS: usize = 3;
const PARTITIONS: i32 = 6;
const TOPIC: &str = "products";
/// Between two messages.
const PACE: Duration = Duration::from_millis(20);
/// How long the workers may take for what is left when everything works again.
const REST: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn workers_lose_and_double_nothing_in_a_short_storm() {
    storm(setting("ASSAY_CHAOS_SEED").unwrap_or(20_260_101), Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour: make chaos"]
async fn workers_lose_and_double_nothing_in_a_long_storm() {
    let seconds = setting("ASSAY_CHAOS_SECONDS").unwrap_or(3600);
    storm(setting("ASSAY_CHAOS_SEED").unwrap_or_else(rand::random), Duration::from_secs(seconds)).await;
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    Some(value.to_str().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is no number")))
}

/// Everything that stands around the workers.
struct Scene {
    run: Run,
    kafka: Arc<Kafka>,
    proxy: Proxy,
    /// The tables as an onlooker reaches them, without the weather.
    tables: Options,
    history: File,
    started: Instant,
    brokers: JoinSet<()>,
    upkeeps: JoinSet<()>,
}

#[expect(clippy::too_many_lines, reason = "the story of one storm, in its order")]
async fn storm(seed: u64, length: Duration) {
    let Some(store) = ObjectStore::shared() else { return };
    let Some(kafka) = tokio::task::block_in_place(Kafka::three) else { return };
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}.log"));
    let history = File::create(&path).expect("a file for the history");
    say(&format!("chaos: seed {seed} for {} s, history in {}", length.as_secs(), path.display()));
    let mut scene = Scene::build(store, kafka, seed, history).await;
    scene.kafka.create_topic(TOPIC, PARTITIONS).await;

    let stop = CancellationToken::new();
    let feeding = tokio::spawn(feed(scene.kafka.clone(), stop.clone()));
    let mut fleet = Fleet::start(scene.run.path(), WORKERS);
    let recovery = Arc::new(Mutex::new(Recovery::default()));
    let commits = Arc::new(Mutex::new(Commits::default()));
    let watching = CancellationToken::new();
    let onlookers = [
        tokio::spawn(watch(scene.tables.clone(), recovery.clone(), watching.clone())),
        tokio::spawn(scrape(fleet.metrics(), commits.clone(), watching.clone())),
    ];

    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut moments = plan(seed, length, WORKERS).into_iter().peekable();
    while scene.started.elapsed() < length {
        tick.tick().await;
        fleet.tend();
        while let Some(moment) = moments.next_if(|moment| moment.at <= scene.started.elapsed()) {
            scene.apply(moment, &mut fleet, &recovery);
        }
    }
    scene.proxy.clear();
    stop.cancel();
    let sent = in_time("the last messages are delivered", feeding).await.expect("all messages were delivered");
    note(&mut scene.history, &format!("{sent} messages were sent"));
    in_time("all brokers are back", ended(&mut scene.brokers)).await;
    note(&mut scene.history, "all brokers are back");
    in_time("upkeep ends", ended(&mut scene.upkeeps)).await;
    note(&mut scene.history, "no upkeep runs");
    let kafka = scene.kafka.clone();
    let (topic, _) = tokio::task::block_in_place(|| kafka.read_all(TOPIC));
    assert_eq!(topic.len() as u64, sent, "the topic has what was delivered");
    scene.settle(&mut fleet, &topic).await;
    note(&mut scene.history, "the tables end where the topic does");
    watching.cancel();
    for onlooker in onlookers {
        onlooker.await.expect("an onlooker ends");
    }
    let (surprises, hits) = (std::mem::take(&mut fleet.surprises), scene.proxy.hits());
    fleet.keep_logs(&path);
    let tally = fleet.stop().await;
    let tables = Warehouse { url: scene.tables.url.clone(), options: scene.tables.options.clone() };
    let verdict = judge(&tables, &topic).await;

    let times = recovery.lock().unwrap().times();
    let ((half, count), (most, _)) = {
        let commits = commits.lock().unwrap();
        (commits.quantile(0.5), commits.quantile(0.99))
    };
    let report = format!(
        "chaos: seed {seed}: {} rows, {} lost, {} doubled; {tally:?}, {hits} requests hit; \
         commits p50 <= {half} s, p99 <= {most} s of {count} seen; \
         recovery after a kill p50 {:.1?}, p99 {:.1?} of {} measured; surprises {surprises:#?}",
        verdict.rows,
        verdict.lost,
        verdict.doubled,
        share_of(&times, 0.5),
        share_of(&times, 0.99),
        times.len(),
    );
    note(&mut scene.history, &report);
    say(&report);
    let is_good = verdict.is_clean() && surprises.is_empty();
    if !is_good {
        let folder = scene.run.folder.keep();
        panic!("seed {seed}: {verdict:#?}\n{surprises:#?}\nlogs of the workers in {}", folder.display());
    }
}

impl Scene {
    async fn build(store: &ObjectStore, kafka: Kafka, seed: u64, history: File) -> Self {
        let proxy = Proxy::start(store.endpoint().expect("an S3 server"), seed).await;
        let run = Run::new();
        let url = store.url(&format!("chaos-{:016x}", rand::random::<u64>()));
        let tables = Options { url, options: store.options(), retry: quick(), ..Options::default() };
        put_picture(store).await;
        write_configuration(run.path(), &kafka, &tables.url, &store.lines(&proxy.endpoint), seed);
        let (started, kafka) = (Instant::now(), Arc::new(kafka));
        let (brokers, upkeeps) = (JoinSet::new(), JoinSet::new());
        Self { run, kafka, proxy, tables, history, started, brokers, upkeeps }
    }

    fn apply(&mut self, moment: Moment, fleet: &mut Fleet, recovery: &Mutex<Recovery>) {
        note(&mut self.history, &moment.to_string());
        match moment.step {
            Step::Kill { worker } => {
                fleet.kill(worker);
                recovery.lock().unwrap().killed();
            }
            Step::Freeze { worker, length } => fleet.freeze(worker, length),
            Step::Terminate { worker } => fleet.terminate(worker),
            Step::Clock { worker, seconds } if fleet.has_clock() => {
                fleet.count("clock jumps");
                fleet.set_clock(worker, seconds);
            }
            Step::Weather { kind, share, length } => {
                fleet.count("bad weather");
                self.proxy.turn(kind, share, length);
            }
            // With two of three brokers down nothing would be taken any more.
            Step::Broker { number, kill, length }
                if self.brokers.try_join_next().is_some() || self.brokers.is_empty() =>
            {
                fleet.count("broker outages");
                let kafka = self.kafka.clone();
                self.brokers.spawn(async move {
                    let down = kafka.clone();
                    let down = move || if kill { down.kill_broker(number) } else { down.stop_broker(number) };
                    tokio::task::spawn_blocking(down).await.expect("the broker goes");
                    tokio::time::sleep(length).await;
                    tokio::task::spawn_blocking(move || kafka.start_broker(number)).await.expect("it comes back");
                });
            }
            Step::Upkeep => {
                fleet.count("upkeeps");
                // Two at once: a slow one may still run when the next one is due.
                for _ in 0..2 {
                    let config = self.run.path().join("config.toml");
                    self.upkeeps.spawn(async move {
                        let mut upkeep = tokio::process::Command::from(assay());
                        upkeep.args(["upkeep", "--config"]).arg(config).kill_on_drop(true);
                        // In bad weather it may fail; the next one tries again.
                        let _ = upkeep.output().await;
                    });
                }
            }
            Step::Clock { .. } | Step::Broker { .. } => {}
        }
    }

    /// Waits until the tables end where the topic does.
    async fn settle(&mut self, fleet: &mut Fleet, topic: &[crate::services::kafka::Stored]) {
        let onlooker = onlooker(&self.tables).await;
        let last =
            |number: i32| topic.iter().filter(|record| record.partition == number).map(|record| record.offset).max();
        let ends: Vec<_> = (0..PARTITIONS).map(last).collect();
        let (since, mut tick) = (Instant::now(), tokio::time::interval(Duration::from_millis(200)));
        loop {
            tick.tick().await;
            fleet.tend();
            let now = onlooker.committed(&partitions()).await.expect("the store answers");
            if now == ends {
                return;
            }
            if since.elapsed() > REST {
                let folder = std::mem::replace(&mut self.run, Run::new()).folder.keep();
                panic!("the tables end at {now:?}, the topic at {ends:?}; logs in {}", folder.display());
            }
        }
    }
}

/// How long the workers and servers may take for anything when everything works again.
async fn in_time<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(REST, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

async fn ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn partitions() -> Vec<TopicPartition> {
    (0..PARTITIONS).map(|number| TopicPartition::new(TOPIC, number)).collect()
}

/// Reads the tables, writes nothing.
async fn onlooker(tables: &Options) -> DeltaSink {
    let job = JobSpec::parse(Path::new("embedding.toml"), JOB_FILE).expect("the job is right");
    let results = results_schema(&job, |_| Some(1)).expect("the model is known");
    DeltaSink::new(JOB, tables, results, rejections_schema(), Arc::new(Metrics::new())).expect("a sink")
}

/// Sends messages at a steady pace until it is told to stop; how many there were.
async fn feed(kafka: Arc<Kafka>, stop: CancellationToken) -> u64 {
    let submitter = Submitter::new(&kafka.options(&[])).expect("a producer");
    let mut pace = tokio::time::interval(PACE);
    let mut number = 0;
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let (key, payload) = (format!("a{number}"), message(number).to_string());
        let partition = Some((number % i64::from(PARTITIONS)) as i32);
        submitter.send(TOPIC, partition, Some(&key), Some(payload.as_bytes()), &[]).await.expect("taken");
        number += 1;
    }
    submitter.flush().await.expect("delivered")
}

/// Notes where the tables stand, several times a second.
async fn watch(tables: Options, recovery: Arc<Mutex<Recovery>>, stop: CancellationToken) {
    let onlooker = onlooker(&tables).await;
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Ok(positions) = onlooker.committed(&partitions()).await {
            let positions = positions.into_iter().map(|position| position.unwrap_or(-1)).collect();
            recovery.lock().unwrap().sample(positions);
        }
    }
}

/// Asks the workers how long their commits take.
async fn scrape(addresses: Vec<String>, commits: Arc<Mutex<Commits>>, stop: CancellationToken) {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(500)).build().expect("a client");
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        for address in &addresses {
            // Whoever is frozen or just starting does not answer.
            let Ok(answer) = client.get(address).send().await else { continue };
            if let Ok(text) = answer.text().await {
                commits.lock().unwrap().take(address, &text);
            }
        }
    }
}

/// Stores the one picture that messages refer to.
pub async fn put_picture(store: &ObjectStore) {
    let mut builder = AmazonS3Builder::new().with_url(store.url(""));
    for (key, value) in store.options() {
        builder = builder.with_config(key.parse::<AmazonS3ConfigKey>().expect("a key of S3"), value);
    }
    let bucket = builder.build().expect("a bucket");
    bucket.put(&"media/red.png".into(), PutPayload::from(png(40, 30))).await.expect("the picture is stored");
}

fn write_configuration(folder: &Path, kafka: &Kafka, url: &str, store: &str, seed: u64) {
    let job = JOB_FILE.replace("deadline = \"2s\"", "deadline = \"60s\"");
    std::fs::create_dir_all(folder.join("jobs")).unwrap();
    std::fs::write(folder.join("jobs/embedding.toml"), job).unwrap();
    // Both group protocols have their turn.
    let group = match seed % 2 {
        0 => "\"session.timeout.ms\" = 3000\n\"heartbeat.interval.ms\" = 300\n",
        _ => "\"group.protocol\" = \"consumer\"\n",
    };
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/parity/models/clip");
    let config = format!(
        "jobs = \"jobs\"\n[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n{group}\
         [media]\nallow = [\"s3://assay/media\"]\nresponse_timeout = \"3s\"\nstall_timeout = \"3s\"\n\
         [media.retry]\nmaximum = \"1s\"\n[media.stores.\"s3://assay\"]\n{store}\
         [tables]\nurl = \"{}\"\n[tables.commit]\nrows = 100\ninterval = \"500ms\"\n[tables.retry]\nmaximum = \"1s\"\n\
         [tables.options]\n{store}timeout = \"4s\"\n[pipeline]\nassets = 256\ncpu_threads = 1\n\
         [models.tiny]\npath = \"{model}\"\n[run]\ngrace = \"20s\"\n",
        kafka.bootstrap_servers(),
        url,
    );
    std::fs::write(folder.join("config.toml"), config).unwrap();
}
