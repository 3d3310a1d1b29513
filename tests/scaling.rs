//! Worker processes that are started and ended as an autoscaler would, over a real Kafka: the lag decides how many there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay::domain::TopicPartition;
use assay::source::{KafkaSource, Source};

use crate::services::kafka::Kafka;
use crate::services::say;
use crate::stage::deployment::{Deployment, Worker};
use crate::stage::tables::{Place, places};
use crate::stage::worker::JOB;

/// Records that one worker may be behind.
const THRESHOLD: i64 = 100;
/// As many as the topic has partitions.
const MOST: usize = 4;
/// Looks at the lag in a row that must ask for fewer before one goes.
const PATIENCE: usize = 6;
const LOOK: Duration = Duration::from_millis(250);

/// A topic that is written to, and the group that reads it.
struct Stream {
    kafka: &'static Kafka,
    topic: &'static str,
    source: KafkaSource,
    partitions: i32,
    sent: i64,
}

impl Stream {
    async fn new(kafka: &'static Kafka, topic: &'static str, partitions: i32) -> Self {
        kafka.create_topic(topic, partitions).await;
        let source = KafkaSource::new(&kafka.options(&[]), topic, &[topic.to_owned()], Arc::default(), JOB).unwrap();
        Self { kafka, topic, source, partitions, sent: 0 }
    }

    /// Sends so many more; a multiple of the partitions.
    async fn send(&mut self, count: i64) {
        self.kafka.submit(self.topic, self.partitions, self.sent..self.sent + count).await;
        self.sent += count;
    }

    async fn told(&self) -> BTreeMap<TopicPartition, i64> {
        self.source.committed().await.expect("the broker answers").into_iter().collect()
    }

    async fn lag(&self) -> i64 {
        self.sent - self.told().await.values().sum::<i64>()
    }

    fn all(&self) -> Vec<Place> {
        let each = self.sent / i64::from(self.partitions);
        let of = |number| (0..each).map(move |offset| (self.topic.to_owned(), number, offset));
        (0..self.partitions).flat_map(of).collect()
    }

    fn deployment(&self, properties: &[(&str, &str)]) -> Deployment {
        let properties: String = properties.iter().map(|(key, value)| format!("\"{key}\" = \"{value}\"\n")).collect();
        let sections = format!(
            "[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n{properties}\
             [tables]\nurl = \"tables\"\n[tables.commit]\nrows = 50\ninterval = \"50ms\"\n",
            self.kafka.bootstrap_servers()
        );
        Deployment::new(self.topic, &sections)
    }
}

/// Workers whose number follows the lag: up at once, down one by one.
struct Autoscaler {
    deployment: Deployment,
    workers: Vec<Worker>,
    started: usize,
    quiet: usize,
    /// How many there were, each time that changed.
    history: Vec<usize>,
}

impl Autoscaler {
    async fn look(&mut self, lag: i64) {
        let wanted = usize::try_from(lag.div_euclid(THRESHOLD) + i64::from(lag % THRESHOLD > 0)).unwrap().min(MOST);
        while self.workers.len() < wanted {
            self.started += 1;
            self.workers.push(self.deployment.worker(&format!("worker-{}", self.started), &[]));
        }
        self.quiet = if wanted < self.workers.len() { self.quiet + 1 } else { 0 };
        if self.quiet >= PATIENCE {
            self.quiet = 0;
            let mut leaving = self.workers.pop().expect("fewer are wanted than there are");
            leaving.signal("TERM");
            let status = leaving.ended().await;
            assert!(status.success(), "{status}: {}", leaving.log());
        }
        if self.history.last() != Some(&self.workers.len()) {
            self.history.push(self.workers.len());
        }
        tokio::time::sleep(LOOK).await;
    }

