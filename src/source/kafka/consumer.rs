//! A consumer group's records: one member and one polling thread per topic, because librdkafka's end-of-partition event
//! names the partition but not the topic.
//!
//! A thread polls whatever happens downstream: a record that finds no room is held, and when there is none for a while
//! the partitions are paused and polling goes on. Invariants: records leave in the order of their partition; a held
//! record of an older epoch is dropped; the thread that polls is the one that closes the consumer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::member::{CommitRequest, Mailbox, Shared, lock};
use super::options::{KafkaOptions, configuration};
use super::rebalance::Context;
use super::{decode, inspect};
use crate::domain::{Epoch, TopicPartition};
use crate::metrics::Metrics;
use crate::source::api::{Flow, Rebalance, Source, SourceError, Streams};

/// Records that wait for the coordinator at most.
const FLOW_CAPACITY: usize = 1024;
/// How long one poll waits for an event.
const POLL: Duration = Duration::from_millis(50);
/// How long a held record waits for room before its partitions are paused. Pausing throws away what was fetched ahead,
/// so a downstream that is merely slow must not cause it; far below any sensible max.poll.interval.ms.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long the thread rests between two looks for room.
const REST: Duration = Duration::from_millis(2);
/// How long a seek may take.
const SEEK: Duration = Duration::from_secs(5);
/// How long a topic may be unknown to the brokers before that is a failure.
const UNKNOWN: Duration = Duration::from_secs(60);
/// How often errors that the client overcomes by itself are logged.
const COMPLAIN: Duration = Duration::from_secs(30);
/// How long a commit of offsets may take.
const COMMIT: Duration = Duration::from_secs(15);
/// How long `close` waits for the threads, which wait for the answers to their revocations.
const CLOSE: Duration = Duration::from_secs(45);

/// A member of a consumer group for each topic of a job.
pub struct KafkaSource {
    topics: Vec<Arc<str>>,
    members: BTreeMap<Arc<str>, (ClientConfig, Arc<Mailbox>)>,
    inspector: ClientConfig,
    group_inspector: ClientConfig,
    shared: Arc<Shared>,
    started: Mutex<Option<Vec<oneshot::Receiver<()>>>>,
}

impl KafkaSource {
    /// Checks the settings; connects to nothing. Errors: a property that is unknown, has a bad value or would break
    /// exactly-once; no topic, or a topic pattern.
    pub fn new(
        options: &KafkaOptions,
        group: &str,
        topics: &[String],
        metrics: Arc<Metrics>,
        job: &str,
    ) -> Result<Self, SourceError> {
        if topics.is_empty() {
            return Err(configuration("no topic is given".to_owned()));
        }
        let mut members = BTreeMap::new();
        for topic in topics {
            if topic.is_empty() || topic.starts_with('^') {
                return Err(configuration(format!("{topic:?} is no topic name; patterns are not supported")));
            }
            let distinct = (topics.len() > 1).then_some(topic.as_str());
            members.insert(topic.as_str().into(), (options.member(group, distinct)?, Arc::default()));
        }
        Ok(Self {
            topics: members.keys().cloned().collect(),
            members,
            inspector: options.inspector(None)?,
            group_inspector: options.inspector(Some(group))?,
            shared: Arc::new(Shared::new(job, metrics)),
            started: Mutex::new(None),
        })
    }

    /// Starts the polling thread of one topic; it tells when it has ended.
    fn join(
        &self,
        topic: &Arc<str>,
        flow: &mpsc::Sender<Flow>,
        control: &mpsc::Sender<Rebalance>,
    ) -> Result<oneshot::Receiver<()>, SourceError> {
        let (config, mailbox) = &self.members[topic];
        let context = Context::new(topic.clone(), self.shared.clone(), control.clone());
        let consumer: BaseConsumer<Context> =
            config.create_with_context(context).map_err(|error| configuration(error.to_string()))?;
        consumer.subscribe(&[topic]).map_err(|error| configuration(error.to_string()))?;
        let consumer = Arc::new(consumer);
        let committer = commit_on_thread(consumer.clone(), mailbox.open(), topic)?;
        let member = Member {
            consumer,
            committer,
            flow: flow.clone(),
            shared: self.shared.clone(),
            mailbox: mailbox.clone(),
            held: VecDeque::new(),
            stuck: None,
            paused: false,
            assigned_once: false,
            unknown: None,
            complained: None,
        };
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name(format!("kafka-{topic}"))
            .spawn(move || member.run(end))
            .map_err(|error| no_thread(&error))?;
        Ok(ended)
    }

