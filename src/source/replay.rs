//! JSON-lines files as topics: a file is partition 0, a folder holds `0.jsonl`, `1.jsonl`, ...; the offset is the index
//! of the line. Files may grow; they must not be rewritten.
//!
//! This file knows nothing of what a line means (see `lines`). Invariants: one task does everything, so between an
//! `Assigned` and its answer nothing is delivered; a reassigned partition drops what it had read ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::api::{Flow, Rebalance, Record, Source, SourceError, Streams};
use super::lines::{self, Place};
use crate::domain::{Epoch, Origin, TopicPartition};

/// Records that wait for the coordinator at most.
const FLOW_CAPACITY: usize = 1024;
/// How often files are looked at for new lines.
const GROWTH_INTERVAL: Duration = Duration::from_millis(500);
/// How long `close` waits for the answer to the last revocation.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// Which files stand for which topics.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayOptions {
    /// Topic name to a JSON-lines file (partition 0) or a folder of `0.jsonl`, `1.jsonl`, ...
    pub topics: BTreeMap<String, PathBuf>,
}

/// Files with the meaning of a consumer group's topics; all partitions are always ours.
pub struct ReplaySource {
    files: BTreeMap<TopicPartition, PathBuf>,
    wishes: watch::Sender<Wishes>,
    committed: Mutex<BTreeMap<TopicPartition, i64>>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

/// What the coordinator wants of the task.
#[derive(Debug, Clone, Default)]
struct Wishes {
    paused: bool,
    closing: bool,
    started: bool,
    reassign: BTreeSet<TopicPartition>,
}

impl ReplaySource {
    /// Finds the files of `topics`. Errors: a topic that `options` does not name, or whose files are missing.
    pub fn new(options: ReplayOptions, topics: &[String]) -> Result<Self, SourceError> {
        let mut files = BTreeMap::new();
        for topic in topics {
            let path = options.topics.get(topic).ok_or_else(|| SourceError::Topic {
                topic: topic.clone(),
                detail: "no file is given for it; add it to [source.replay.topics]".to_owned(),
            })?;
            let name: Arc<str> = topic.as_str().into();
            for (partition, file) in (0..).zip(lines::partitions(topic, path)?) {
                files.insert(TopicPartition::new(name.clone(), partition), file);
            }
        }
        Ok(Self {
            files,
            wishes: watch::channel(Wishes::default()).0,
            committed: Mutex::default(),
            ended: Mutex::default(),
        })
    }
}

#[async_trait]
impl Source for ReplaySource {
    fn start(&self) -> Result<Streams, SourceError> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|_| SourceError::Configuration { detail: "start needs a tokio runtime".to_owned() })?;
        let first = self.wishes.send_if_modified(|wishes| !std::mem::replace(&mut wishes.started, true));
        if !first {
            return Err(SourceError::Closed);
        }
        let (flow, flow_receiver) = mpsc::channel(FLOW_CAPACITY);
        let (control, rebalances) = mpsc::channel(4);
        let (fail, failure) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let files = self.files.iter().map(|(partition, path)| (partition.clone(), Cursor::new(path))).collect();
        let mut reader = Reader {
            files,
            flow,
            control,
            wishes: self.wishes.subscribe(),
            wisher: self.wishes.clone(),
            epoch: Epoch(0),
        };
        runtime.spawn(async move {
            let outcome = reader.run().await;
            reader.revoke().await;
            if let Err(Stop::Failed(error)) = outcome {
                // The coordinator may be gone already; then nobody asks for the reason.
                let _ = fail.send(error);
            }
            drop(reader);
            let _ = end.send(());
        });
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        Ok(Streams { flow: flow_receiver, rebalances, failure })
    }

    fn set_flowing(&self, flowing: bool) {
        self.wishes.send_modify(|wishes| wishes.paused = !flowing);
    }

    fn reassign(&self, partitions: Vec<TopicPartition>) {
        let known = partitions.into_iter().filter(|partition| self.files.contains_key(partition));
        self.wishes.send_modify(|wishes| wishes.reassign.extend(known));
    }

    async fn commit(&self, positions: Vec<(TopicPartition, i64)>) -> Result<(), SourceError> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner).extend(positions);
        Ok(())
    }

    async fn ends(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
        let files = self.files.clone();
        blocking(move || {
            files.into_iter().map(|(partition, path)| Ok((partition, lines::count_lines(&path)? as i64))).collect()
        })
        .await
    }

    /// Positions are kept in memory only: after a restart they are zero, and the tables say where to go on.
    async fn committed(&self) -> Result<Vec<(TopicPartition, i64)>, SourceError> {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let position = |partition: &TopicPartition| committed.get(partition).copied().unwrap_or(0);
        Ok(self.files.keys().map(|partition| (partition.clone(), position(partition))).collect())
    }

    async fn close(&self) {
        self.wishes.send_modify(|wishes| wishes.closing = true);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            let _ = tokio::time::timeout(CLOSE_PATIENCE, ended).await;
        }
    }
}

