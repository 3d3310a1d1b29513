//! Questions about topics and groups, asked over short-lived clients that join nothing.
//!
//! Everything here blocks for up to [`PATIENCE`] per question, so it runs on blocking threads, never on a polling one.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::options::configuration;
use crate::domain::TopicPartition;
use crate::source::api::SourceError;

/// How long the broker may take for one answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The end of every partition: the offset of the next record that a reader of committed records could get; 0 for one that
/// holds no record, even when it once did.
pub fn ends(config: &ClientConfig, topics: &[Arc<str>]) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
    let client = client(config)?;
    let mut ends = Vec::new();
    for partition in partitions(&client, topics)? {
        let (start, end) = watermarks(&client, &partition)?;
        ends.push((partition, if start == end { 0 } else { end }));
    }
    Ok(ends)
}

/// What the group has committed; the earliest offset where it never did. `config` must name the group.
pub fn committed(config: &ClientConfig, topics: &[Arc<str>]) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
    let client = client(config)?;
    let partitions = partitions(&client, topics)?;
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in &partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    let list = client.committed_offsets(list, PATIENCE).map_err(unavailable)?;
    let mut committed = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let offset = list.find_partition(&partition.topic, partition.partition).map(|element| element.offset());
        let position = match offset {
            Some(Offset::Offset(offset)) => offset,
            _ => watermarks(&client, &partition)?.0,
        };
        committed.push((partition, position));
    }
    Ok(committed)
}

fn client(config: &ClientConfig) -> Result<BaseConsumer, SourceError> {
    config.create().map_err(|error: KafkaError| configuration(error.to_string()))
}

fn partitions(client: &BaseConsumer, topics: &[Arc<str>]) -> Result<Vec<TopicPartition>, SourceError> {
    let mut partitions = Vec::new();
    for topic in topics {
        let refused = |detail: String| SourceError::Topic { topic: topic.to_string(), detail };
        let metadata = client.fetch_metadata(Some(topic), PATIENCE).map_err(|error| match error {
            KafkaError::MetadataFetch(
                code @ (RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::TopicAuthorizationFailed),
            ) => refused(code.to_string()),
            other => unavailable(other),
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == &**topic);
        let Some(found) = found else { return Err(refused("it does not exist; create it first".to_owned())) };
        if let Some(code) = found.error() {
            return match RDKafkaErrorCode::from(code) {
                RDKafkaErrorCode::LeaderNotAvailable => Err(unavailable(KafkaError::MetadataFetch(code.into()))),
                code => Err(refused(code.to_string())),
            };
        }
        if found.partitions().is_empty() {
            return Err(refused("it does not exist; create it first".to_owned()));
        }
        let mut numbers: Vec<_> = found.partitions().iter().map(|partition| partition.id()).collect();
        numbers.sort_unstable();
        partitions.extend(numbers.into_iter().map(|number| TopicPartition::new(topic.clone(), number)));
    }
    Ok(partitions)
}

fn watermarks(client: &BaseConsumer, partition: &TopicPartition) -> Result<(i64, i64), SourceError> {
    client.fetch_watermarks(&partition.topic, partition.partition, PATIENCE).map_err(unavailable)
}

fn unavailable(error: KafkaError) -> SourceError {
    SourceError::Unavailable { detail: error.to_string() }
}
