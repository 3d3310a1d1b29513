//! The Kafka source against the embedded broker: real joins, leaves, fetches and commits.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use tokio::sync::mpsc;

use super::member::Shared;
use super::rebalance::Context;
use super::{EmbeddedBroker, KafkaOptions, KafkaSource, SubmitError, Submitter};
use crate::domain::{Epoch, TopicPartition};
use crate::metrics::Metrics;
use crate::source::api::{Flow, Rebalance, Record, Source, SourceError, Streams};

const SOON: Duration = Duration::from_secs(60);

fn options(broker: &EmbeddedBroker, properties: &[(&str, &str)]) -> KafkaOptions {
    options_at(broker.bootstrap_servers().to_owned(), properties)
}

fn options_at(bootstrap_servers: String, properties: &[(&str, &str)]) -> KafkaOptions {
    // The embedded broker forgets members whose session is shorter than its three seconds before a first assignment.
    let quick = [("session.timeout.ms", "4000"), ("heartbeat.interval.ms", "100"), ("fetch.wait.max.ms", "50")];
    let properties = quick.iter().chain(properties).map(|(key, value)| (key.to_string(), value.to_string())).collect();
    KafkaOptions { bootstrap_servers, properties }
}

fn source(options: &KafkaOptions, topics: &[&str], metrics: &Arc<Metrics>) -> KafkaSource {
    let topics: Vec<_> = topics.iter().map(ToString::to_string).collect();
    KafkaSource::new(options, "group", &topics, metrics.clone(), "job").unwrap()
}

fn partition(topic: &str, number: i32) -> TopicPartition {
    TopicPartition::new(topic, number)
}

async fn submit(options: &KafkaOptions, topic: &str, partitions: i32, numbers: std::ops::Range<i64>) {
    let submitter = Submitter::new(options).unwrap();
    for number in numbers.clone() {
        for partition in 0..partitions {
            let payload = number.to_string();
            submitter.send(topic, Some(partition), Some("k"), Some(payload.as_bytes()), &[]).await.unwrap();
        }
    }
    assert_eq!(submitter.flush().await.unwrap() as i64, (numbers.end - numbers.start) * i64::from(partitions));
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it should have happened by now")
}

/// Answers one assignment.
async fn answer(streams: &mut Streams, starts: &[(TopicPartition, i64)]) -> (Vec<TopicPartition>, Epoch) {
    match soon(streams.rebalances.recv()).await.unwrap() {
        Rebalance::Assigned { partitions, epoch, resume } => {
            resume.send(starts.to_vec()).unwrap();
            (partitions, epoch)
        }
        other => panic!("expected an assignment, got {other:?}"),
    }
}

/// Reads until the end of each partition was told; gives the records and the ends.
async fn read_to_ends(streams: &mut Streams, partitions: usize) -> (Vec<Record>, BTreeMap<TopicPartition, i64>) {
    let (mut records, mut ends) = (Vec::new(), BTreeMap::new());
    while ends.len() < partitions {
        match soon(streams.flow.recv()).await.unwrap() {
            Flow::Record(record) => records.push(record),
            Flow::EndReached { partition, next, .. } => {
                ends.insert(partition, next);
            }
        }
    }
    (records, ends)
}

