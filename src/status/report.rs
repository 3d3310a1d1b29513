//! What is told about one job, as JSON for scripts and as text for people.
//!
//! It asks nobody. Invariant: what could not be read is left out and named under problems, never told as zero.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Where a job stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct JobStatus {
    pub job: String,
    pub group: String,
    /// Of the job file as it is now.
    pub job_fingerprint: String,
    /// Records that wait in all partitions.
    pub lag: Option<i64>,
    /// Rows of both tables per second, over the last five minutes.
    pub assets_per_second: Option<f64>,
    pub last_commit: Option<LastCommit>,
    /// Members of the consumer group; a worker is one for each topic of the job.
    pub members: Option<Vec<Member>>,
    pub partitions: Vec<PartitionStatus>,
    /// Rows of the rejections table of the last hour.
    pub rejections: Option<Vec<Rejections>>,
    /// What made the last row of the results table.
    pub last_row: Option<LastRow>,
    /// What could not be read, and why.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastCommit {
    /// The version of the results table.
    pub version: u64,
    pub time: Option<String>,
    pub seconds_ago: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    pub id: String,
    pub host: String,
    /// As `topic/partition`.
    pub partitions: Vec<String>,
}

/// One partition. Offsets are those of the next record, as Kafka counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    /// Where the partition ends.
    pub end: Option<i64>,
    /// What the group has committed.
    pub committed: Option<i64>,
    /// What the tables hold; they know better than the group.
    pub in_tables: Option<i64>,
    pub lag: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejections {
    pub stage: String,
    pub reason: String,
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastRow {
    pub time: String,
    pub job_fingerprint: String,
    /// Model name to fingerprint.
    pub models: BTreeMap<String, String>,
}

impl PartitionStatus {
    /// The lag is what lies behind both the group's and the tables' position: the group is behind when it could not be
    /// told, the tables are where a topic ends in control records.
    pub fn new(topic: &str, partition: i32, [end, committed, in_tables]: [Option<i64>; 3]) -> Self {
        let done = committed.into_iter().chain(in_tables).max();
        let lag = end.zip(done).map(|(end, done)| (end - done).max(0));
        Self { topic: topic.to_owned(), partition, end, committed, in_tables, lag }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: lag {}", self.job, told(self.lag))?;
        match self.assets_per_second {
            Some(rate) => write!(f, ", {rate:.1} assets/s")?,
            None => write!(f, ", ? assets/s")?,
        }
        match self.last_commit.as_ref() {
            Some(LastCommit { seconds_ago: Some(seconds), .. }) => write!(f, ", last commit {} ago", age(*seconds))?,
            Some(LastCommit { version, .. }) => write!(f, ", last commit version {version}")?,
            None => write!(f, ", no commit yet")?,
        }
        match self.members.as_ref().map(Vec::len) {
            Some(1) => writeln!(f, ", 1 member"),
            members => writeln!(f, ", {} members", told(members)),
        }?;
        self.partition_lines(f)?;
        self.member_lines(f)?;
        self.rejection_lines(f)?;
        self.fingerprint_lines(f)?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  problem: {problem}"))
    }
}

impl JobStatus {
    fn partition_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.partitions.iter().map(|row| format!("{}/{}", row.topic, row.partition)).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0).max("partition".len());
        writeln!(
            f,
            "  {:<width$}  {:>12}  {:>12}  {:>12}  {:>12}",
            "partition", "end", "committed", "in tables", "lag"
        )?;
        for (name, row) in names.iter().zip(&self.partitions) {
            let [end, committed, in_tables, lag] = [row.end, row.committed, row.in_tables, row.lag].map(told);
            writeln!(f, "  {name:<width$}  {end:>12}  {committed:>12}  {in_tables:>12}  {lag:>12}")?;
        }
        Ok(())
    }

    fn member_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.iter().flatten();
        members.into_iter().try_for_each(|Member { id, host, partitions }| {
            let partitions = if partitions.is_empty() { "nothing".to_owned() } else { partitions.join(", ") };
            writeln!(f, "  member {id} at {host}: {partitions}")
        })
    }

    fn rejection_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rejections) = &self.rejections else { return Ok(()) };
        let total: u64 = rejections.iter().map(|row| row.rows).sum();
        writeln!(f, "  rejected in the last hour: {total}")?;
        rejections
            .iter()
            .try_for_each(|Rejections { stage, reason, rows }| writeln!(f, "  {rows:>12}  {stage}: {reason}"))
    }

    fn fingerprint_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = &self.job_fingerprint;
        let Some(last) = &self.last_row else { return writeln!(f, "  job {now}") };
        let models: Vec<_> = last.models.iter().map(|(name, fingerprint)| format!("{name} {fingerprint}")).collect();
        let job = match last.job_fingerprint == *now {
            true => format!("job {now}, as the job file is now"),
            false => format!("job {}, and the job file is now {now}", last.job_fingerprint),
        };
        writeln!(f, "  last row by {job}; models: {}", models.join(", "))
    }
}