impl Drop for ReplaySource {
    fn drop(&mut self) {
        self.wishes.send_modify(|wishes| wishes.closing = true);
    }
}

/// Why the task stops, or stops with one partition.
enum Stop {
    /// `close` was called, or the coordinator is gone.
    Closed,
    /// A wish must be served before delivery goes on.
    Interrupted,
    Failed(SourceError),
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        Self::Failed(error)
    }
}

/// How far one file has been delivered.
struct Cursor {
    path: PathBuf,
    epoch: Epoch,
    place: Place,
    /// The size of the file when its end was reached; none while there may be more.
    end: Option<u64>,
    /// The `next` of the last `EndReached`.
    told: Option<i64>,
}

impl Cursor {
    fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), epoch: Epoch(0), place: Place::default(), end: None, told: None }
    }
}

/// The task's state.
struct Reader {
    files: BTreeMap<TopicPartition, Cursor>,
    flow: mpsc::Sender<Flow>,
    control: mpsc::Sender<Rebalance>,
    wishes: watch::Receiver<Wishes>,
    wisher: watch::Sender<Wishes>,
    epoch: Epoch,
}

impl Reader {
    async fn run(&mut self) -> Result<(), Stop> {
        let partitions: Vec<_> = self.files.keys().cloned().collect();
        self.assign(partitions.clone()).await?;
        let mut growth = tokio::time::interval(GROWTH_INTERVAL);
        growth.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.serve_wishes().await?;
            let mut progressed = false;
            for partition in &partitions {
                match self.advance(partition).await {
                    Ok(more) => progressed |= more,
                    Err(Stop::Interrupted) => progressed = true,
                    Err(stop) => return Err(stop),
                }
            }
            if !progressed {
                tokio::select! {
                    _ = growth.tick() => {}
                    _ = self.wishes.changed() => {}
                }
            }
        }
    }

    async fn serve_wishes(&mut self) -> Result<(), Stop> {
        let reassign = {
            let wishes = self.wishes.borrow_and_update();
            if wishes.closing {
                return Err(Stop::Closed);
            }
            wishes.reassign.clone()
        };
        if reassign.is_empty() {
            return Ok(());
        }
        // Only what is served now is taken away: a wish that comes meanwhile is served in the next round.
        self.wisher.send_modify(|wishes| wishes.reassign.retain(|partition| !reassign.contains(partition)));
        self.assign(reassign.into_iter().collect()).await
    }

    /// Announces the partitions under a new epoch and goes to the places that the answer names.
    async fn assign(&mut self, partitions: Vec<TopicPartition>) -> Result<(), Stop> {
        self.epoch = self.epoch.next();
        let (resume, answer) = oneshot::channel();
        let message = Rebalance::Assigned { partitions: partitions.clone(), epoch: self.epoch, resume };
        self.control.send(message).await.map_err(|_| Stop::Closed)?;
        let starts: BTreeMap<_, _> = answer.await.map_err(|_| Stop::Closed)?.into_iter().collect();
        for partition in partitions {
            let Some(cursor) = self.files.get_mut(&partition) else { continue };
            let line = u64::try_from(starts.get(&partition).copied().unwrap_or(0)).unwrap_or(0);
            let path = cursor.path.clone();
            let place = blocking(move || lines::find_line(&path, line)).await?;
            *cursor = Cursor { place, epoch: self.epoch, ..Cursor::new(&cursor.path) };
        }
        Ok(())
    }

    /// Tells that nothing is ours any more; a coordinator that is gone needs no telling.
    async fn revoke(&mut self) {
        let (done, answer) = oneshot::channel();
        let partitions = self.files.keys().cloned().collect();
        if self.control.send(Rebalance::Revoked { partitions, done }).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Delivers the next chunk of one partition, or that its end is reached. True when there was something to do.
    async fn advance(&mut self, partition: &TopicPartition) -> Result<bool, Stop> {
        let Some(cursor) = self.files.get(partition) else { return Ok(false) };
        let (path, place, epoch, end) = (cursor.path.clone(), cursor.place, cursor.epoch, cursor.end);
        let chunk = blocking(move || {
            let size = lines::size(&path)?;
            if end == Some(size) { Ok(None) } else { lines::read_chunk(&path, place).map(|chunk| Some((size, chunk))) }
        });
        let Some((size, chunk)) = chunk.await? else { return Ok(false) };
        for (line, bytes) in chunk.lines {
            self.deliver(Flow::Record(record(partition, line, epoch, &bytes))).await?;
        }
        let next = chunk.next.line as i64;
        let cursor = self.files.get_mut(partition).expect("partitions are never taken out");
        cursor.place = chunk.next;
        cursor.end = chunk.end.then_some(size);
        if chunk.end && cursor.told != Some(next) {
            cursor.told = Some(next);
            self.deliver(Flow::EndReached { partition: partition.clone(), epoch, next }).await?;
        }
        Ok(true)
    }

    /// Waits for room and for delivery to be wanted. An interruption leaves the partition where it is: a partition
    /// that is assigned again reads its lines again, and closing needs them no more.
    async fn deliver(&mut self, item: Flow) -> Result<(), Stop> {
        loop {
            let paused = {
                let wishes = self.wishes.borrow_and_update();
                if wishes.closing {
                    return Err(Stop::Closed);
                }
                let current = match &item {
                    Flow::Record(record) => &record.origin.partition,
                    Flow::EndReached { partition, .. } => partition,
                };
                if wishes.reassign.contains(current) {
                    return Err(Stop::Interrupted);
                }
                wishes.paused
            };
            tokio::select! {
                biased;
                changed = self.wishes.changed() => changed.map_err(|_| Stop::Closed)?,
                permit = self.flow.reserve(), if !paused => {
                    permit.map_err(|_| Stop::Closed)?.send(item);
                    return Ok(());
                }
            }
        }
    }
}

