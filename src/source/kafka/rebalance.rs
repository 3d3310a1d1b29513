//! The fence: what happens inside librdkafka's rebalance callback, on the polling thread of one topic.
//!
//! Assigned: a new epoch, resume offsets from the coordinator, and only then fetching. Revoked: the partitions' claims
//! are forgotten first, the coordinator answers when no commit in flight holds them, and only then the group hears that
//! they are free. Invariant: a record without a current claim is never delivered. A coordinator that is gone is not
//! waited for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{mpsc, oneshot};

use super::member::{Shared, lock};
use crate::domain::{Epoch, TopicPartition};
use crate::source::api::{Rebalance, SourceError};

/// One assigned partition.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub epoch: Epoch,
    /// Where the coordinator told us to start; 0 for the earliest record.
    pub start: i64,
    /// Behind the last record that was read.
    pub next: i64,
    /// Behind the last record that is done, as far as `commit` told.
    pub done: i64,
    /// The client did not go to `start`, so what it reads is not taken.
    pub astray: bool,
}

/// The callbacks of one topic's consumer.
pub struct Context {
    topic: Arc<str>,
    shared: Arc<Shared>,
    control: mpsc::Sender<Rebalance>,
    // Taken for moments only, nearly always by the polling thread, on which every callback runs.
    claims: Mutex<HashMap<i32, Claim>>,
    paused: Mutex<bool>,
    /// The offset that the last end-of-partition event named; negative when none could be read.
    end: AtomicI64,
}

