//! Workers that die at a chosen point of their work; the next one goes on and no row is lost or doubled.
//!
//! `crash` and `chaos` kill at any point; here the point is known. Where the work is held by a fake, dying is the end of the task,
//! which leaves no more behind than the end of a process does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use assay::pipeline::{self, Mode};
use assay::source::{KafkaSource, Source};
use tokio_util::sync::CancellationToken;

use crate::chaos::plan::Weather;
use crate::chaos::weather::Proxy;
use crate::services::kafka::Kafka;
use crate::services::object_store::ObjectStore;
use crate::stage::deployment::Deployment;
use crate::stage::fakes::{MemoryMedia, ScriptedInference};
use crate::stage::tables::{Place, Warehouse, count, places};
use crate::stage::worker::{JOB, Run, once, pictured, product, until};

const PARTITIONS: i32 = 2;
/// Longer than any test; the weather is cleared before.
const LONG: Duration = Duration::from_secs(300);

fn all(topic: &str, each: i64) -> Vec<Place> {
    (0..PARTITIONS).flat_map(|number| (0..each).map(move |offset| (topic.to_owned(), number, offset))).collect()
}

/// Sections for a broker and for tables in the deployment's own folder.
fn local_tables(kafka: &Kafka) -> String {
    format!(
        "[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n\"session.timeout.ms\" = 3000\n\"heartbeat.interval.ms\" = 300\n\
         [tables]\nurl = \"tables\"\n[tables.commit]\nrows = 50\ninterval = \"50ms\"\n",
        kafka.bootstrap_servers()
    )
}

/// Sections for a broker and for tables in a store behind the weather.
fn remote_tables(kafka: &Kafka, store: &ObjectStore, proxy: &Proxy, folder: &str) -> String {
    format!(
        "[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n\"session.timeout.ms\" = 3000\n\"heartbeat.interval.ms\" = 300\n\
         [tables]\nurl = \"{}\"\n[tables.commit]\nrows = 50\ninterval = \"50ms\"\n[tables.options]\n{}timeout = \"5s\"\n",
        kafka.bootstrap_servers(),
        store.url(folder),
        store.lines(&proxy.endpoint),
    )
}

fn warehouse(store: &ObjectStore, folder: &str) -> Warehouse {
    Warehouse { url: store.url(folder), options: store.options() }
}