fn record(partition: &TopicPartition, line: u64, epoch: Epoch, bytes: &[u8]) -> Record {
    let message = lines::interpret(bytes);
    let origin = Origin {
        partition: partition.clone(),
        offset: line as i64,
        key: message.key,
        message_time: message.time,
        headers: message.headers,
    };
    Record { origin, epoch, payload: message.payload }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    // A cancelled blocking task means that the runtime is going down.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SourceError::Closed))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        source: ReplaySource,
        streams: Streams,
    }

    fn fixture(files: &[&str]) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        for (index, text) in files.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.jsonl")), text).unwrap();
        }
        let options = ReplayOptions { topics: [("t".to_owned(), folder.path().to_path_buf())].into() };
        let source = ReplaySource::new(options, &["t".to_owned()]).unwrap();
        let streams = source.start().unwrap();
        Fixture { folder, source, streams }
    }

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    impl Fixture {
        async fn answer(&mut self, starts: &[(i32, i64)]) -> (Vec<TopicPartition>, Epoch) {
            match self.streams.rebalances.recv().await.unwrap() {
                Rebalance::Assigned { partitions, epoch, resume } => {
                    resume.send(starts.iter().map(|(number, offset)| (partition(*number), *offset)).collect()).unwrap();
                    (partitions, epoch)
                }
                other => panic!("expected an assignment, got {other:?}"),
            }
        }

        async fn record(&mut self) -> Record {
            match self.streams.flow.recv().await.unwrap() {
                Flow::Record(record) => record,
                other => panic!("expected a record, got {other:?}"),
            }
        }

        async fn end(&mut self) -> (TopicPartition, i64) {
            match self.streams.flow.recv().await.unwrap() {
                Flow::EndReached { partition, next, .. } => (partition, next),
                other => panic!("expected an end, got {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn records_start_at_the_answer_and_the_end_is_told_once_per_partition() {
        let mut fixture = fixture(&["{\"id\":\"a\"}\n\n{\"id\":\"b\"}\n", "x\n"]);
        let (partitions, epoch) = fixture.answer(&[(0, 1)]).await;
        assert_eq!(partitions, [partition(0), partition(1)]);
        let record = fixture.record().await;
        assert_eq!((record.origin.offset, record.origin.key.as_deref(), record.epoch), (2, Some("b"), epoch));
        assert_eq!(fixture.end().await, (partition(0), 3));
        assert_eq!(fixture.record().await.payload.as_deref(), Some(b"x".as_slice()));
        assert_eq!(fixture.end().await, (partition(1), 1));
        assert_eq!(fixture.source.ends().await.unwrap(), [(partition(0), 3), (partition(1), 1)]);
    }

    #[tokio::test]
    async fn lines_that_are_appended_later_are_delivered() {
        let mut fixture = fixture(&["a\nb"]);
        fixture.answer(&[]).await;
        fixture.record().await;
        assert_eq!(fixture.end().await, (partition(0), 1));
        let path = fixture.folder.path().join("0.jsonl");
        std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"c\nd\n").unwrap();
        let record = fixture.record().await;
        assert_eq!((record.origin.offset, record.payload.as_deref()), (1, Some(b"bc".as_slice())));
        assert_eq!(fixture.record().await.origin.offset, 2);
        assert_eq!(fixture.end().await, (partition(0), 3));
    }

    #[tokio::test]
    async fn a_reassigned_partition_gets_a_new_epoch_and_starts_from_the_new_answer() {
        let text: String = (0..5000).map(|number| format!("{number}\n")).collect();
        let mut fixture = fixture(&[&text]);
        let (_, first) = fixture.answer(&[]).await;
        assert_eq!(fixture.record().await.epoch, first);
        fixture.source.reassign(vec![partition(0), partition(7)]);
        let (partitions, second) = fixture.answer(&[(0, 4998)]).await;
        assert_eq!(partitions, [partition(0)]);
        assert!(second > first);
        let mut offsets = Vec::new();
        while offsets.len() < 2 {
            let record = fixture.record().await;
            if record.epoch == second {
                offsets.push(record.origin.offset);
            }
        }
        assert_eq!(offsets, [4998, 4999]);
        assert_eq!(fixture.end().await, (partition(0), 5000));
    }

    #[tokio::test]
    async fn nothing_is_read_ahead_beyond_the_channel_and_nothing_is_lost() {
        let text: String = (0..4000).map(|number| format!("{number}\n")).collect();
        let mut fixture = fixture(&[&text]);
        fixture.source.set_flowing(false);
        fixture.answer(&[]).await;
        assert!(fixture.streams.flow.try_recv().is_err());
        fixture.source.set_flowing(true);
        for offset in 0..4000 {
            assert!(fixture.streams.flow.len() <= FLOW_CAPACITY);
            assert_eq!(fixture.record().await.origin.offset, offset);
            if offset == 2000 {
                fixture.source.set_flowing(false);
                fixture.source.set_flowing(true);
            }
        }
        assert_eq!(fixture.end().await.1, 4000);
    }

    #[tokio::test]
    async fn closing_revokes_and_ends_both_streams() {
        let mut fixture = fixture(&["a\n"]);
        fixture.answer(&[]).await;
        let rebalances = &mut fixture.streams.rebalances;
        let (_, revoked) = tokio::join!(fixture.source.close(), async {
            match rebalances.recv().await.unwrap() {
                Rebalance::Revoked { partitions, done } => {
                    done.send(()).unwrap();
                    partitions
                }
                other => panic!("expected a revocation, got {other:?}"),
            }
        });
        assert_eq!(revoked, [partition(0)]);
        assert!(fixture.streams.rebalances.recv().await.is_none());
        while fixture.streams.flow.recv().await.is_some() {}
        assert!(matches!(fixture.source.start(), Err(SourceError::Closed)));
    }

    #[tokio::test]
    async fn a_file_that_shrinks_ends_the_source_with_its_name() {
        let mut fixture = fixture(&["a\nb\n"]);
        fixture.answer(&[]).await;
        fixture.record().await;
        std::fs::write(fixture.folder.path().join("0.jsonl"), "a\n").unwrap();
        while let Some(rebalance) = fixture.streams.rebalances.recv().await {
            if let Rebalance::Revoked { done, .. } = rebalance {
                done.send(()).unwrap();
            }
        }
        let error = fixture.streams.failure.await.unwrap().to_string();
        assert!(error.contains("0.jsonl") && error.contains("shorter"), "{error}");
    }

    #[tokio::test]
    async fn commits_are_remembered() {
        let fixture = fixture(&["a\n", ""]);
        fixture.source.commit(vec![(partition(0), 1)]).await.unwrap();
        assert_eq!(fixture.source.committed().await.unwrap(), [(partition(0), 1), (partition(1), 0)]);
    }

    #[test]
    fn a_topic_without_a_file_is_refused_by_name() {
        let error = ReplaySource::new(ReplayOptions::default(), &["ads".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("ads") && error.contains("[source.replay.topics]"), "{error}");
    }
}
