//! The [`Sink`] over two Delta tables of a job, `results` and `rejections`.
//!
//! Knows the order of the tables: rejections first, under a compare-and-set of their own, then results with the offsets.
//! A worker that dies in between leaves rejections ahead of the results, which the next owner sees in [`Resume`].
//! Invariant: nothing of a partition is written once its log has moved past the beginning of the range.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::commit::{Claim, Settled, Work};
use super::resume::written_rejections;
use super::store::open_store;
use super::table::Table;
use crate::domain::{ColumnType, Row, TableSchema, TopicPartition, Value};
use crate::metrics::Metrics;
use crate::sink::api::{Batch, Committed, Range, RejectionMark, Resume, Sink, SinkError};
use crate::sink::options::Options;

/// The tables of one job, as one writer sees them.
pub struct DeltaSink {
    job: String,
    results: Table,
    rejections: Table,
    /// Positions of topic and partition in a row of results.
    owner: (usize, usize),
    /// Names this writer in its commits, so that it recognises them.
    instance: String,
    current: Mutex<Current>,
    /// How often partitions were taken over; part of those commits' names.
    take_overs: AtomicU64,
    metrics: Arc<Metrics>,
}

/// The batch given last. Commits run one after the other.
#[derive(Default)]
struct Current {
    sequence: u64,
    ranges: Vec<Range>,
    settled: bool,
}

impl DeltaSink {
    /// Does not touch the store yet.
    ///
    /// # Errors
    /// [`SinkError::Configuration`] when the URL or its options are wrong, or a schema lacks the columns `topic` and
    /// `partition` (and `offset`, in rejections).
    pub fn new(
        job: &str,
        options: &Options,
        results: TableSchema,
        rejections: TableSchema,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SinkError> {
        let instance = format!("{:032x}-", rand::random::<u128>());
        let store = open_store(&options.url, job, "results", &options.options)?;
        let results = Table::new("results", results, options.partition_by.clone(), store, &instance)?;
        let store = open_store(&options.url, job, "rejections", &options.options)?;
        let rejections = Table::new("rejections", rejections, Vec::new(), store, &instance)?;
        let owner = (require_column(&results, "topic")?, require_column(&results, "partition")?);
        for name in ["topic", "partition", "offset"] {
            require_column(&rejections, name)?;
        }
        let current = Mutex::new(Current::default());
        let take_overs = AtomicU64::new(0);
        Ok(Self { job: job.to_owned(), results, rejections, owner, instance, current, take_overs, metrics })
    }

    fn application(&self, partition: &TopicPartition) -> String {
        format!("{}/{partition}", self.job)
    }

    fn rejection_counter(&self, partition: &TopicPartition) -> String {
        format!("{}/{partition}/rejections", self.job)
    }

    /// Writes the rejections of all partitions that have some. The answer holds the partitions that were written, with
    /// their new marks; a partition with rejections that is not in it is fenced.
    pub(super) async fn commit_rejections(
        &self,
        batch: &Batch,
        id: &str,
    ) -> Result<HashMap<TopicPartition, RejectionMark>, SinkError> {
        let mut last: HashMap<&TopicPartition, i64> = HashMap::new();
        for (partition, offset, _) in &batch.rejections {
            let highest = last.entry(partition).or_insert(*offset);
            *highest = (*highest).max(*offset);
        }
        let touched: Vec<(&Range, RejectionMark)> = batch
            .ranges
            .iter()
            .filter_map(|range| {
                let offset = *last.get(&range.partition)?;
                let old = range.rejections;
                let offset = old.last_offset.map_or(offset, |before| before.max(offset));
                Some((range, RejectionMark { commits: old.commits + 1, last_offset: Some(offset) }))
            })
            .collect();
        if touched.is_empty() {
            return Ok(HashMap::new());
        }
        let positions: HashMap<&TopicPartition, usize> =
            touched.iter().enumerate().map(|(index, (range, _))| (&range.partition, index)).collect();
        let claims = touched.iter().map(|(range, mark)| self.rejection_claim(range, *mark)).collect();
        let rows = batch.rejections.iter().map(|(partition, _, row)| (positions[partition], row)).collect();
        let settled = self.settle(Work { table: &self.rejections, batch: id, claims, rows }).await?;
        let done = touched.iter().zip(&settled.done).filter(|(_, done)| **done);
        Ok(done.map(|((range, mark), _)| (range.partition.clone(), *mark)).collect())
    }

    fn rejection_claim(&self, range: &Range, mark: RejectionMark) -> Claim {
        let (offsets, counter) = (self.application(&range.partition), self.rejection_counter(&range.partition));
        let old = range.rejections;
        Claim {
            expect: vec![
                (offsets.clone(), old.last_offset),
                (counter.clone(), Some(old.commits).filter(|commits| *commits > 0)),
            ],
            write: vec![
                (offsets, mark.last_offset.expect("a written rejection has an offset")),
                (counter, mark.commits),
            ],
        }
    }

    /// Raises the counters of the partitions' rejections. From then on no earlier owner can write a rejection, so what
    /// [`Sink::resume`] reads afterwards is all that there will be of them.
    async fn take_over(&self, partitions: &[TopicPartition]) -> Result<(), SinkError> {
        let mut left: Vec<String> = partitions.iter().map(|partition| self.rejection_counter(partition)).collect();
        while !left.is_empty() {
            let id = format!("{}take-over-{}", self.instance, self.take_overs.fetch_add(1, Ordering::Relaxed));
            let view = self.rejections.log.view(&left, "").await?;
            let claims = left.iter().map(|counter| {
                let now = view.transactions.get(counter).copied();
                Claim { expect: vec![(counter.clone(), now)], write: vec![(counter.clone(), now.unwrap_or(0) + 1)] }
            });
            let work = Work { table: &self.rejections, batch: &id, claims: claims.collect(), rows: Vec::new() };
            let settled = self.settle(work).await?;
            left = left.into_iter().zip(settled.done).filter(|(_, done)| !done).map(|(counter, _)| counter).collect();
        }
        Ok(())
    }

    /// Writes the rows and offsets of the given ranges.
    async fn commit_results(&self, batch: &Batch, id: &str, ranges: &[&Range]) -> Result<Settled, SinkError> {
        let positions: HashMap<(&str, i64), usize> =
            ranges.iter().enumerate().map(|(index, range)| (key(&range.partition), index)).collect();
        let claims = ranges
            .iter()
            .map(|range| {
                let application = self.application(&range.partition);
                Claim { expect: vec![(application.clone(), range.from)], write: vec![(application, range.to)] }
            })
            .collect();
        let rows = batch.results.iter().filter_map(|row| Some((*positions.get(&self.owner_of(row)?)?, row))).collect();
        self.settle(Work { table: &self.results, batch: id, claims, rows }).await
    }

    async fn settle(&self, work: Work<'_>) -> Result<Settled, SinkError> {
        let conflicts = self.metrics.commit_retries_total.with_label_values(&[self.job.as_str(), "conflict"]);
        work.settle(|| conflicts.inc()).await
    }

    fn owner_of<'a>(&self, row: &'a Row) -> Option<(&'a str, i64)> {
        match (row.get(self.owner.0)?, row.get(self.owner.1)?) {
            (Value::Text(topic), Value::Integer(partition)) => Some((topic, *partition)),
            _ => None,
        }
    }

