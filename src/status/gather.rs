//! Asks the source and the tables of one job, at the same time.
//!
//! It knows which question goes to whom. Invariant: what one of them cannot answer does not keep the others from being
//! told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::report::{JobStatus, LastCommit, LastRow, Member, PartitionStatus, Rejections};
use crate::app::source_of;
use crate::config::Config;
use crate::domain::TopicPartition;
use crate::job::JobSpec;
use crate::metrics::Metrics;
use crate::query::{Format, QueryError, QuerySession, write};
use crate::sink::{TableHead, results_head};
use crate::source::{GroupMember, SourceError};

/// Seconds over which the rate is taken.
const RATE_WINDOW: u32 = 300;

/// Where a job stands now.
pub async fn gather(config: &Config, job: &JobSpec) -> JobStatus {
    let (source, tables) = tokio::join!(ask_source(config, job), ask_tables(config, job));
    let mut status = JobStatus {
        job: job.name.clone(),
        group: job.group.clone(),
        job_fingerprint: job.fingerprint(),
        problems: source.problems,
        ..JobStatus::default()
    };
    status.problems.extend(tables.problems);
    status.partitions = partitions(source.ends, source.committed, tables.head.as_ref());
    // An unknown partition makes the sum unknown.
    status.lag = match status.partitions.is_empty() {
        true => None,
        false => status.partitions.iter().map(|partition| partition.lag).sum(),
    };
    status.members = source.members.map(|members| members.into_iter().map(member).collect());
    status.last_commit = tables.head.map(last_commit);
    status.assets_per_second = tables.assets_per_second;
    status.rejections = tables.rejections;
    status.last_row = tables.last_row;
    status
}

#[derive(Default)]
struct SourceAnswers {
    ends: Vec<(TopicPartition, i64)>,
    committed: Vec<(TopicPartition, i64)>,
    members: Option<Vec<GroupMember>>,
    problems: Vec<String>,
}

async fn ask_source(config: &Config, job: &JobSpec) -> SourceAnswers {
    let mut answers = SourceAnswers::default();
    // The metrics are those of a worker, which this is not; nobody reads them.
    let source = match source_of(config, job, &Arc::new(Metrics::new())) {
        Ok(source) => source,
        Err(error) => {
            answers.problems.push(error.to_string());
            return answers;
        }
    };
    let (ends, committed, members) = tokio::join!(source.ends(), source.committed(), source.members());
    let mut known = |what: &str, error: SourceError| answers.problems.push(format!("{what}: {error}"));
    answers.ends = ends.unwrap_or_else(|error| {
        known("the ends of the topics cannot be read", error);
        Vec::new()
    });
    answers.committed = committed.unwrap_or_else(|error| {
        known("the offsets of the group cannot be read", error);
        Vec::new()
    });
    answers.members = match members {
        Ok(members) => Some(members),
        Err(error) => {
            known("the members of the group cannot be read", error);
            None
        }
    };
    answers
}

#[derive(Default)]
struct TableAnswers {
    head: Option<TableHead>,
    assets_per_second: Option<f64>,
    rejections: Option<Vec<Rejections>>,
    last_row: Option<LastRow>,
    problems: Vec<String>,
}

async fn ask_tables(config: &Config, job: &JobSpec) -> TableAnswers {
    let mut answers = TableAnswers::default();
    match results_head(&config.tables, &job.name).await {
        Ok(head) => answers.head = head,
        Err(error) => answers.problems.push(error.to_string()),
    }
    if answers.head.is_none() {
        return answers;
    }
    if let Err(error) = ask_in_sql(config, job, &mut answers).await {
        answers.problems.push(error.to_string());
    }
    answers
}

