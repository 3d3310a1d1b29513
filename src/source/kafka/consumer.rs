//! A consumer group's records: one member and one polling thread per topic, because librdkafka's end-of-partition event
//! names the partition but not the topic.
//!
//! This file starts, asks and ends the members; `polling` is what each does. Invariant: members end together, because
//! half a job must not go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::{mpsc, oneshot};

use super::inspect;
use super::member::{COMMIT, CommitRequest, FLOW_CAPACITY, Mailbox, Shared, lock};
use super::options::{KafkaOptions, configuration};
use super::polling::{Member, no_thread};
use super::rebalance::Context;
use crate::domain::TopicPartition;
use crate::metrics::Metrics;
use crate::source::api::{Flow, GroupMember, Rebalance, Source, SourceError, Streams};

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

/// What `inspect` can ask of the brokers.
type Question = fn(&ClientConfig, &[Arc<str>]) -> Result<Vec<(TopicPartition, i64)>, SourceError>;

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
        let member = Member::new(consumer, flow.clone(), self.shared.clone(), mailbox.clone())?;
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
        question: Question,
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

    fn is_member(&self) -> bool {
        self.shared.joined() == self.topics.len()
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

    async fn members(&self) -> Result<Vec<GroupMember>, SourceError> {
        let config = self.group_inspector.clone();
        // A cancelled blocking task means that the runtime is going down.
        tokio::task::spawn_blocking(move || inspect::members(&config)).await.unwrap_or(Err(SourceError::Closed))
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