    /// Refuses a batch that breaks its own promises before anything of it is written.
    fn check(&self, batch: &Batch) -> Result<(), SinkError> {
        let wrong = |column: &str, detail: String| Err(SinkError::Encoding { column: column.to_owned(), detail });
        let mut partitions: HashSet<(&str, i64)> = HashSet::new();
        for range in &batch.ranges {
            if range.from.is_some_and(|from| from >= range.to) {
                return wrong("offset", format!("the range of {} ends before it begins", range.partition));
            }
            if !partitions.insert(key(&range.partition)) {
                return wrong("partition", format!("the batch has two ranges of {}", range.partition));
            }
        }
        for row in &batch.results {
            if !self.owner_of(row).is_some_and(|owner| partitions.contains(&owner)) {
                return wrong("partition", "a row of results belongs to none of the batch's ranges".to_owned());
            }
        }
        for (partition, offset, _) in &batch.rejections {
            if !partitions.contains(&key(partition)) {
                return wrong("partition", format!("rejection {partition} {offset} belongs to none of the ranges"));
            }
        }
        Ok(())
    }

    /// The name of the batch: the one it got before when it is given again.
    fn identify(&self, current: &mut Current, batch: &Batch) -> String {
        if current.ranges == batch.ranges {
            self.metrics.commit_retries_total.with_label_values(&[self.job.as_str(), "unavailable"]).inc();
        } else {
            *current = Current { sequence: current.sequence + 1, ranges: batch.ranges.clone(), settled: false };
        }
        format!("{}{}", self.instance, current.sequence)
    }

