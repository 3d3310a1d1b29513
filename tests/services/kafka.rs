//! A real Kafka: one broker that all tests share, or three of their own.
//!
//! Topics of different tests have different names, so sharing is safe.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use assay::source::{KafkaOptions, Submitter};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use super::script;

const SCRIPT: &str = "kafka.sh";

/// A cluster of this test process.
pub struct Kafka {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
    replication: i32,
}

/// A record as it lies in its topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
}

impl Kafka {
    /// The broker that all tests share; it has a plain, a TLS and a SASL listener.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Kafka>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&["--secure"], 1)).as_ref()
    }

    /// Three brokers that a test may kill.
    pub fn three() -> Option<Self> {
        // A broker that comes back waits until its old registration has expired.
        Self::start(
            &[
                "--brokers",
                "3",
                "--set",
                "broker.session.timeout.ms=3000",
                "--set",
                "group.consumer.session.timeout.ms=3000",
            ],
            3,
        )
    }

    fn start(flags: &[&str], replication: i32) -> Option<Self> {
        let folder = script::folder("kafka");
        let settings = script::up(SCRIPT, &folder, flags)?;
        Some(Self { folder, settings, replication })
    }

    pub fn setting(&self, name: &str) -> &str {
        &self.settings[name]
    }

    pub fn bootstrap_servers(&self) -> &str {
        self.setting("KAFKA_BOOTSTRAP")
    }

    /// Options for the plain listener.
    pub fn options(&self, properties: &[(&str, &str)]) -> KafkaOptions {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        KafkaOptions { bootstrap_servers: self.bootstrap_servers().to_owned(), properties }
    }

    /// Waits until the topic has its leaders.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<_> = self.client().create().expect("a client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(self.replication));
        let created = admin.create_topics([&topic], &AdminOptions::new()).await.expect("the broker answers");
        created[0].as_ref().expect("the topic is new");
    }

    /// Sends products with these numbers, spread over the partitions in turn.
    pub async fn submit(&self, topic: &str, partitions: i32, numbers: impl Iterator<Item = i64>) {
        self.submit_all(topic, partitions, numbers.map(|n| crate::stage::worker::product(&format!("a{n}")))).await;
    }

    /// Sends messages under their ids, spread over the partitions in turn.
    pub async fn submit_all(&self, topic: &str, partitions: i32, messages: impl Iterator<Item = Value>) {
        let submitter = Submitter::new(&self.options(&[])).expect("a producer");
        for (message, partition) in messages.zip((0..partitions).cycle()) {
            let (id, payload) = (message["id"].as_str(), message.to_string());
            submitter.send(topic, Some(partition), id, Some(payload.as_bytes()), &[]).await.expect("sent");
        }
        submitter.flush().await.expect("delivered");
    }

    /// Everything that a reader of committed records finds in a topic, in order, and where each partition ends.
    pub fn read_all(&self, topic: &str) -> (Vec<Stored>, Vec<i64>) {
        let mut config = self.client();
        config.set("group.id", "reader").set("isolation.level", "read_committed").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().expect("a client");
        let patience = Duration::from_secs(20);
        let metadata = consumer.fetch_metadata(Some(topic), patience).expect("the broker answers");
        let partitions = metadata.topics()[0].partitions().len();
        let mut list = TopicPartitionList::new();
        for number in 0..partitions as i32 {
            list.add_partition_offset(topic, number, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&list).expect("assigned");
        let (mut found, mut ended) = (Vec::new(), 0);
        while ended < partitions {
            match consumer.poll(patience).expect("the broker answers in time") {
                Ok(message) => found.push(Stored {
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key().map(|key| String::from_utf8_lossy(key).into_owned()),
                }),
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{topic}: {error}"),
            }
        }
        let end = |number: i32| consumer.fetch_watermarks(topic, number, patience).expect("the broker answers").1;
        let ends = (0..partitions as i32).map(end).collect();
        found.sort();
        (found, ends)
    }

    /// SIGKILL.
    pub fn kill_broker(&self, number: usize) {
        script::run(SCRIPT, "kill-broker", &self.folder, &[&number.to_string()]);
    }

    /// Orderly.
    pub fn stop_broker(&self, number: usize) {
        script::run(SCRIPT, "stop-broker", &self.folder, &[&number.to_string()]);
    }

    pub fn start_broker(&self, number: usize) {
        script::run(SCRIPT, "start-broker", &self.folder, &[&number.to_string()]);
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap_servers());
        config
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        script::run(SCRIPT, "down", &self.folder, &[]);
        // The watcher has nothing to do any more.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
