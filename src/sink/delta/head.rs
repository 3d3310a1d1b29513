//! What the newest versions of a job's tables say: when rows came last, and up to which offset they hold each partition.
//!
//! Reads logs alone, no data, and writes nothing. Invariant: a table that does not exist is no error, and is not created.

use std::time::{Duration, SystemTime};

use deltalake::DeltaTable;

use super::log::Log;
use super::store::{open_store, sink_error};
use crate::domain::TopicPartition;
use crate::sink::api::SinkError;
use crate::sink::options::Options;

/// Where a job's results table stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHead {
    pub version: u64,
    /// When rows were last committed, by the clock of the worker; none when that is too many commits ago.
    pub committed: Option<SystemTime>,
    /// The last offset that the table has dealt with, for each partition, in order.
    pub offsets: Vec<(TopicPartition, i64)>,
}

/// The head of a job's results table; none when the job has not run yet.
pub async fn results_head(options: &Options, job: &str) -> Result<Option<TableHead>, SinkError> {
    let store = open_store(&options.url, job, "results", &options.options)?;
    let name = store.root_url().to_string();
    let exists = DeltaTable::new(store.clone()).verify_deltatable_existence().await;
    if !exists.map_err(|error| sink_error(&name, error))? {
        return Ok(None);
    }
    let log = Log::new(&name, store, "reader");
    let (version, transactions) = log.head().await?;
    let prefix = format!("{job}/");
    let mut offsets: Vec<_> = transactions
        .into_iter()
        .filter_map(|(application, offset)| Some((partition_of(application.strip_prefix(&prefix)?)?, offset)))
        .collect();
    offsets.sort();
    let committed = log.last_batch(version).await?;
    let committed = committed.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    Ok(Some(TableHead { version, committed, offsets }))
}

/// `topic/partition`, as the application of a commit ends; a counter of rejections is none.
fn partition_of(name: &str) -> Option<TopicPartition> {
    let (topic, number) = name.rsplit_once('/')?;
    Some(TopicPartition::new(topic, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_rejections_is_no_partition() {
        assert_eq!(partition_of("products/12"), Some(TopicPartition::new("products", 12)));
        assert_eq!(partition_of("products/12/rejections"), None);
        assert_eq!(partition_of("products"), None);
    }
}