/// Waits until both tables have so many rows.
async fn rows(tables: &Warehouse, count: usize) {
    let all_there = async {
        let mut poll = tokio::time::interval(Duration::from_millis(100));
        while tables.places(JOB).await.len() < count {
            poll.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(180), all_there).await.expect("the rows are written in time");
}

/// Offsets that the group has told the broker.
async fn told(kafka: &Kafka, topic: &str) -> i64 {
    let source = KafkaSource::new(&kafka.options(&[]), topic, &[topic.to_owned()], Arc::default(), JOB).unwrap();
    source.committed().await.expect("the broker answers").iter().map(|(_, next)| next).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_decodes_or_infers_has_written_nothing_of_it() {
    for held in [false, true] {
        let run = Run::new();
        for partition in 0..PARTITIONS {
            run.write(partition, &(0..100).map(|n| product(&format!("p{partition}-{n}"))).collect::<Vec<_>>());
        }
        let inference = ScriptedInference::new("tiny");
        inference.held.store(held, Ordering::SeqCst);
        let parts = run.parts(MemoryMedia::with([]), inference).await;
        let progress = parts.progress.clone();
        let running = tokio::spawn(pipeline::run(parts, Mode::Continuous, CancellationToken::new()));
        let wanted = if held { 200 } else { 1 };
        until("records are under way", || progress.snapshot().received >= wanted).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled(), "it died in the middle");
        if held {
            assert_eq!(places(&run.tables(), JOB).await, [], "nothing was settled");
        }
        once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
        assert_eq!(places(&run.tables(), JOB).await, all("products", 100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_while_it_fetches_has_written_nothing_of_it() {
    let (Some(kafka), Some(store)) = (Kafka::shared(), ObjectStore::shared()) else { return };
    let topic = "killed-while-fetching";
    kafka.create_topic(topic, PARTITIONS).await;
    crate::chaos::put_picture(store).await;
    let proxy = Proxy::start(store.endpoint().unwrap(), 1).await;
    let media = format!(
        "[media]\nallow = [\"s3://assay/media\"]\n[media.stores.\"s3://assay\"]\n{}",
        store.lines(&proxy.endpoint)
    );
    let deployment = Deployment::new(topic, &format!("{}{media}", local_tables(kafka)));
    let messages = (0..40).map(|n| pictured(&format!("a{n}"), "s3://assay/media/red.png"));
    kafka.submit_all(topic, PARTITIONS, messages).await;
    proxy.turn(Weather::Silent, 1.0, LONG);
    let worker = deployment.worker("first", &[]);
    until("pictures are asked for", || proxy.hits() > 0).await;
    worker.kill();
    proxy.clear();
    deployment.once().await;
    let tables = deployment.run.tables();
    assert_eq!(places(&tables, JOB).await, all(topic, 20));
    assert_eq!(count(&tables, JOB, "SELECT count(*) FROM results WHERE picture IS NOT NULL").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_before_it_tells_the_broker_goes_on_where_the_tables_end() {
    let (Some(kafka), Some(store)) = (Kafka::shared(), ObjectStore::shared()) else { return };
    let topic = "killed-before-telling";
    kafka.create_topic(topic, PARTITIONS).await;
    let proxy = Proxy::start(store.endpoint().unwrap(), 4).await;
    let deployment = Deployment::new(topic, &remote_tables(kafka, store, &proxy, topic));
    let tables = warehouse(store, topic);
    // The tables are there before the first kill.
    kafka.submit(topic, PARTITIONS, 0..200).await;
    deployment.once().await;
    for kill in 1..4 {
        let worker = deployment.worker("killed", &[]);
        worker.says("partitions assigned").await;
        let hits = proxy.hits();
        proxy.leave_versions_untold("results");
        kafka.submit(topic, PARTITIONS, kill * 200..(kill + 1) * 200).await;
        until("a commit is durable", || proxy.hits() > hits).await;
        worker.kill();
        let written = tables.places(JOB).await.len() as i64;
        let told = told(kafka, topic).await;
        assert!(told < written, "the worker told the broker {told} of {written} rows, and knew of fewer");
        proxy.clear();
    }
    deployment.once().await;
    assert_eq!(tables.places(JOB).await, all(topic, 400));
    assert_eq!(told(kafka, topic).await, 800, "no lag is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_within_a_rebalance_callback_is_replaced_and_what_it_wrote_stays_once() {
    let (Some(kafka), Some(store)) = (Kafka::shared(), ObjectStore::shared()) else { return };
    let topic = "killed-in-callback";
    kafka.create_topic(topic, PARTITIONS).await;
    let proxy = Proxy::start(store.endpoint().unwrap(), 2).await;
    let deployment = Deployment::new(topic, &remote_tables(kafka, store, &proxy, topic));
    kafka.submit(topic, PARTITIONS, 0..100).await;
    let first = deployment.worker("first", &[]);
    let tables = warehouse(store, topic);
    first.says("partitions assigned").await;
    rows(&tables, 100).await;
    // A commit that the store does not answer is in flight when the partitions are asked back.
    proxy.turn(Weather::Silent, 1.0, LONG);
    kafka.submit(topic, PARTITIONS, 100..400).await;
    until("a commit is in flight", || proxy.hits() > 0).await;
    let mut second = deployment.verb(&["run", "--job", JOB]);
    second.env("ASSAY__TABLES__OPTIONS__AWS_ENDPOINT_URL", store.endpoint().unwrap());
    second.stderr(std::process::Stdio::null());
    let second = crate::stage::worker::Leash(second.spawn().expect("the binary starts"));
    first.says("partitions revoked").await;
    first.kill();
    rows(&tables, 400).await;
    drop(second);
    assert_eq!(tables.places(JOB).await, all(topic, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_while_it_drains_leaves_the_rest_to_the_next() {
    let (Some(kafka), Some(store)) = (Kafka::shared(), ObjectStore::shared()) else { return };
    let topic = "killed-while-draining";
    kafka.create_topic(topic, PARTITIONS).await;
    kafka.submit(topic, PARTITIONS, 0..400).await;
    let proxy = Proxy::start(store.endpoint().unwrap(), 3).await;
    let deployment = Deployment::new(topic, &remote_tables(kafka, store, &proxy, topic));
    let worker = deployment.worker("first", &[]);
    worker.says("partitions assigned").await;
    proxy.turn(Weather::Forgetful, 1.0, LONG);
    until("a commit is in flight", || proxy.hits() > 0).await;
    worker.signal("TERM");
    worker.says("draining").await;
    worker.kill();
    proxy.clear();
    deployment.once().await;
    assert_eq!(warehouse(store, topic).places(JOB).await, all(topic, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_for_longer_than_its_session_is_fenced_and_goes_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = "stood-still";
    kafka.create_topic(topic, PARTITIONS).await;
    let deployment = Deployment::new(topic, &local_tables(kafka));
    kafka.submit(topic, PARTITIONS, 0..400).await;
    let mut zombie = deployment.worker("zombie", &[]);
    zombie.says("partitions assigned").await;
    zombie.signal("STOP");
    deployment.once().await;
    assert_eq!(places(&deployment.run.tables(), JOB).await, all(topic, 200));
    zombie.signal("CONT");
    kafka.submit(topic, PARTITIONS, 400..600).await;
    let tables = Warehouse { url: deployment.run.tables(), options: Default::default() };
    tokio::select! {
        () = rows(&tables, 600) => {}
        status = zombie.ended() => panic!("{status}: {}", zombie.log()),
    }
    zombie.signal("TERM");
    assert!(zombie.ended().await.success(), "{}", zombie.log());
    assert_eq!(places(&deployment.run.tables(), JOB).await, all(topic, 300));
}