/// Closes while answering what has to be answered; both streams must end.
async fn leave(source: &KafkaSource, streams: &mut Streams) {
    let answering = async {
        while let Some(rebalance) = streams.rebalances.recv().await {
            match rebalance {
                Rebalance::Assigned { resume, .. } => drop(resume.send(Vec::new())),
                Rebalance::Revoked { done, .. } => drop(done.send(())),
            }
        }
        while streams.flow.recv().await.is_some() {}
    };
    soon(async { tokio::join!(source.close(), answering) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_in_order_from_the_resume_offsets_and_commits_bring_the_lag_to_zero() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("a", 2).unwrap();
    broker.create_topic("b", 1).unwrap();
    let (options, metrics) = (options(&broker, &[]), Arc::new(Metrics::new()));
    submit(&options, "a", 2, 0..10).await;
    submit(&options, "b", 1, 0..3).await;
    let submitter = Submitter::new(&options).unwrap();
    submitter.send("b", Some(0), Some("gone"), None, &[("h".into(), "v".into())]).await.unwrap();
    submitter.flush().await.unwrap();

    let source = source(&options, &["a", "b"], &metrics);
    let mut streams = source.start().unwrap();
    assert!(!source.is_member());
    let mut epochs = HashMap::new();
    while epochs.len() < 3 {
        let (partitions, epoch) = answer(&mut streams, &[(partition("a", 0), 4)]).await;
        epochs.extend(partitions.into_iter().map(|partition| (partition, epoch)));
    }
    let (records, ends) = read_to_ends(&mut streams, 3).await;
    let expected = [(partition("a", 0), 10), (partition("a", 1), 10), (partition("b", 0), 4)];
    assert_eq!(ends, expected.clone().into());
    assert_eq!(soon(source.ends()).await.unwrap(), expected);
    assert!(source.is_member());
    let mut next = HashMap::from([(partition("a", 0), 4)]);
    for record in &records {
        let next = next.entry(record.origin.partition.clone()).or_insert(0);
        assert_eq!((record.origin.offset, record.epoch), (*next, epochs[&record.origin.partition]));
        *next += 1;
    }
    assert_eq!(records.len(), 20);
    let tombstone = records.iter().find(|record| record.payload.is_none()).unwrap();
    assert_eq!(tombstone.origin.key.as_deref(), Some("gone"));
    assert_eq!(tombstone.origin.headers, [("h".to_owned(), Some("v".to_owned()))]);
    assert!(tombstone.origin.message_time.unwrap() > 1_500_000_000_000_000);

    assert_eq!(soon(source.committed()).await.unwrap().iter().map(|(_, position)| position).sum::<i64>(), 0);
    soon(source.commit(expected.to_vec())).await.unwrap();
    assert_eq!(soon(source.committed()).await.unwrap(), expected);
    let lag = |number: &str| format!("assay_lag_records{{job=\"job\",partition=\"{number}\",topic=\"a\"}} 0");
    soon(async {
        while !(metrics.render().contains(&lag("0")) && metrics.render().contains(&lag("1"))) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    leave(&source, &mut streams).await;
    assert!(!metrics.render().contains("assay_lag_records{"));
    assert!(matches!(source.start(), Err(SourceError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reassigned_partition_starts_again_under_a_new_epoch() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 2).unwrap();
    let options = options(&broker, &[]);
    submit(&options, "t", 2, 0..50).await;
    let source = source(&options, &["t"], &Arc::new(Metrics::new()));
    let mut streams = source.start().unwrap();
    let (_, first) = answer(&mut streams, &[]).await;
    read_to_ends(&mut streams, 2).await;
    source.reassign(vec![partition("t", 1), partition("t", 9)]);
    let (partitions, second) = answer(&mut streams, &[(partition("t", 1), 45)]).await;
    assert_eq!(partitions, [partition("t", 1)]);
    assert!(second > first);
    let (records, ends) = read_to_ends(&mut streams, 1).await;
    let offsets: Vec<_> = records.iter().map(|record| (record.origin.offset, record.epoch)).collect();
    assert_eq!(offsets, (45..50).map(|offset| (offset, second)).collect::<Vec<_>>());
    assert_eq!(ends, [(partition("t", 1), 50)].into());
    leave(&source, &mut streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_back_to_the_beginning_by_itself_is_sent_forward_again() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let options = options_at(cluster.bootstrap_servers(), &[]);
    submit(&options, "t", 1, 0..50).await;
    let source = source(&options, &["t"], &Arc::new(Metrics::new()));
    let mut streams = source.start().unwrap();
    let ours = partition("t", 0);
    match soon(streams.rebalances.recv()).await.unwrap() {
        Rebalance::Assigned { resume, .. } => {
            // The client is still asking for the earliest offset when it is sent elsewhere, and will ask again.
            cluster.broker_round_trip_time(1, Duration::from_millis(400)).unwrap();
            source.reassign(vec![ours.clone()]);
            resume.send(Vec::new()).unwrap();
        }
        other => panic!("expected an assignment, got {other:?}"),
    }
    answer(&mut streams, &[(ours.clone(), 45)]).await;
    let (_, last) = answer(&mut streams, &[(ours.clone(), 45)]).await;
    let mut offsets = Vec::new();
    loop {
        match soon(streams.flow.recv()).await.unwrap() {
            Flow::Record(record) if record.epoch == last => offsets.push(record.origin.offset),
            Flow::EndReached { epoch, next, .. } if epoch == last => break assert_eq!(next, 50),
            Flow::Record(Record { origin, .. }) => assert!(origin.offset >= 45, "{}", origin.offset),
            Flow::EndReached { .. } => {}
        }
    }
    assert_eq!(offsets, (45..50).collect::<Vec<_>>());
    leave(&source, &mut streams).await;
}

/// What both workers of the next test have written: the next offset of each partition.
type Table = Arc<Mutex<HashMap<TopicPartition, i64>>>;

/// Runs one worker until its source has ended; reports each record it has written.
async fn work(mut streams: Streams, table: Table, written: mpsc::Sender<()>) {
    let mut epochs: HashMap<TopicPartition, Epoch> = HashMap::new();
    let write = async |item: Flow, epochs: &HashMap<TopicPartition, Epoch>| {
        let Flow::Record(record) = item else { return };
        let key = record.origin.partition.clone();
        assert_eq!(epochs.get(&key), Some(&record.epoch), "a record of a partition that is not ours");
        let next = {
            let mut table = table.lock().unwrap();
            let next = table.entry(key).or_insert(0);
            std::mem::replace(next, record.origin.offset + 1)
        };
        assert_eq!(next, record.origin.offset, "lost or doubled");
        written.send(()).await.unwrap();
    };
    loop {
        tokio::select! {
            biased;
            Some(rebalance) = streams.rebalances.recv() => match rebalance {
                Rebalance::Assigned { partitions, epoch, resume } => {
                    epochs.extend(partitions.iter().map(|partition| (partition.clone(), epoch)));
                    let starts = table.lock().unwrap().iter().map(|(key, next)| (key.clone(), *next)).collect();
                    resume.send(starts).unwrap();
                }
                Rebalance::Revoked { partitions, done } => {
                    while let Ok(item) = streams.flow.try_recv() {
                        write(item, &epochs).await;
                    }
                    epochs.retain(|partition, _| !partitions.contains(partition));
                    done.send(()).unwrap();
                }
            },
            item = streams.flow.recv() => match item {
                Some(item) => write(item, &epochs).await,
                None => return,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_second_worker_joins_and_leaves_and_every_record_is_read_once() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 4).unwrap();
    let (options, metrics) = (options(&broker, &[]), Arc::new(Metrics::new()));
    submit(&options, "t", 4, 0..300).await;
    let table = Table::default();
    let start = |source: &KafkaSource| {
        let (written, counter) = mpsc::channel(1);
        (tokio::spawn(work(source.start().unwrap(), table.clone(), written)), counter)
    };
    let first = source(&options, &["t"], &metrics);
    let (first_work, mut first_written) = start(&first);
    for _ in 0..100 {
        soon(first_written.recv()).await.unwrap();
    }
    let second = source(&options, &["t"], &metrics);
    let (second_work, mut second_written) = start(&second);
    let drain = tokio::spawn(async move { while first_written.recv().await.is_some() {} });
    // The second has something to do only after the first was revoked.
    submit(&options, "t", 4, 0..300).await;
    soon(async {
        while table.lock().unwrap().values().sum::<i64>() < 2400 {
            tokio::task::yield_now().await;
            while second_written.try_recv().is_ok() {}
        }
    })
    .await;
    soon(async {
        while !metrics.render().contains("assay_rebalances_total{job=\"job\",kind=\"revoked\"}") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    submit(&options, "t", 4, 0..300).await;
    soon(second_written.recv()).await.unwrap();
    let drain_second = tokio::spawn(async move { while second_written.recv().await.is_some() {} });
    soon(second.close()).await;
    soon(second_work).await.unwrap();
    submit(&options, "t", 4, 0..100).await;
    soon(async {
        while table.lock().unwrap().values().sum::<i64>() < 4000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(first.close()).await;
    soon(first_work).await.unwrap();
    assert!(table.lock().unwrap().values().all(|next| *next == 1000));
    soon(async { tokio::join!(drain, drain_second) }).await.0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_goes_on_while_nothing_flows_and_nothing_is_lost() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 2).unwrap();
    let interval = [("max.poll.interval.ms", "4000")];
    let options = options(&broker, &interval);
    submit(&options, "t", 2, 0..2500).await;
    let source = source(&options, &["t"], &Arc::new(Metrics::new()));
    let mut streams = source.start().unwrap();
    answer(&mut streams, &[]).await;
    // First the channel is full, then delivery is switched off: a thread that stopped polling would lose its partitions.
    for flowing in [true, false] {
        source.set_flowing(flowing);
        let quiet = tokio::time::timeout(Duration::from_millis(5500), streams.rebalances.recv()).await;
        assert!(quiet.is_err(), "the group was left: {quiet:?}");
    }
    source.set_flowing(true);
    let (records, ends) = read_to_ends(&mut streams, 2).await;
    assert!(ends.values().all(|end| *end == 2500));
    for number in 0..2 {
        let offsets = records.iter().filter(|record| record.origin.partition.partition == number);
        assert!(offsets.map(|record| record.origin.offset).eq(0..2500));
    }
    leave(&source, &mut streams).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_can_be_committed_before_a_revocation_is_answered() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 1).unwrap();
    let options = options(&broker, &[]);
    submit(&options, "t", 1, 0..5).await;
    let source = source(&options, &["t"], &Arc::new(Metrics::new()));
    let mut streams = source.start().unwrap();
    answer(&mut streams, &[]).await;
    read_to_ends(&mut streams, 1).await;
    let committing = async {
        match soon(streams.rebalances.recv()).await.unwrap() {
            Rebalance::Revoked { done, .. } => {
                soon(source.commit(vec![(partition("t", 0), 5)])).await.unwrap();
                done.send(()).unwrap();
            }
            other => panic!("expected a revocation, got {other:?}"),
        }
    };
    soon(async { tokio::join!(source.close(), committing) }).await;
    assert_eq!(soon(source.committed()).await.unwrap(), [(partition("t", 0), 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_starts_before_the_tables_ends_the_source() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 1).unwrap();
    let options = options(&broker, &[]);
    submit(&options, "t", 1, 0..5).await;
    let source = source(&options, &["t"], &Arc::new(Metrics::new()));
    let mut streams = source.start().unwrap();
    answer(&mut streams, &[(partition("t", 0), 50)]).await;
    match soon(streams.rebalances.recv()).await.unwrap() {
        Rebalance::Revoked { done, .. } => done.send(()).unwrap(),
        other => panic!("expected a revocation, got {other:?}"),
    }
    let error = soon(streams.failure).await.unwrap().to_string();
    assert!(error.contains("\"t\"") && error.contains("go on at 50"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_named() {
    let broker = EmbeddedBroker::start().unwrap();
    let source = source(&options(&broker, &[]), &["nothing"], &Arc::new(Metrics::new()));
    let error = soon(source.ends()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Topic { topic, .. } if topic == "nothing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_do_not_arrive_are_counted() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 1).unwrap();
    let submitter = Submitter::new(&options(&broker, &[("delivery.timeout.ms", "4000"), ("linger.ms", "1")])).unwrap();
    submitter.send("t", None, Some("k"), Some(b"1"), &[]).await.unwrap();
    assert_eq!(soon(submitter.flush()).await.unwrap(), 1);
    drop(broker);
    submitter.send("t", None, Some("k"), Some(b"2"), &[]).await.unwrap();
    match soon(submitter.flush()).await.unwrap_err() {
        SubmitError::Undelivered { delivered: 1, failed: 1, topic, .. } => assert_eq!(topic, "t"),
        other => panic!("{other}"),
    }
}

#[test]
fn the_end_of_a_partition_names_its_offset_in_this_version_of_the_library() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 1).unwrap();
    let options = options(&broker, &[]);
    tokio::runtime::Runtime::new().unwrap().block_on(submit(&options, "t", 1, 0..7));
    let (control, mut rebalances) = mpsc::channel(4);
    let answers = std::thread::spawn(move || {
        while let Some(rebalance) = rebalances.blocking_recv() {
            match rebalance {
                Rebalance::Assigned { resume, .. } => drop(resume.send(Vec::new())),
                Rebalance::Revoked { done, .. } => drop(done.send(())),
            }
        }
    });
    let shared = Arc::new(Shared::new("job", Arc::new(Metrics::new())));
    let context = Context::new("t".into(), shared, control);
    let consumer: BaseConsumer<Context> = options.member("group", None).unwrap().create_with_context(context).unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let deadline = std::time::Instant::now() + SOON;
    loop {
        assert!(std::time::Instant::now() < deadline);
        if let Some(Err(KafkaError::PartitionEOF(0))) = consumer.poll(Duration::from_millis(50)) {
            assert_eq!(consumer.context().take_end(), Some(7));
            break;
        }
    }
    drop(consumer);
    answers.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_partition_is_a_member_all_the_same() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic("t", 1).unwrap();
    let options = options(&broker, &[]);
    let sources = [source(&options, &["t"], &Arc::default()), source(&options, &["t"], &Arc::default())];
    let mut streams = sources.each_ref().map(|source| source.start().unwrap());
    soon(async {
        while !sources.iter().all(Source::is_member) {
            for streams in &mut streams {
                match streams.rebalances.try_recv() {
                    Ok(Rebalance::Assigned { resume, .. }) => drop(resume.send(Vec::new())),
                    Ok(Rebalance::Revoked { done, .. }) => drop(done.send(())),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        }
    })
    .await;
    for (source, streams) in sources.iter().zip(&mut streams) {
        leave(source, streams).await;
    }
}
