//! What a member of the consumer group does: polls whatever happens downstream.
//!
//! A record that finds no room is held, and when there is none for a while the partitions are paused and polling goes
//! on. Invariants: records leave in the order of their partition; a held record of an older epoch is dropped; polling
//! ends only when the group was left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::decode;
use super::member::{COMMIT, CommitRequest, FLOW_CAPACITY, Mailbox, Shared};
use super::options::configuration;
use super::rebalance::Context;
use crate::domain::Epoch;
use crate::source::api::{Flow, SourceError};

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

/// The polling thread of one topic.
pub struct Member {
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
    /// A member that has subscribed; nothing is polled before `run`.
    pub fn new(
        consumer: BaseConsumer<Context>,
        flow: mpsc::Sender<Flow>,
        shared: Arc<Shared>,
        mailbox: Arc<Mailbox>,
    ) -> Result<Self, SourceError> {
        let consumer = Arc::new(consumer);
        let committer = commit_on_thread(consumer.clone(), mailbox.open())?;
        let held = VecDeque::new();
        Ok(Self {
            consumer,
            committer,
            flow,
            shared,
            mailbox,
            held,
            stuck: None,
            paused: false,
            assigned_once: false,
            unknown: None,
            complained: None,
        })
    }

    /// Reads until the source is closed or fails, leaves the group, and then tells `end`.
    pub fn run(mut self, end: oneshot::Sender<()>) {
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
            self.serve_wishes();
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
            } else if self.unknown.is_some_and(|since| since.elapsed() > UNKNOWN) && self.is_still_unknown() {
                return Err(self.topic_error("the brokers do not know it; create it first".to_owned()));
            }
        }
        Ok(())
    }

    /// Asks once more: the library says that a topic is missing, not that it has come.
    fn is_still_unknown(&mut self) -> bool {
        let metadata = self.consumer.fetch_metadata(Some(self.consumer.context().topic()), SEEK);
        let exists =
            |topic: &rdkafka::metadata::MetadataTopic| topic.error().is_none() && !topic.partitions().is_empty();
        self.unknown = match metadata {
            Ok(metadata) if metadata.topics().iter().any(exists) => None,
            Ok(_) => return true,
            // Unreachable brokers know nothing; ask again later.
            Err(_) => Some(Instant::now()),
        };
        false
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
                Err(early) => self.take_early(&early),
            },
            Some(Err(error)) => self.take_error(error),
        }
    }

    /// A log that ends before the tables go on is not the one they were made from. Otherwise the client went back by itself: when a
    /// partition is assigned anew, or sought, while it looks for the earliest record, librdkafka 2.12.1 looks again half a second
    /// later and goes there (its issue 2256).
    fn take_early(&self, early: &Early) -> Result<(), SourceError> {
        let Early { partition, offset, start } = *early;
        match self.consumer.fetch_watermarks(self.consumer.context().topic(), partition, SEEK) {
            Ok((_, end)) if end < start => Err(self.topic_error(format!(
                "partition {partition} has the offset {offset} where the tables go on at {start}: the topic was created \
                 anew or lost records; use another consumer group and job name, or other tables"
            ))),
            // Without an answer the next record tells.
            Ok(_) | Err(_) => {
                tracing::warn!(partition, offset, start, "the client went back by itself; moving the partition again");
                self.move_anew(partition);
                Ok(())
            }
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
        let Some(claim) = context.claim(number).filter(|claim| !claim.astray) else { return };
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

    fn serve_wishes(&mut self) {
        let wanted = self.mailbox.take_reassign();
        let ours: Vec<_> = wanted.into_iter().filter(|number| self.claim_epoch(*number).is_some()).collect();
        if !ours.is_empty() {
            self.reassign(ours);
        }
    }

    fn reassign(&mut self, partitions: Vec<i32>) {
        let context = self.consumer.context().clone();
        let Some(starts) = context.claim_anew(partitions) else {
            self.shared.close();
            return;
        };
        let topic = context.topic();
        let numbers: Vec<_> = starts.iter().map(|(partition, _)| *partition).collect();
        let list = starts.into_iter().map(|(partition, offset)| (topic.to_owned(), partition, offset)).collect();
        match self.consumer.seek_partitions(list, SEEK) {
            Ok(list) => {
                for element in list.elements() {
                    if let Err(error) = element.error() {
                        self.move_again(element.partition(), &error);
                    }
                }
            }
            // Their leader is away, or the client is busy with it: no reason to end.
            Err(error) => numbers.into_iter().for_each(|number| self.move_again(number, &error)),
        }
    }

    /// The partition may not be fetched yet, or be on its way to another member: ask again under yet another epoch, unless it is
    /// taken away meanwhile.
    fn move_again(&self, partition: i32, error: &KafkaError) {
        tracing::warn!(partition, %error, "a partition could not be moved; trying again");
        self.move_anew(partition);
    }

    fn move_anew(&self, partition: i32) {
        self.consumer.context().mark_astray(partition);
        self.mailbox.reassign(partition);
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
) -> Result<thread::JoinHandle<()>, SourceError> {
    let name = format!("kafka-commit-{}", consumer.context().topic());
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
    thread::Builder::new().name(name).spawn(commit).map_err(|error| no_thread(&error))
}

/// A thread could not be started.
pub fn no_thread(error: &std::io::Error) -> SourceError {
    SourceError::Unavailable { detail: format!("a thread could not be started: {error}") }
}

/// A record that lies before the place where its partition was to start.
struct Early {
    partition: i32,
    offset: i64,
    start: i64,
}

/// None for a record that is not ours (any more) or was read before.
fn take_record(context: &Context, message: &BorrowedMessage<'_>) -> Result<Option<Flow>, Early> {
    let (number, offset) = (message.partition(), message.offset());
    let Some(claim) = context.claim(number).filter(|claim| !claim.astray) else { return Ok(None) };
    if offset < claim.start {
        return Err(Early { partition: number, offset, start: claim.start });
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