    async fn inspect(
        &self,
        config: &ClientConfig,
        question: fn(&ClientConfig, &[Arc<str>]) -> Result<Vec<(TopicPartition, i64)>, SourceError>,
    ) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
        let (config, topics) = (config.clone(), self.topics.clone());
        // A cancelled blocking task means that the runtime is going down.
        tokio::task::spawn_blocking(move || question(&config, &topics)).await.unwrap_or(Err(SourceError::Closed))
    }
}

#[async_trait]
impl Source for KafkaSource {
    fn start(&self) -> Result<Streams, SourceError> {
        let mut started = lock(&self.started);
        if started.is_some() || self.shared.closing() {
            return Err(SourceError::Closed);
        }
        let (flow, flow_receiver) = mpsc::channel(FLOW_CAPACITY);
        let (control, rebalances) = mpsc::channel(16);
        let (failed, failure) = oneshot::channel();
        self.shared.report_failures_to(failed);
        let ended = self.members.keys().map(|topic| self.join(topic, &flow, &control)).collect::<Result<Vec<_>, _>>();
        // Members that did start must not go on alone.
        let ended = ended.inspect_err(|_| self.shared.close())?;
        *started = Some(ended);
        Ok(Streams { flow: flow_receiver, rebalances, failure })
    }

    fn set_flowing(&self, flowing: bool) {
        self.shared.set_flowing(flowing);
    }

    fn reassign(&self, partitions: Vec<TopicPartition>) {
        for partition in partitions {
            if let Some((_, mailbox)) = self.members.get(&partition.topic) {
                mailbox.reassign(partition.partition);
            }
        }
    }

    async fn commit(&self, positions: Vec<(TopicPartition, i64)>) -> Result<(), SourceError> {
        let mut by_topic: BTreeMap<Arc<str>, Vec<(i32, i64)>> = BTreeMap::new();
        for (partition, position) in positions {
            by_topic.entry(partition.topic).or_default().push((partition.partition, position));
        }
        let mut answers = Vec::new();
        for (topic, positions) in by_topic {
            let Some((_, mailbox)) = self.members.get(&topic) else {
                return Err(SourceError::Topic {
                    topic: topic.to_string(),
                    detail: "it is not one of ours".to_owned(),
                });
            };
            let (answer, outcome) = oneshot::channel();
            mailbox.commit(CommitRequest { positions, answer });
            answers.push(outcome);
        }
        let all = futures::future::join_all(answers);
        let late = || SourceError::Unavailable { detail: "the broker did not confirm a commit of offsets".to_owned() };
        let outcomes = tokio::time::timeout(COMMIT, all).await.map_err(|_| late())?;
        outcomes.into_iter().try_for_each(|outcome| outcome.unwrap_or(Err(SourceError::Closed)))
    }

    async fn ends(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
        self.inspect(&self.inspector, inspect::ends).await
    }

    /// Where the group never committed, the earliest offset of the partition.
    async fn committed(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
        self.inspect(&self.group_inspector, inspect::committed).await
    }

