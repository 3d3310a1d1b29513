//! Puts records into topics: an idempotent producer with a bounded number of records on their way.
//!
//! It does not know what a record means. Invariant: every record that `send` took is counted by `flush`, as delivered
//! or as failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, NoCustomPartitioner, ProducerContext, ThreadedProducer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::member::lock;
use super::options::KafkaOptions;
use crate::source::api::SourceError;

/// Records on their way at most.
const IN_FLIGHT: u32 = 10_000;
/// How long to wait when the client's own queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(5);

/// An idempotent producer.
pub struct Submitter {
    producer: ThreadedProducer<Deliveries, NoCustomPartitioner>,
    counts: Arc<Counts>,
    permits: Arc<Semaphore>,
}

/// Why records did not reach their topics.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The client does not take the record: it is too large, or its topic does not exist.
    #[error("topic {topic:?} does not take the record: {detail}")]
    Refused { topic: String, detail: String },
    /// Records that were taken did not arrive.
    #[error("{failed} records were not delivered ({delivered} were); the first to topic {topic:?}: {detail}")]
    Undelivered { delivered: u64, failed: u64, topic: String, detail: String },
}

#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
    failed: AtomicU64,
    /// Topic and reason.
    first_failure: Mutex<Option<(String, String)>>,
}

/// Counts the broker's confirmations; each frees its record's permit.
struct Deliveries(Arc<Counts>);

impl Submitter {
    /// Checks the settings and starts the producer's threads; the brokers are found later.
    pub fn new(options: &KafkaOptions) -> Result<Self, SourceError> {
        let counts = Arc::new(Counts::default());
        let producer = ThreadedProducer::from_config_and_context(&options.producer()?, Deliveries(counts.clone()))
            .map_err(|error| SourceError::Configuration { detail: error.to_string() })?;
        Ok(Self { producer, counts, permits: Arc::new(Semaphore::new(IN_FLIGHT as usize)) })
    }

    /// Hands one record over, waiting while too many are on their way. No payload makes a tombstone; without a
    /// partition the key decides.
    #[expect(clippy::too_many_arguments, reason = "these are the parts of a Kafka record")]
    pub async fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&str>,
        payload: Option<&[u8]>,
        headers: &[(String, String)],
    ) -> Result<(), SubmitError> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut record: BaseRecord<'_, str, [u8], _> = BaseRecord::with_opaque_to(topic, Box::new(permit));
        record.partition = partition;
        record.key = key;
        record.payload = payload;
        if !headers.is_empty() {
            let all = OwnedHeaders::new_with_capacity(headers.len());
            let add =
                |all: OwnedHeaders, (key, value): &(String, String)| all.insert(Header { key, value: Some(value) });
            record.headers = Some(headers.iter().fold(all, add));
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    tokio::time::sleep(QUEUE_FULL).await;
                }
                Err((error, _)) => {
                    let detail = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
                    return Err(SubmitError::Refused { topic: topic.to_owned(), detail });
                }
            }
        }
    }

    /// Waits until every record is confirmed or given up (after delivery.timeout.ms). Returns how many were delivered
    /// since the producer was made.
    pub async fn flush(&self) -> Result<u64, SubmitError> {
        let all = self.permits.acquire_many(IN_FLIGHT).await.expect("the semaphore is never closed");
        drop(all);
        let delivered = self.counts.delivered.load(Ordering::Acquire);
        let failed = self.counts.failed.load(Ordering::Acquire);
        match lock(&self.counts.first_failure).clone() {
            None => Ok(delivered),
            Some((topic, detail)) => Err(SubmitError::Undelivered { delivered, failed, topic, detail }),
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, detail: &str) {
        tracing::debug!(facility, detail, "the Kafka client reports");
    }

    /// Failed records are counted one by one; these are the client's troubles meanwhile.
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(code = ?error.rdkafka_error_code(), reason, "Kafka reports an error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<OwnedSemaphorePermit>;

    fn delivery(&self, result: &DeliveryResult<'_>, permit: Self::DeliveryOpaque) {
        match result {
            Ok(_) => {
                self.0.delivered.fetch_add(1, Ordering::Release);
            }
            Err((error, message)) => {
                self.0.failed.fetch_add(1, Ordering::Release);
                let detail = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
                lock(&self.0.first_failure).get_or_insert_with(|| (message.topic().to_owned(), detail));
            }
        }
        // Only now, so that a flush that gets all permits sees all counts.
        drop(permit);
    }
}