async fn ask_in_sql(config: &Config, job: &JobSpec, answers: &mut TableAnswers) -> Result<(), QueryError> {
    let session = QuerySession::open(&[config.job_tables(&job.name)], Some(&job.name)).await?;
    // Conditions on the time let whole files be passed over, whatever the size of the tables.
    let recent = |table: &str| {
        format!("SELECT count(*) AS rows FROM {table} WHERE processed_time > now() - INTERVAL '{RATE_WINDOW}' SECOND")
    };
    let sum = format!("SELECT sum(rows) AS rows FROM ({} UNION ALL {})", recent("results"), recent("rejections"));
    let counted: Vec<Counted> = rows(&session, &sum).await?;
    answers.assets_per_second = counted.first().map(|counted| counted.rows as f64 / f64::from(RATE_WINDOW));
    let reasons = "SELECT stage, reason, count(*) AS rows FROM rejections WHERE processed_time > now() - INTERVAL '1' HOUR \
                   GROUP BY stage, reason ORDER BY rows DESC, stage, reason";
    answers.rejections = Some(rows::<Reason>(&session, reasons).await?.into_iter().map(Reason::told).collect());
    let since = answers.head.as_ref().and_then(|head| head.committed).map_or(String::new(), |committed| {
        // A row is made before it is committed, at most a worker's patience before.
        let day_before = committed - std::time::Duration::from_secs(86_400);
        format!("WHERE processed_time > TIMESTAMP '{}'", humantime::format_rfc3339_micros(day_before))
    });
    let last = format!(
        "SELECT processed_time, job_fingerprint, models FROM results {since} ORDER BY processed_time DESC LIMIT 1"
    );
    answers.last_row = rows::<Row>(&session, &last).await?.into_iter().next().map(Row::told);
    Ok(())
}

/// The answer of a query, read back from JSON.
async fn rows<T: DeserializeOwned>(session: &QuerySession, sql: &str) -> Result<Vec<T>, QueryError> {
    let mut text = Vec::new();
    write(session.run(sql).await?, Format::Json, &mut text).await?;
    serde_json::from_slice(&text)
        .map_err(|error| QueryError::Execution { detail: format!("the answer to {sql:?} is not as expected: {error}") })
}

#[derive(Deserialize)]
struct Counted {
    rows: u64,
}

#[derive(Deserialize)]
struct Reason {
    stage: String,
    reason: String,
    rows: u64,
}

impl Reason {
    fn told(self) -> Rejections {
        Rejections { stage: self.stage, reason: self.reason, rows: self.rows }
    }
}

#[derive(Deserialize)]
struct Row {
    processed_time: String,
    job_fingerprint: String,
    models: Option<BTreeMap<String, Option<String>>>,
}

impl Row {
    fn told(self) -> LastRow {
        let models = self.models.unwrap_or_default().into_iter();
        let models = models.map(|(name, fingerprint)| (name, fingerprint.unwrap_or_default())).collect();
        LastRow { time: self.processed_time, job_fingerprint: self.job_fingerprint, models }
    }
}

/// One row for each partition that anybody knows.
fn partitions(
    ends: Vec<(TopicPartition, i64)>,
    committed: Vec<(TopicPartition, i64)>,
    head: Option<&TableHead>,
) -> Vec<PartitionStatus> {
    let mut rows: BTreeMap<TopicPartition, [Option<i64>; 3]> = BTreeMap::new();
    let in_tables = head.map(|head| head.offsets.clone()).unwrap_or_default().into_iter();
    let in_tables = in_tables.map(|(partition, last)| (partition, last + 1)).collect();
    for (column, positions) in [ends, committed, in_tables].into_iter().enumerate() {
        for (partition, position) in positions {
            rows.entry(partition).or_default()[column] = Some(position);
        }
    }
    rows.into_iter().map(|(row, positions)| PartitionStatus::new(&row.topic, row.partition, positions)).collect()
}

fn member(member: GroupMember) -> Member {
    let GroupMember { id, host, partitions } = member;
    Member { id, host, partitions: partitions.iter().map(ToString::to_string).collect() }
}

fn last_commit(head: TableHead) -> LastCommit {
    let time = head.committed.map(|time| humantime::format_rfc3339_millis(time).to_string());
    // A worker's clock may be ahead of ours.
    let ago = head.committed.map(|time| SystemTime::now().duration_since(time).unwrap_or_default().as_secs());
    LastCommit { version: head.version, time, seconds_ago: ago }
}