    /// The revocations must be answered while this waits.
    async fn close(&self) {
        self.shared.close();
        let ended = lock(&self.started).as_mut().map(std::mem::take).unwrap_or_default();
        if tokio::time::timeout(CLOSE, futures::future::join_all(ended)).await.is_err() {
            tracing::warn!("the consumer group was not left in time; the broker will notice by its session timeout");
        }
        self.shared.forget_failure();
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The polling thread of one topic.
struct Member {
    consumer: Arc<BaseConsumer<Context>>,
    committer: thread::JoinHandle<()>,
    flow: mpsc::Sender<Flow>,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    /// What found no room; short, because fetching is paused soon after the first.
    held: VecDeque<Flow>,
    /// Since when nothing could be delivered.
    stuck: Option<Instant>,
    paused: bool,
    assigned_once: bool,
    unknown: Option<Instant>,
    complained: Option<Instant>,
}

impl Member {
    fn run(mut self, end: oneshot::Sender<()>) {
        if let Err(error) = self.read() {
            self.shared.fail(error);
        }
        self.leave();
        drop(self);
        // Nobody may be waiting.
        let _ = end.send(());
    }

    /// Leaves the group, with the revocation that goes with it; commits are still taken until that is answered.
    fn leave(&self) {
        if let Err(error) = self.consumer.close_queue() {
            tracing::warn!(%error, "the consumer group could not be left");
            return;
        }
        while !self.consumer.closed() {
            self.consumer.poll(POLL);
        }
        self.mailbox.shut();
        let asked = Instant::now();
        while !self.committer.is_finished() && asked.elapsed() < COMMIT {
            thread::sleep(REST);
        }
    }

    fn read(&mut self) -> Result<(), SourceError> {
        while !self.shared.closing() && !self.flow.is_closed() {
            self.serve_wishes()?;
            self.deliver();
            self.regulate().map_err(unusable)?;
            if !self.held.is_empty() && !self.paused {
                thread::sleep(REST);
                continue;
            }
            self.poll()?;
            if self.consumer.context().has_claims() {
                self.assigned_once = true;
                self.unknown = None;
            } else if self.unknown.is_some_and(|since| since.elapsed() > UNKNOWN) {
                return Err(self.topic_error("the brokers do not know it; create it first".to_owned()));
            }
        }
        Ok(())
    }

    /// Moves what is held into the channel as long as it is wanted and there is room.
    fn deliver(&mut self) {
        while self.shared.flowing() {
            let Some(item) = self.held.pop_front() else { break };
            if !self.is_current(&item) {
                continue;
            }
            match self.flow.try_send(item) {
                Ok(()) => {}
                Err(TrySendError::Full(item)) => {
                    self.held.push_front(item);
                    break;
                }
                Err(TrySendError::Closed(_)) => self.shared.close(),
            }
        }
    }

    fn is_current(&self, item: &Flow) -> bool {
        let (partition, epoch) = match item {
            Flow::Record(record) => (record.origin.partition.partition, record.epoch),
            Flow::EndReached { partition, epoch, .. } => (partition.partition, *epoch),
        };
        self.claim_epoch(partition) == Some(epoch)
    }

    fn claim_epoch(&self, partition: i32) -> Option<Epoch> {
        self.consumer.context().claim(partition).map(|claim| claim.epoch)
    }

    /// Pauses after patience has run out, resumes when half of the channel is free.
    fn regulate(&mut self) -> KafkaResult<()> {
        let blocked = !self.held.is_empty() || !self.shared.flowing();
        if !blocked {
            self.stuck = None;
            if self.paused && self.flow.capacity() >= FLOW_CAPACITY / 2 {
                self.paused = false;
                self.consumer.context().set_paused(&self.consumer, false)?;
            }
        } else if !self.paused && self.stuck.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
            self.paused = true;
            self.consumer.context().set_paused(&self.consumer, true)?;
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<(), SourceError> {
        let Self { consumer, held, .. } = self;
        match consumer.poll(POLL) {
            None => Ok(()),
            Some(Ok(message)) => match take_record(consumer.context(), &message) {
                Ok(record) => {
                    held.extend(record);
                    Ok(())
                }
                Err(detail) => Err(self.topic_error(detail)),
            },
            Some(Err(error)) => self.take_error(error),
        }
    }

    fn take_error(&mut self, error: KafkaError) -> Result<(), SourceError> {
        let code = match error {
            KafkaError::PartitionEOF(partition) => {
                self.take_end(partition);
                return Ok(());
            }
            KafkaError::MessageConsumptionFatal(code) => {
                return Err(SourceError::Unavailable { detail: format!("the client cannot go on: {code}") });
            }
            other => other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown),
        };
        match code {
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::AutoOffsetReset
            | RDKafkaErrorCode::InvalidTopic => Err(self.topic_error(code.to_string())),
            RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::InvalidGroupId
            | RDKafkaErrorCode::InconsistentGroupProtocol
            | RDKafkaErrorCode::InvalidSessionTimeout => Err(configuration(format!("the consumer group: {code}"))),
            // Later on it may be the broker's trouble, which passes; a wrong password never worked.
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed if !self.assigned_once => {
                Err(configuration(format!("the brokers refuse the credentials: {code}")))
            }
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                self.unknown.get_or_insert_with(Instant::now);
                self.complain(code);
                Ok(())
            }
            _ => {
                self.complain(code);
                Ok(())
            }
        }
    }

    fn take_end(&mut self, number: i32) {
        let context = self.consumer.context();
        let told = context.take_end();
        let Some(claim) = context.claim(number) else { return };
        // Without a readable position the end of what was read is safe: it can only be too early.
        let next = told.unwrap_or(claim.next).max(claim.next);
        context.advance(number, next);
        let partition = context.topic_partition(number);
        self.held.push_back(Flow::EndReached { partition, epoch: claim.epoch, next });
    }

    fn complain(&mut self, code: RDKafkaErrorCode) {
        if self.complained.is_none_or(|last| last.elapsed() > COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::warn!(topic = self.consumer.context().topic(), %code, "Kafka has trouble; going on");
        }
    }

    fn topic_error(&self, detail: String) -> SourceError {
        SourceError::Topic { topic: self.consumer.context().topic().to_owned(), detail }
    }

    fn serve_wishes(&mut self) -> Result<(), SourceError> {
        let wanted = self.mailbox.take_reassign();
        let ours: Vec<_> = wanted.into_iter().filter(|number| self.claim_epoch(*number).is_some()).collect();
        if ours.is_empty() { Ok(()) } else { self.reassign(ours) }
    }

    fn reassign(&mut self, partitions: Vec<i32>) -> Result<(), SourceError> {
        let context = self.consumer.context().clone();
        let Some(starts) = context.claim_anew(partitions) else {
            self.shared.close();
            return Ok(());
        };
        let topic = context.topic();
        let list = starts.into_iter().map(|(partition, offset)| (topic.to_owned(), partition, offset)).collect();
        let list = self.consumer.seek_partitions(list, SEEK).map_err(unusable)?;
        for element in list.elements() {
            if let Err(error) = element.error() {
                // The partition may not be fetched yet, or be on its way to another member: ask again under yet
                // another epoch, unless it is taken away meanwhile.
                tracing::warn!(partition = element.partition(), %error, "a partition could not be moved; trying again");
                self.mailbox.reassign(element.partition());
            }
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A thread that ends takes the source with it: half a job must not go on.
        if thread::panicking() {
            self.shared.fail(SourceError::Unavailable { detail: "the polling thread panicked".to_owned() });
        }
        self.shared.close();
        self.mailbox.shut();
    }
}

/// Commits on a thread of its own: the library reports the outcome of a commit only to a caller that waits for it, and
/// the polling thread neither may wait nor could serve a commit while a rebalance callback holds it.
fn commit_on_thread(
    consumer: Arc<BaseConsumer<Context>>,
    requests: Receiver<CommitRequest>,
    topic: &str,
) -> Result<thread::JoinHandle<()>, SourceError> {
    let commit = move || {
        for CommitRequest { positions, answer } in requests {
            let context = consumer.context();
            let outcome = if consumer.closed() {
                Err(SourceError::Closed)
            } else {
                consumer.commit(&context.offsets(&positions), CommitMode::Sync).map_err(|error| {
                    SourceError::Unavailable { detail: format!("offsets were not committed: {error}") }
                })
            };
            if outcome.is_ok() {
                context.note_done(&positions);
            }
            // Whoever stopped waiting needs no answer.
            let _ = answer.send(outcome);
        }
    };
    thread::Builder::new().name(format!("kafka-commit-{topic}")).spawn(commit).map_err(|error| no_thread(&error))
}

fn no_thread(error: &std::io::Error) -> SourceError {
    SourceError::Unavailable { detail: format!("a thread could not be started: {error}") }
}

/// None for a record that is not ours (any more) or was read before; an error when the log does not fit the tables.
fn take_record(context: &Context, message: &BorrowedMessage<'_>) -> Result<Option<Flow>, String> {
    let (number, offset) = (message.partition(), message.offset());
    let Some(claim) = context.claim(number) else { return Ok(None) };
    if offset < claim.start {
        return Err(format!(
            "partition {number} has the offset {offset} where the tables go on at {}: the topic was created anew or lost \
             records; use another consumer group and job name, or other tables",
            claim.start
        ));
    }
    if offset < claim.next {
        return Ok(None);
    }
    context.advance(number, offset + 1);
    Ok(Some(Flow::Record(decode::record(message, context.topic_partition(number), claim.epoch))))
}

fn unusable(error: KafkaError) -> SourceError {
    SourceError::Unavailable { detail: error.to_string() }
}