fn told<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> JobStatus {
        JobStatus {
            job: "mugs".to_owned(),
            group: "assay-mugs".to_owned(),
            job_fingerprint: "00ff".to_owned(),
            lag: Some(10),
            assets_per_second: Some(85.46),
            last_commit: Some(LastCommit { version: 7, time: None, seconds_ago: Some(130) }),
            members: Some(vec![Member { id: "a-1".into(), host: "h".into(), partitions: vec!["t/0".into()] }]),
            partitions: vec![PartitionStatus::new("t", 0, [Some(1000), Some(985), Some(990)])],
            rejections: Some(vec![Rejections { stage: "fetch".into(), reason: "media_not_found".into(), rows: 4 }]),
            last_row: Some(LastRow {
                time: "2026-01-01T00:00:00Z".into(),
                job_fingerprint: "00ff".into(),
                models: [("clip".to_owned(), "abcd".to_owned())].into(),
            }),
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_person_reads_lag_rate_commit_members_partitions_rejections_and_fingerprints() {
        let expected = "\
mugs: lag 10, 85.5 assets/s, last commit 2 min ago, 1 member
  partition           end     committed     in tables           lag
  t/0                1000           985           990            10
  member a-1 at h: t/0
  rejected in the last hour: 4
             4  fetch: media_not_found
  last row by job 00ff, as the job file is now; models: clip abcd
";
        assert_eq!(status().to_string(), expected);
    }

    #[test]
    fn what_is_not_known_is_a_question_mark_and_null_and_never_zero() {
        let unknown = JobStatus {
            job: "mugs".to_owned(),
            partitions: vec![PartitionStatus::new("t", 0, [None, None, Some(990)])],
            problems: vec!["Kafka: nobody is there".to_owned()],
            ..JobStatus::default()
        };
        let text = unknown.to_string();
        assert!(text.starts_with("mugs: lag ?, ? assets/s, no commit yet, ? members\n"), "{text}");
        assert!(text.ends_with("  problem: Kafka: nobody is there\n"), "{text}");
        let json = serde_json::to_value(&unknown).unwrap();
        assert!(json["lag"].is_null() && json["members"].is_null() && json["partitions"][0]["lag"].is_null(), "{json}");
    }

    #[test]
    fn a_job_file_that_has_changed_since_the_last_row_is_said() {
        let changed = JobStatus { job_fingerprint: "1234".to_owned(), ..status() };
        assert!(changed.to_string().contains("last row by job 00ff, and the job file is now 1234"), "{changed}");
    }

    #[test]
    fn the_lag_counts_what_lies_behind_both_the_group_and_the_tables() {
        let lag = |end, committed, in_tables| PartitionStatus::new("t", 0, [end, committed, in_tables]).lag;
        assert_eq!(lag(Some(10), Some(4), Some(6)), Some(4));
        assert_eq!(lag(Some(10), Some(10), Some(9)), Some(0), "the last record is a control record");
        assert_eq!(lag(Some(0), Some(5), None), Some(0), "an emptied partition");
        assert_eq!(lag(Some(3), None, None), None);
    }
}