    fn count(&self, committed: &Committed, batch: &Batch) {
        let job = self.job.as_str();
        let done: HashSet<(&str, i64)> = committed.done.iter().map(|(partition, _)| key(partition)).collect();
        let results = batch.results.iter().filter_map(|row| self.owner_of(row)).filter(|owner| done.contains(owner));
        let rejections = batch.rejections.iter().filter(|(partition, _, _)| done.contains(&key(partition)));
        let (results, rejections) = (results.count(), rejections.count());
        for (table, rows) in [(&self.results, results), (&self.rejections, rejections)] {
            self.metrics.rows_committed_total.with_label_values(&[job, table.kind]).inc_by(rows as u64);
        }
        self.metrics.fenced_partitions_total.with_label_values(&[job]).inc_by(committed.fenced.len() as u64);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.last_commit_timestamp_seconds.with_label_values(&[job]).set(now.as_secs_f64());
    }
}

#[async_trait]
impl Sink for DeltaSink {
    async fn open(&self) -> Result<(), SinkError> {
        self.results.structure(0).await?;
        self.rejections.structure(0).await?;
        Ok(())
    }

    async fn resume(&self, partitions: &[TopicPartition]) -> Result<Vec<Resume>, SinkError> {
        self.take_over(partitions).await?;
        let applications: Vec<String> = partitions.iter().map(|partition| self.application(partition)).collect();
        // Results first: what is rejected meanwhile then lies behind `committed` and is seen as already rejected.
        let results = self.results.log.view(&applications, "").await?;
        let mut counters = applications.clone();
        counters.extend(partitions.iter().map(|partition| self.rejection_counter(partition)));
        let rejections = self.rejections.log.view(&counters, "").await?;
        let mut resumes: Vec<Resume> = partitions
            .iter()
            .zip(&applications)
            .map(|(partition, application)| Resume {
                partition: partition.clone(),
                committed: results.transactions.get(application).copied(),
                rejections: RejectionMark {
                    commits: *rejections.transactions.get(&self.rejection_counter(partition)).unwrap_or(&0),
                    last_offset: rejections.transactions.get(application).copied(),
                },
                already_rejected: Vec::new(),
            })
            .collect();
        for resume in &mut resumes {
            if resume.rejections.last_offset > resume.committed {
                resume.already_rejected =
                    written_rejections(&self.rejections, &resume.partition, resume.committed).await?;
            }
        }
        Ok(resumes)
    }

    async fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, SinkError> {
        let applications: Vec<String> = partitions.iter().map(|partition| self.application(partition)).collect();
        let view = self.results.log.view(&applications, "").await?;
        Ok(applications.iter().map(|application| view.transactions.get(application).copied()).collect())
    }

    async fn commit(&self, batch: &Batch) -> Result<Committed, SinkError> {
        if batch.ranges.is_empty() && batch.results.is_empty() && batch.rejections.is_empty() {
            return Ok(Committed::default());
        }
        self.check(batch)?;
        let started = Instant::now();
        let mut current = self.current.lock().await;
        let id = self.identify(&mut current, batch);
        let with_rejections: HashSet<&TopicPartition> =
            batch.rejections.iter().map(|(partition, _, _)| partition).collect();
        let marks = self.commit_rejections(batch, &id).await?;
        let (live, fenced): (Vec<&Range>, Vec<&Range>) = batch
            .ranges
            .iter()
            .partition(|range| !with_rejections.contains(&range.partition) || marks.contains_key(&range.partition));
        let fenced = fenced.into_iter().map(|range| range.partition.clone()).collect();
        let mut committed = Committed { fenced, ..Committed::default() };
        if !live.is_empty() {
            let settled = self.commit_results(batch, &id, &live).await?;
            committed.version = settled.version;
            for (range, done) in live.into_iter().zip(settled.done) {
                let partition = range.partition.clone();
                if done {
                    let mark = marks.get(&partition).copied().unwrap_or(range.rejections);
                    committed.done.push((partition, mark));
                } else {
                    committed.fenced.push(partition);
                }
            }
        }
        if !std::mem::replace(&mut current.settled, true) {
            self.count(&committed, batch);
            self.metrics
                .commit_seconds
                .with_label_values(&[self.job.as_str()])
                .observe(started.elapsed().as_secs_f64());
        }
        Ok(committed)
    }
}

/// A partition as a row of results names it.
fn key(partition: &TopicPartition) -> (&str, i64) {
    (&partition.topic, i64::from(partition.partition))
}

fn require_column(table: &Table, name: &str) -> Result<usize, SinkError> {
    let fits = |kind: &ColumnType| match name {
        "topic" => *kind == ColumnType::Text,
        _ => matches!(kind, ColumnType::Int32 | ColumnType::Int64),
    };
    match table.schema.position(name) {
        Some(position) if fits(&table.schema.columns[position].kind) => Ok(position),
        _ => Err(SinkError::Configuration {
            table: table.name.clone(),
            detail: format!("its schema lacks the lineage column {name}, or has it with another type"),
        }),
    }
}
