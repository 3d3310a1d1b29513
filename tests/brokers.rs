//! Consumer groups and transactions over a real Kafka: both group protocols, members that come and go, aborted records, markers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use assay::engine::{Answer, Inference, InferenceError, ModelDescription, Prepared, Request};
use assay::metrics::Metrics;
use assay::pipeline::{self, Mode, Parts, PipelineError};
use assay::source::{KafkaSource, Source};
use async_trait::async_trait;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::services::kafka::Kafka;
use crate::services::say;
use crate::stage::fakes::{MemoryMedia, ScriptedInference};
use crate::stage::tables::{Place, places};
use crate::stage::worker::{JOB, Run, product, until};

const PARTITIONS: i32 = 4;
/// The two protocols, each with its topic and what a member needs for it.
const CLASSIC: (&str, &[(&str, &str)]) =
    ("classic-group", &[("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "200")]);
const BROKER_SIDE: (&str, &[(&str, &str)]) = ("broker-side-group", &[("group.protocol", "consumer")]);

/// A worker of a group: its pipeline, and what it has done.
struct Member {
    running: JoinHandle<Result<(), PipelineError>>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    progress: Arc<pipeline::Progress>,
}

impl Member {
    fn start(parts: Parts, mode: Mode) -> Self {
        let stop = CancellationToken::new();
        let (metrics, progress) = (parts.metrics.clone(), parts.progress.clone());
        Self { running: tokio::spawn(pipeline::run(parts, mode, stop.clone())), stop, metrics, progress }
    }

    async fn leave(self) -> u64 {
        self.stop.cancel();
        self.ends().await
    }

    async fn ends(self) -> u64 {
        tokio::time::timeout(Duration::from_secs(180), self.running).await.expect("ends").unwrap().expect("ends well");
        self.progress.snapshot().written()
    }

    fn written(&self) -> u64 {
        self.progress.snapshot().written()
    }

    fn rebalances(&self, kind: &str) -> u64 {
        self.metrics.rebalances_total.with_label_values(&[JOB, kind]).get()
    }
}

/// The parts of a worker on one topic, whose name is that of its group as well.
async fn parts(run: &Run, kafka: &Kafka, topic: &str, properties: &[(&str, &str)]) -> Parts {
    let metrics = Arc::new(Metrics::new());
    let options = kafka.options(properties);
    let source = KafkaSource::new(&options, topic, &[topic.to_owned()], metrics.clone(), JOB).expect("source");
    let parts = run.parts_over(Arc::new(source), MemoryMedia::with([]), ScriptedInference::new("tiny")).await;
    Parts { metrics, ..parts }
}

fn expected(topic: &str, count: i64) -> Vec<Place> {
    let each = count / i64::from(PARTITIONS);
    (0..PARTITIONS).flat_map(|number| (0..each).map(move |offset| (topic.to_owned(), number, offset))).collect()
}

/// Three members come and go while records keep coming.
async fn members_come_and_go((topic, properties): (&str, &[(&str, &str)])) {
    let Some(kafka) = Kafka::shared() else { return };
    kafka.create_topic(topic, PARTITIONS).await;
    let run = Run::new();
    let join = async || Member::start(parts(&run, kafka, topic, properties).await, Mode::Continuous);
    kafka.submit(topic, PARTITIONS, 0..400).await;
    let first = join().await;
    until("the first member works", || first.written() > 0).await;
    let second = join().await;
    until("the second has partitions", || second.rebalances("assigned") > 0).await;
    kafka.submit(topic, PARTITIONS, 400..800).await;
    until("the second member works", || second.written() > 0).await;
    assert!(first.rebalances("revoked") > 0, "the second took some from the first");
    let mut written = first.leave().await;
    kafka.submit(topic, PARTITIONS, 800..1200).await;
    let third = join().await;
    until("the third has partitions", || third.rebalances("assigned") > 0).await;
    kafka.submit(topic, PARTITIONS, 1200..1600).await;
    let total = |written: u64| written + second.written() + third.written();
    until("everything is written", || total(written) >= 1600).await;
    written += second.leave().await + third.leave().await;
    assert_eq!(places(&run.tables(), JOB).await, expected(topic, 1600));
    assert_eq!(written, 1600, "no member wrote what another had written");
    // What was told to the broker on the way out is all that there is: no lag is left.
    let source = KafkaSource::new(&kafka.options(properties), topic, &[topic.to_owned()], Arc::default(), JOB).unwrap();
    assert_eq!(source.committed().await.unwrap(), source.ends().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_classic_cooperative_group_come_and_go_and_no_row_is_lost_or_doubled() {
    members_come_and_go(CLASSIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_broker_side_group_come_and_go_and_no_row_is_lost_or_doubled() {
    members_come_and_go(BROKER_SIDE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_answering_is_replaced_under_both_protocols_and_fenced_when_it_returns() {
    let Some(kafka) = Kafka::shared() else { return };
    for (topic, properties) in [("classic-zombie", CLASSIC.1), ("broker-side-zombie", BROKER_SIDE.1)] {
        kafka.create_topic(topic, PARTITIONS).await;
        kafka.submit(topic, PARTITIONS, 0..200).await;
        let run = Run::new();
        let held = ScriptedInference::new("tiny");
        held.held.store(true, Ordering::SeqCst);
        let mut zombie = Parts { inference: held.clone(), ..parts(&run, kafka, topic, properties).await };
        // What is held must not be given up meanwhile.
        Arc::make_mut(&mut zombie.job).limits.deadline = Duration::from_secs(600);
        let zombie = Member::start(zombie, Mode::Continuous);
        until("the zombie has read all", || zombie.progress.snapshot().received >= 200).await;
        // Another group reads the same partitions, as after a session that expired unnoticed.
        let other = format!("{topic}-successor");
        let options = kafka.options(properties);
        let source = KafkaSource::new(&options, &other, &[topic.to_owned()], Arc::default(), JOB).unwrap();
        let successor = run.parts_over(Arc::new(source), MemoryMedia::with([]), ScriptedInference::new("tiny")).await;
        assert_eq!(Member::start(successor, Mode::Once).ends().await, 200);
        held.held.store(false, Ordering::SeqCst);
        held.release.notify_waiters();
        // On a slow machine its session may really expire meanwhile; then it has been fenced already.
        let is_fenced = || zombie.rebalances("assigned") > 1;
        until("the zombie has its answers", || held.answered.load(Ordering::SeqCst) >= 200 || is_fenced()).await;
        assert_eq!(zombie.leave().await, 0, "the zombie writes nothing");
        assert_eq!(places(&run.tables(), JOB).await, expected(topic, 200));
    }
}

/// A device that takes its time for one asset after the other, as a GPU that is the bottleneck does.
struct SlowDevice {
    inner: Arc<ScriptedInference>,
    device: tokio::sync::Mutex<()>,
}

impl SlowDevice {
    const TIME: Duration = Duration::from_millis(20);

    fn new() -> Arc<Self> {
        Arc::new(Self { inner: ScriptedInference::new("tiny"), device: tokio::sync::Mutex::new(()) })
    }
}

#[async_trait]
impl Inference for SlowDevice {
    fn models(&self) -> &[ModelDescription] {
        self.inner.models()
    }

    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError> {
        self.inner.prepare(request)
    }

    async fn infer(&self, prepared: Prepared) -> Result<Answer, InferenceError> {
        let device = self.device.lock().await;
        tokio::time::sleep(Self::TIME).await;
        drop(device);
        self.inner.infer(prepared).await
    }

    fn is_alive(&self) -> bool {
        true
    }
}

/// The time that so many workers take for the same number of assets, once all of them have their partitions.
async fn time_of(workers: usize, topic: &str) -> Option<Duration> {
    const ASSETS: i64 = 300;
    let kafka = Kafka::shared()?;
    kafka.create_topic(topic, PARTITIONS).await;
    let run = Run::new();
    let mut members = Vec::new();
    for _ in 0..workers {
        let parts = parts(&run, kafka, topic, BROKER_SIDE.1).await;
        members.push(Member::start(Parts { inference: SlowDevice::new(), ..parts }, Mode::Continuous));
        until("the member has partitions", || members.iter().all(|member| member.rebalances("assigned") > 0)).await;
    }
    let started = Instant::now();
    kafka.submit(topic, PARTITIONS, 0..ASSETS).await;
    until("everything is written", || members.iter().map(Member::written).sum::<u64>() == ASSETS as u64).await;
    let time = started.elapsed();
    for member in members {
        member.leave().await;
    }
    assert_eq!(places(&run.tables(), JOB).await, expected(topic, ASSETS));
    Some(time)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it by `cargo test --locked --test main -- --ignored --nocapture two_workers` on an idle machine"]
async fn two_workers_are_nearly_twice_as_fast_as_one_when_inference_is_the_bottleneck() {
    let mut gains = Vec::new();
    // What else runs on this machine can only take away from the gain, so the best of a few rounds counts.
    while gains.len() < 3 && gains.iter().all(|gain| *gain < 1.8) {
        let (one, two) = (format!("one-worker-{}", gains.len()), format!("two-workers-{}", gains.len()));
        let (Some(one), Some(two)) = (time_of(1, &one).await, time_of(2, &two).await) else { return };
        gains.push(one.as_secs_f64() / two.as_secs_f64());
        say(&format!("one worker {one:.1?}, two workers {two:.1?}: {gains:.2?} times as fast"));
    }
    assert!(gains.last().is_some_and(|gain| *gain >= 1.8), "{gains:.2?} times as fast");
}

/// Sends records in transactions; `aborted` says which of them are taken back.
fn in_transactions(kafka: &Kafka, topic: &str, aborted: &[bool]) {
    let mut config = kafka.client();
    config.set("transactional.id", topic).set("linger.ms", "0");
    let producer: BaseProducer = config.create().expect("a producer");
    let patience = Duration::from_secs(30);
    producer.init_transactions(patience).expect("transactions work");
    for (number, aborted) in aborted.iter().enumerate() {
        producer.begin_transaction().expect("begun");
        for n in 0..10 {
            let id = format!("{}-{number}-{n}", if *aborted { "aborted" } else { "kept" });
            let payload = product(&id).to_string();
            let record = BaseRecord::to(topic).partition(n % PARTITIONS).key(&id).payload(&payload);
            producer.send(record).map_err(|(error, _)| error).expect("sent");
        }
        // The abort must not drop what still waits in the client: it is to reach the log.
        producer.flush(patience).expect("flushed");
        let ended = if *aborted { producer.abort_transaction(patience) } else { producer.commit_transaction(patience) };
        ended.expect("ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_are_never_seen_and_markers_leave_no_lag() {
    let Some(kafka) = Kafka::shared() else { return };
    for (topic, properties) in [("classic-transactions", CLASSIC.1), ("broker-side-transactions", BROKER_SIDE.1)] {
        kafka.create_topic(topic, PARTITIONS).await;
        tokio::task::block_in_place(|| in_transactions(kafka, topic, &[false, true, false, false, true]));
        let run = Run::new();
        Member::start(parts(&run, kafka, topic, properties).await, Mode::Once).ends().await;
        let (stored, ends) = tokio::task::block_in_place(|| kafka.read_all(topic));
        assert_eq!(stored.len(), 30, "three transactions were kept");
        assert!(stored.iter().all(|record| record.key.as_ref().unwrap().starts_with("kept")));
        let there: Vec<Place> =
            stored.iter().map(|record| (topic.to_owned(), record.partition, record.offset)).collect();
        assert_eq!(places(&run.tables(), JOB).await, there);

        // Each partition ends in the markers of an aborted transaction, which no record follows.
        assert!(ends.iter().sum::<i64>() > 50, "markers take offsets: {ends:?}");
        let member = Member::start(parts(&run, kafka, topic, properties).await, Mode::Continuous);
        let source = KafkaSource::new(&kafka.options(properties), topic, &[topic.to_owned()], Arc::default(), JOB);
        let source = source.unwrap();
        let at_the_ends = async {
            let mut poll = tokio::time::interval(Duration::from_millis(50));
            while source.committed().await.unwrap().iter().map(|(_, next)| *next).ne(ends.iter().copied()) {
                poll.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(180), at_the_ends).await.expect("no lag is left behind the markers");
        assert_eq!(member.leave().await, 0, "there was nothing left to write");
        assert_eq!(places(&run.tables(), JOB).await, there);
    }
}
