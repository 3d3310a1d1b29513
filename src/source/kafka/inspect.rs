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
use crate::source::api::{GroupMember, SourceError};

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

/// The members of the group that `config` names.
pub fn members(config: &ClientConfig) -> Result<Vec<GroupMember>, SourceError> {
    let client = client(config)?;
    let groups = client.fetch_group_list(config.get("group.id"), PATIENCE).map_err(unavailable)?;
    let mut members: Vec<_> = groups
        .groups()
        .iter()
        .flat_map(|group| group.members())
        .map(|member| GroupMember {
            id: member.id().to_owned(),
            host: member.client_host().trim_start_matches('/').to_owned(),
            partitions: member.assignment().and_then(assignment).unwrap_or_default(),
        })
        .collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(members)
}

/// Reads a member's assignment: a version (two bytes), then topics, each with its partitions. None when it is cut off.
/// The format is Kafka's `ConsumerProtocolAssignment`; later versions only append to it.
fn assignment(bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    let mut rest = bytes.get(2..)?;
    let mut partitions = Vec::new();
    for _ in 0..number(&mut rest)? {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (topic, after) = after.split_at_checked(usize::try_from(i16::from_be_bytes(*length)).ok()?)?;
        rest = after;
        let topic: Arc<str> = String::from_utf8_lossy(topic).into();
        for _ in 0..number(&mut rest)? {
            partitions.push(TopicPartition::new(topic.clone(), number(&mut rest)?));
        }
    }
    partitions.sort();
    Some(partitions)
}

/// Takes a big-endian number off the front.
fn number(bytes: &mut &[u8]) -> Option<i32> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(i32::from_be_bytes(*first))
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

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_TOPICS: &[u8] =
        b"\0\x01\0\0\0\x02\0\x02ts\0\0\0\x02\0\0\0\x07\0\0\0\x03\0\x01a\0\0\0\x01\0\0\0\0\xff\xff\xff\xff";

    #[test]
    fn an_assignment_is_read_and_sorted() {
        let expected = [("a", 0), ("ts", 3), ("ts", 7)].map(|(topic, number)| TopicPartition::new(topic, number));
        assert_eq!(assignment(TWO_TOPICS).unwrap(), expected);
        assert_eq!(assignment(b"\0\0\0\0\0\0\0\0\0\0"), Some(Vec::new()));
    }

    #[test]
    fn an_assignment_that_is_cut_off_is_none() {
        for length in 0..TWO_TOPICS.len() - 4 {
            assert_eq!(assignment(&TWO_TOPICS[..length]), None, "{length} bytes");
        }
        assert_eq!(assignment(b"\0\0\x7f\xff\xff\xff\xff\xff"), None, "a length below zero");
    }
}
