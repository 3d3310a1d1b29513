//! Delta tables on real object stores: writers race for each version by conditional writes, and upkeep runs beside them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assay::domain::{TopicPartition, Value};
use assay::job::{JobSpec, rejections_schema, results_schema};
use assay::metrics::Metrics;
use assay::sink::{Batch, DeltaSink, Options, Range, RejectionMark, Sink, upkeep};

use crate::services::object_store::ObjectStore;
use crate::stage::tables::Warehouse;
use crate::stage::worker::{JOB, JOB_FILE, quick};

/// Tables in a folder of a store.
fn options(store: &ObjectStore, folder: &str) -> Options {
    Options { url: store.url(folder), options: store.options(), retry: quick(), ..Options::default() }
}

fn warehouse(options: &Options) -> Warehouse {
    Warehouse { url: options.url.clone(), options: options.options.clone() }
}

async fn writer(options: &Options) -> DeltaSink {
    let job = JobSpec::parse(Path::new("embedding.toml"), JOB_FILE).unwrap();
    let results = results_schema(&job, |_| Some(1)).unwrap();
    let sink = DeltaSink::new(JOB, options, results, rejections_schema(), Arc::new(Metrics::new())).unwrap();
    sink.open().await.expect("tables open");
    sink
}

/// Ten offsets behind `from`: nine results and a rejection.
fn batch(partition: i32, from: Option<i64>, rejections: RejectionMark) -> Batch {
    let partition = TopicPartition::new("products", partition);
    let first = from.map_or(0, |from| from + 1);
    let results = (first..first + 9).map(|offset| result(&partition, offset)).collect();
    let rejected = vec![(partition.clone(), first + 9, rejection(&partition, first + 9))];
    Batch { ranges: vec![Range { partition, from, to: first + 9, rejections }], results, rejections: rejected }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn place(partition: &TopicPartition, offset: i64) -> [Value; 3] {
    [text(&partition.topic), Value::Integer(partition.partition.into()), Value::Integer(offset)]
}

fn result(partition: &TopicPartition, offset: i64) -> Vec<Value> {
    let mut row = vec![text(&format!("{partition}-{offset}")), text("product")];
    row.extend(place(partition, offset));
    row.extend([Value::Null, Value::Null, Value::Integer(0), Value::Null, text(JOB), text("f"), Value::Null]);
    row.extend([Value::Boolean(false), Value::Null, Value::Embedding(vec![1.0]), Value::Embedding(vec![2.0])]);
    row.extend([Value::Null, Value::Null, Value::Null, Value::Null]);
    row
}

fn rejection(partition: &TopicPartition, offset: i64) -> Vec<Value> {
    let mut row = vec![Value::Null, text("product")];
    row.extend(place(partition, offset));
    row.extend([Value::Null, Value::Null, Value::Integer(0), Value::Null, text(JOB), text("f"), Value::Null]);
    row.extend([text("decode"), text("json_malformed"), text("d"), text("asset"), Value::Integer(1), Value::Null]);
    row
}

/// Commits batches of one partition, one after the other; the store may be asked again as often as it takes.
async fn commit_all(sink: &DeltaSink, partition: i32, batches: usize) {
    let resume = sink.resume(&[TopicPartition::new("products", partition)]).await.expect("the log is read");
    let (mut from, mut mark) = (resume[0].committed, resume[0].rejections);
    for _ in 0..batches {
        let committed = sink.commit(&batch(partition, from, mark)).await.expect("the store answers");
        assert!(committed.fenced.is_empty(), "nobody else writes this partition");
        mark = committed.done[0].1;
        from = Some(from.map_or(9, |from| from + 10));
    }
}

fn expected(partitions: i32, batches: i64) -> Vec<(String, i32, i64)> {
    (0..partitions).flat_map(|number| (0..batches * 10).map(move |at| ("products".to_owned(), number, at))).collect()
}

/// Writers of different partitions race for every version; then two race for the same partition.
async fn race(store: &ObjectStore, folder: &str) {
    const WRITERS: i32 = 4;
    const BATCHES: usize = 8;
    let options = options(store, folder);
    writer(&options).await;
    let racing = (0..WRITERS).map(|partition| {
        let options = options.clone();
        tokio::spawn(async move { commit_all(&writer(&options).await, partition, BATCHES).await })
    });
    for writer in racing.collect::<Vec<_>>() {
        writer.await.expect("the writer ends well");
    }
    assert_eq!(warehouse(&options).places(JOB).await, expected(WRITERS, BATCHES as i64));

    let mine = [TopicPartition::new("products", 0)];
    let (first, second) = (writer(&options).await, writer(&options).await);
    let before = first.resume(&mine).await.unwrap()[0].clone();
    let after = second.resume(&mine).await.unwrap()[0].clone();
    let (late, early) = (batch(0, before.committed, before.rejections), batch(0, after.committed, after.rejections));
    let (late, early) = tokio::join!(first.commit(&late), second.commit(&early));
    assert_eq!(late.unwrap().fenced, mine, "who was replaced writes nothing");
    assert!(early.unwrap().fenced.is_empty());
    let mut wanted = expected(WRITERS, BATCHES as i64);
    wanted.extend((80..90).map(|at| ("products".to_owned(), 0, at)));
    wanted.sort();
    assert_eq!(warehouse(&options).places(JOB).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_race_on_s3_lose_and_double_nothing() {
    let Some(store) = ObjectStore::shared() else { return };
    race(store, "race").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_race_on_versitygw_lose_and_double_nothing() {
    let Some(store) = ObjectStore::start(&["--versitygw"]) else { return };
    race(&store, "race").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_race_on_azure_lose_and_double_nothing() {
    let Some(store) = ObjectStore::start(&["--azure"]) else { return };
    race(&store, "race").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_beside_commits_fails_none_of_them_for_good_and_loses_no_row() {
    let Some(store) = ObjectStore::shared() else { return };
    let options = options(store, "upkeep");
    writer(&options).await;
    let writers: Vec<_> = (0..2)
        .map(|partition| {
            let options = options.clone();
            tokio::spawn(async move { commit_all(&writer(&options).await, partition, 20).await })
        })
        .collect();
    let mut merged = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        match tokio::time::timeout(Duration::from_secs(180), upkeep(&options, JOB)).await.expect("upkeep ends") {
            Ok(report) => merged += report.results.files_merged,
            // It may lose against commits; the next one tries again.
            Err(error) => assert!(error.to_string().contains("onflict"), "{error}"),
        }
    }
    for writer in writers {
        writer.await.expect("no commit failed for good");
    }
    assert_eq!(warehouse(&options).places(JOB).await, expected(2, 20));
    upkeep(&options, JOB).await.expect("nobody is in the way");
    assert_eq!(warehouse(&options).places(JOB).await, expected(2, 20), "after {merged} files were merged");
    let further = writer(&options).await;
    commit_all(&further, 0, 1).await;
    let counted = warehouse(&options).ask(JOB, "SELECT count(*) FROM results WHERE partition = 0").await;
    assert_eq!(counted, [["189"]], "offsets survive checkpoints");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_told_and_no_secret_is_printed() {
    let Some(store) = ObjectStore::shared() else { return };
    let mut options = options(store, "refused");
    options.options.insert("aws_secret_access_key".to_owned(), "not-the-secret".to_owned());
    let job = JobSpec::parse(Path::new("embedding.toml"), JOB_FILE).unwrap();
    let results = results_schema(&job, |_| Some(1)).unwrap();
    let sink = DeltaSink::new(JOB, &options, results, rejections_schema(), Arc::new(Metrics::new())).unwrap();
    let error = sink.open().await.unwrap_err();
    let told = format!("{error} {error:?} {options:?}");
    assert!(told.contains("SignatureDoesNotMatch"), "{told}");
    let secrets: BTreeMap<_, _> = store.options();
    assert!(!told.contains("not-the-secret") && !told.contains(&secrets["aws_secret_access_key"]), "{told}");
}
