//! Consumer groups over librdkafka's mock cluster: members join and leave in the middle of work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use assay::metrics::Metrics;
use assay::pipeline::{self, Mode, Parts, PipelineError};
use assay::source::{EmbeddedBroker, KafkaOptions, KafkaSource, Submitter};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::stage::fakes::{MemoryMedia, ScriptedInference};
use crate::stage::tables::places;
use crate::stage::worker::{JOB, Run, product, until};

const PARTITIONS: i32 = 4;

struct Cluster {
    broker: EmbeddedBroker,
    run: Run,
}

impl Cluster {
    async fn start() -> Self {
        let broker = EmbeddedBroker::start().expect("the mock cluster starts");
        broker.create_topic("products", PARTITIONS).expect("topics can be made");
        Self { broker, run: Run::new() }
    }

    fn options(&self) -> KafkaOptions {
        let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "200")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        KafkaOptions { bootstrap_servers: self.broker.bootstrap_servers().to_owned(), properties }
    }

    async fn submit(&self, from: i64, to: i64) {
        let submitter = Submitter::new(&self.options()).expect("a producer");
        for n in from..to {
            let id = format!("a{n}");
            let payload = product(&id).to_string();
            let partition = Some((n % i64::from(PARTITIONS)) as i32);
            submitter.send("products", partition, Some(&id), Some(payload.as_bytes()), &[]).await.expect("sent");
        }
        submitter.flush().await.expect("delivered");
    }

    async fn worker(&self, inference: Arc<ScriptedInference>) -> Parts {
        let topics = ["products".to_owned()];
        let metrics = Arc::new(Metrics::new());
        let source = KafkaSource::new(&self.options(), "group", &topics, metrics.clone(), JOB).expect("source");
        let parts = self.run.parts_over(Arc::new(source), MemoryMedia::with([]), inference).await;
        Parts { metrics, ..parts }
    }
}

type Running = JoinHandle<Result<(), PipelineError>>;

fn spawn(parts: Parts, mode: Mode) -> (Running, CancellationToken) {
    let shutdown = CancellationToken::new();
    (tokio::spawn(pipeline::run(parts, mode, shutdown.clone())), shutdown)
}

async fn ends(running: Running) {
    tokio::time::timeout(Duration::from_secs(180), running).await.expect("ends").unwrap().expect("ends well");
}

fn expected(count: i64) -> Vec<(String, i32, i64)> {
    let each = count / i64::from(PARTITIONS);
    (0..PARTITIONS)
        .flat_map(|partition| (0..each).map(move |offset| ("products".to_owned(), partition, offset)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_and_leaves_in_the_middle_costs_and_doubles_no_row() {
    let cluster = Cluster::start().await;
    cluster.submit(0, 400).await;
    let first = cluster.worker(ScriptedInference::new("tiny")).await;
    let first_progress = first.progress.clone();
    let (first, stop_first) = spawn(first, Mode::Continuous);
    until("the first member works", || first_progress.snapshot().written() > 0).await;

    let second = cluster.worker(ScriptedInference::new("tiny")).await;
    let (second_metrics, second_progress) = (second.metrics.clone(), second.progress.clone());
    let (second, stop_second) = spawn(second, Mode::Continuous);
    let assigned = || second_metrics.rebalances_total.with_label_values(&[JOB, "assigned"]).get() > 0;
    until("the second member has partitions", assigned).await;
    cluster.submit(400, 1200).await;
    until("the second member works", || second_progress.snapshot().written() > 0).await;
    stop_second.cancel();
    ends(second).await;
    cluster.submit(1200, 1400).await;
    let total = || first_progress.snapshot().written() + second_progress.snapshot().written();
    until("everything is written", || total() >= 1400).await;
    stop_first.cancel();
    ends(first).await;
    assert_eq!(places(&cluster.run.tables(), JOB).await, expected(1400));
    assert_eq!(total(), 1400, "no member wrote what another had written");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_ends_when_everything_that_was_there_is_durable_and_the_next_run_adds_nothing() {
    let cluster = Cluster::start().await;
    cluster.submit(0, 200).await;
    for _ in 0..2 {
        let inference = ScriptedInference::new("tiny");
        let (running, _stop) = spawn(cluster.worker(inference.clone()).await, Mode::Once);
        ends(running).await;
        assert_eq!(places(&cluster.run.tables(), JOB).await, expected(200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_a_revoked_partition_is_dropped_and_done_by_its_new_owner() {
    let cluster = Cluster::start().await;
    cluster.submit(0, 200).await;
    let held = ScriptedInference::new("tiny");
    held.held.store(true, Ordering::SeqCst);
    let first = cluster.worker(held.clone()).await;
    let first_progress = first.progress.clone();
    let (first, stop_first) = spawn(first, Mode::Continuous);
    until("the first member has read all", || first_progress.snapshot().received == 200).await;

    let second = cluster.worker(ScriptedInference::new("tiny")).await;
    let second_progress = second.progress.clone();
    let (second, stop_second) = spawn(second, Mode::Continuous);
    until("the second member has done its share", || second_progress.snapshot().written() >= 50).await;
    held.held.store(false, Ordering::SeqCst);
    held.release.notify_waiters();
    let total = || first_progress.snapshot().written() + second_progress.snapshot().written();
    until("everything is written", || total() >= 200).await;
    stop_first.cancel();
    ends(first).await;
    stop_second.cancel();
    ends(second).await;
    assert_eq!(places(&cluster.run.tables(), JOB).await, expected(200));
}