    /// Looks until there are so many.
    async fn reach(&mut self, stream: &Stream, count: usize) {
        let since = Instant::now();
        while self.workers.len() != count {
            assert!(since.elapsed() < Duration::from_secs(180), "never {count} workers: {:?}", self.history);
            self.look(stream.lag().await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_follow_the_lag_from_none_to_four_to_one_to_none_and_no_row_is_lost_or_doubled() {
    let Some(kafka) = Kafka::shared() else { return };
    let mut stream = Stream::new(kafka, "scaled", MOST as i32).await;
    let deployment = stream.deployment(&[("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "300")]);
    let mut scaler = Autoscaler { deployment, workers: Vec::new(), started: 0, quiet: 0, history: vec![0] };
    scaler.look(stream.lag().await).await;
    assert_eq!(scaler.workers.len(), 0, "nothing to do, nobody there");
    stream.send(1200).await;
    scaler.reach(&stream, MOST).await;
    // A trickle that one worker is enough for.
    let since = Instant::now();
    while scaler.workers.len() != 1 {
        assert!(since.elapsed() < Duration::from_secs(180), "never one worker: {:?}", scaler.history);
        stream.send(20).await;
        scaler.look(stream.lag().await.max(1)).await;
    }
    for _ in 0..PATIENCE {
        stream.send(20).await;
        scaler.look(stream.lag().await.clamp(1, THRESHOLD)).await;
    }
    scaler.reach(&stream, 0).await;
    assert_eq!(places(&scaler.deployment.run.tables(), JOB).await, stream.all(), "{:?}", scaler.history);
    assert_eq!(stream.lag().await, 0);
    let (most, last) = (scaler.history.iter().max(), scaler.history.last());
    assert!(most == Some(&MOST) && last == Some(&0) && scaler.history.contains(&1), "{:?}", scaler.history);
}

/// Where each partition stood, and since when.
#[derive(Default)]
struct Pauses {
    stands: BTreeMap<TopicPartition, (i64, Instant)>,
    longest: BTreeMap<TopicPartition, Duration>,
}

impl Pauses {
    fn look(&mut self, now: BTreeMap<TopicPartition, i64>) {
        for (partition, next) in now {
            let (stood, since) = *self.stands.entry(partition.clone()).or_insert((next, Instant::now()));
            let longest = self.longest.entry(partition.clone()).or_default();
            *longest = (*longest).max(since.elapsed());
            if next != stood {
                self.stands.insert(partition, (next, Instant::now()));
            }
        }
    }

    fn longest(&self) -> Duration {
        self.longest.values().copied().max().unwrap_or_default()
    }
}

/// Watches the partitions while `work` goes on, and a little longer, under a steady load.
async fn watched(stream: &mut Stream, work: impl Future<Output = ()>) -> Duration {
    let mut pauses = Pauses::default();
    let mut work = std::pin::pin!(work);
    let mut done = None;
    while done.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(3)) {
        stream.send(i64::from(stream.partitions)).await;
        pauses.look(stream.told().await);
        tokio::select! {
            () = &mut work, if done.is_none() => done = Some(Instant::now()),
            () = tokio::time::sleep(Duration::from_millis(40)) => {}
        }
    }
    pauses.longest()
}

async fn started(deployment: &Deployment, name: &str, member: &str) -> Worker {
    let settings = [("ASSAY__SOURCE__KAFKA__PROPERTIES__GROUP__INSTANCE__ID", member)];
    let worker = deployment.worker_with(name, if member.is_empty() { &[] } else { &settings });
    worker.says("partitions assigned").await;
    worker
}

/// How the members of a group share the partitions.
struct Protocol {
    name: &'static str,
    topic: &'static str,
    properties: &'static [(&'static str, &'static str)],
    /// Whether a member keeps its name, and with it its partitions, over a restart.
    is_static: bool,
}

/// Three workers, restarted one after the other as a Deployment or a StatefulSet would do it; beside it a fourth one that joins.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test --locked --test main -- --ignored --nocapture rolling_restart"]
async fn a_rolling_restart_pauses_no_partition_for_longer_than_a_rebalance() {
    let Some(kafka) = Kafka::shared() else { return };
    let timeouts: &[(&str, &str)] = &[("session.timeout.ms", "10000"), ("heartbeat.interval.ms", "1000")];
    let protocols = [
        Protocol {
            name: "classic, cooperative-sticky",
            topic: "rolled-classic",
            properties: timeouts,
            is_static: false,
        },
        Protocol { name: "the same, static members", topic: "rolled-static", properties: timeouts, is_static: true },
        Protocol {
            name: "broker-side (KIP-848)",
            topic: "rolled-broker-side",
            properties: &[("group.protocol", "consumer")],
            is_static: false,
        },
    ];
    for Protocol { name, topic, properties, is_static } in protocols {
        let mut stream = Stream::new(kafka, topic, 6).await;
        let deployment = stream.deployment(properties);
        let member = |number: usize| if is_static { format!("worker-{number}") } else { String::new() };
        stream.send(60).await;
        let mut workers = Vec::new();
        for number in 0..3 {
            workers.push(started(&deployment, &format!("first-{number}"), &member(number)).await);
        }
        let joined = watched(&mut stream, async {
            let mut fourth = started(&deployment, "fourth", &member(3)).await;
            fourth.signal("TERM");
            assert!(fourth.ended().await.success(), "{}", fourth.log());
        })
        .await;
        let rolled = watched(&mut stream, async {
            for (number, worker) in workers.iter_mut().enumerate() {
                worker.signal("TERM");
                assert!(worker.ended().await.success(), "{}", worker.log());
                *worker = started(&deployment, &format!("second-{number}"), &member(number)).await;
            }
        })
        .await;
        for mut worker in workers {
            worker.signal("TERM");
            assert!(worker.ended().await.success(), "{}", worker.log());
        }
        deployment.once().await;
        assert_eq!(places(&deployment.run.tables(), JOB).await, stream.all());
        say(&format!(
            "{name}: longest pause of a partition {:.1} s while a fourth joins and leaves, {:.1} s in a rolling restart",
            joined.as_secs_f64(),
            rolled.as_secs_f64()
        ));
    }
}