impl Context {
    pub fn new(topic: Arc<str>, shared: Arc<Shared>, control: mpsc::Sender<Rebalance>) -> Self {
        Self { topic, shared, control, claims: Mutex::default(), paused: Mutex::default(), end: AtomicI64::new(-1) }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn has_claims(&self) -> bool {
        !lock(&self.claims).is_empty()
    }

    pub fn claim(&self, partition: i32) -> Option<Claim> {
        lock(&self.claims).get(&partition).copied()
    }

    /// Notes that the records before `next` were read.
    pub fn advance(&self, partition: i32, next: i64) {
        if let Some(claim) = lock(&self.claims).get_mut(&partition) {
            claim.next = next;
        }
    }

    /// Takes nothing of the partition until it is claimed anew: the client reads it from another place than it should.
    pub fn mark_astray(&self, partition: i32) {
        if let Some(claim) = lock(&self.claims).get_mut(&partition) {
            claim.astray = true;
        }
    }

    /// Takes the offset that the end-of-partition event just polled has named.
    pub fn take_end(&self) -> Option<i64> {
        Some(self.end.swap(-1, Ordering::Relaxed)).filter(|end| *end >= 0)
    }

    pub fn topic_partition(&self, partition: i32) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), partition)
    }

    /// Stops or resumes fetching of everything that is assigned; partitions that come later follow.
    pub fn set_paused(&self, consumer: &BaseConsumer<Self>, paused: bool) -> KafkaResult<()> {
        *lock(&self.paused) = paused;
        let mut list = TopicPartitionList::new();
        for partition in lock(&self.claims).keys() {
            list.add_partition(&self.topic, *partition);
        }
        if paused { consumer.pause(&list) } else { consumer.resume(&list) }
    }

    /// Announces partitions under a new epoch and waits for the offsets to start from. None when the coordinator is
    /// gone; then nothing is claimed.
    pub fn claim_anew(&self, mut partitions: Vec<i32>) -> Option<Vec<(i32, Offset)>> {
        partitions.sort_unstable();
        let epoch = self.shared.next_epoch();
        lock(&self.claims).retain(|partition, _| !partitions.contains(partition));
        let (resume, answer) = oneshot::channel();
        let announced = partitions.iter().map(|partition| self.topic_partition(*partition)).collect();
        self.control.blocking_send(Rebalance::Assigned { partitions: announced, epoch, resume }).ok()?;
        let answered: HashMap<_, _> = answer.blocking_recv().ok()?.into_iter().collect();
        let mut claims = lock(&self.claims);
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let resume = answered.get(&self.topic_partition(partition)).copied().filter(|offset| *offset > 0);
            let start = resume.unwrap_or(0);
            claims.insert(partition, Claim { epoch, start, next: start, done: start, astray: false });
            starts.push((partition, resume.map_or(Offset::Beginning, Offset::Offset)));
        }
        Some(starts)
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> KafkaResult<()> {
        let partitions: Vec<_> = list.elements().iter().map(|element| element.partition()).collect();
        let mut starts = TopicPartitionList::with_capacity(partitions.len());
        if !partitions.is_empty() {
            self.count_rebalance("assigned");
            match self.claim_anew(partitions) {
                Some(claimed) => {
                    for (partition, offset) in claimed {
                        starts.add_partition_offset(&self.topic, partition, offset)?;
                    }
                }
                None => self.shared.close(),
            }
        }
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&starts)?,
            _ => consumer.assign(&starts)?,
        }
        // An empty list is an assignment, too: there are more members than partitions.
        self.shared.set_joined(&self.topic, true);
        // The library keeps the pause of a partition that went away and came back, so both are said.
        if *lock(&self.paused) { consumer.pause(&starts) } else { consumer.resume(&starts) }
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> KafkaResult<()> {
        let partitions: Vec<_> = list.elements().iter().map(|element| element.partition()).collect();
        lock(&self.claims).retain(|partition, _| !partitions.contains(partition));
        if consumer.assignment_lost() {
            // The broker has put this member out; the library joins again.
            self.shared.set_joined(&self.topic, false);
        }
        for partition in &partitions {
            // A partition whose lag was never told has no series to remove.
            let labels = [self.shared.job.as_str(), &self.topic, &partition.to_string()];
            let _ = self.shared.metrics.lag_records.remove_label_values(&labels);
        }
        if !partitions.is_empty() {
            self.count_rebalance("revoked");
            let revoked = partitions.iter().map(|partition| self.topic_partition(*partition)).collect();
            let (done, answer) = oneshot::channel();
            if self.control.blocking_send(Rebalance::Revoked { partitions: revoked, done }).is_ok() {
                // A coordinator that dropped the question holds no commit either.
                let _ = answer.blocking_recv();
            }
        }
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        }
    }

    /// The list that the library wants for a commit of next offsets.
    pub fn offsets(&self, positions: &[(i32, i64)]) -> TopicPartitionList {
        let offset = |offset: i64| Offset::Offset(offset.max(0));
        positions.iter().map(|(number, next)| (self.topic.to_string(), *number, offset(*next))).collect()
    }

    fn count_rebalance(&self, kind: &str) {
        self.shared.metrics.rebalances_total.with_label_values(&[self.shared.job.as_str(), kind]).inc();
    }

    /// Notes what is done, for the lag.
    pub fn note_done(&self, positions: &[(i32, i64)]) {
        let mut claims = lock(&self.claims);
        for (partition, position) in positions {
            if let Some(claim) = claims.get_mut(partition) {
                claim.done = claim.done.max(*position);
            }
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        tracing::info!(topic = &*self.topic, assigned, partitions = list.count(), "the assignment changes");
        let outcome = if assigned { self.assign(consumer, list) } else { self.revoke(consumer, list) };
        if let Err(error) = outcome {
            let detail = format!("the assignment could not be changed: {error}");
            self.shared.fail(SourceError::Unavailable { detail });
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, detail: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, detail, "the Kafka client reports"),
            _ => tracing::debug!(facility, detail, "the Kafka client reports"),
        }
    }

    /// Errors also come out of `poll`, where they are judged; only here is the text with the offset of an end.
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            self.end.store(end_offset(reason).unwrap_or(-1), Ordering::Relaxed);
        } else {
            tracing::debug!(topic = &*self.topic, code = ?error.rdkafka_error_code(), reason, "Kafka reports an error");
        }
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&*self.topic) else { return };
        for (number, claim) in lock(&self.claims).iter() {
            let Some(partition) = topic.partitions.get(number) else { continue };
            // Negative while nothing was fetched yet.
            if partition.ls_offset >= 0 {
                let lag = (partition.ls_offset - claim.done.max(partition.lo_offset)).max(0);
                let labels = [self.shared.job.as_str(), &self.topic, &number.to_string()];
                self.shared.metrics.lag_records.with_label_values(&labels).set(lag);
            }
        }
    }
}

/// Reads the fetch position from librdkafka's end-of-partition text, "... at offset N (HighwaterMark M)". It lies behind
/// control records, unlike the offset of the last record, and the event gives it nowhere else.
pub fn end_offset(reason: &str) -> Option<i64> {
    let (_, rest) = reason.split_once("at offset ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_offset_is_read_from_the_text_of_the_event() {
        let text = "Fetch from broker 1 reached end of partition at offset 42 (HighwaterMark 43)";
        assert_eq!(end_offset(text), Some(42));
        assert_eq!(end_offset("Broker: No more messages"), None);
        assert_eq!(end_offset("at offset x"), None);
    }

    #[test]
    fn a_coordinator_that_is_gone_is_not_waited_for() {
        let shared = Arc::new(Shared::new("j", Arc::new(crate::metrics::Metrics::new())));
        let (control, receiver) = mpsc::channel(1);
        let context = Context::new("t".into(), shared, control);
        drop(receiver);
        assert!(context.claim_anew(vec![0]).is_none());
        assert!(context.claim(0).is_none());
    }
}
