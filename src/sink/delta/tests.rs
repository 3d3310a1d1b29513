//! The sink as workers meet it: two tables on a store, several writers, failures between any two requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float32Type, Int64Type};
use async_trait::async_trait;
use bytesize::ByteSize;
use datafusion::prelude::SessionContext;
use deltalake::logstore::{
    LogStore, LogStoreFactory, ObjectStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories,
    object_store_factories,
};
use deltalake::{DeltaResult, DeltaTable, Path};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use url::Url;

use super::guard::Guard;
use super::store::open_store;
use super::upkeep::compact;
use super::{DeltaSink, upkeep};
use crate::domain::{Blame, Column, ColumnType, Row, TableSchema, TopicPartition, Value};
use crate::metrics::Metrics;
use crate::sink::{Batch, Options, Range, RejectionMark, Resume, Sink, SinkError};

fn results_schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::required("topic", ColumnType::Text),
            Column::required("partition", ColumnType::Int32),
            Column::required("offset", ColumnType::Int64),
            Column::optional("kind", ColumnType::Text),
            Column::optional("embedding", ColumnType::Embedding { dimensions: 3 }),
            Column::optional("headers", ColumnType::Map),
            Column::optional("time", ColumnType::Timestamp),
        ],
    }
}

fn rejections_schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::required("topic", ColumnType::Text),
            Column::required("partition", ColumnType::Int32),
            Column::required("offset", ColumnType::Int64),
            Column::optional("reason", ColumnType::Text),
        ],
    }
}

fn options(folder: &tempfile::TempDir) -> Options {
    Options { url: format!("file://{}", folder.path().display()), ..Options::default() }
}

fn sink(options: &Options) -> DeltaSink {
    DeltaSink::new("job", options, results_schema(), rejections_schema(), Arc::new(Metrics::new())).unwrap()
}

fn partition(number: i32) -> TopicPartition {
    TopicPartition::new("products", number)
}

fn result_row(number: i32, offset: i64) -> Row {
    vec![
        Value::Text("products".to_owned()),
        Value::Integer(number.into()),
        Value::Integer(offset),
        Value::Text(if offset % 2 == 0 { "even" } else { "odd" }.to_owned()),
        Value::Embedding(vec![offset as f32, 0.5, -1.0]),
        Value::Map(vec![("trace".to_owned(), None)]),
        Value::Integer(1_700_000_000_000_000 + offset),
    ]
}

fn rejection(number: i32, offset: i64) -> (TopicPartition, i64, Row) {
    let row = vec![
        Value::Text("products".to_owned()),
        Value::Integer(number.into()),
        Value::Integer(offset),
        Value::Text("schema_violation".to_owned()),
    ];
    (partition(number), offset, row)
}

fn range(number: i32, from: Option<i64>, to: i64) -> Range {
    Range { partition: partition(number), from, to, rejections: RejectionMark::default() }
}

/// All offsets of the range become rows.
fn batch(number: i32, from: Option<i64>, to: i64) -> Batch {
    let first = from.map_or(0, |from| from + 1);
    let results = (first..=to).map(|offset| result_row(number, offset)).collect();
    Batch { ranges: vec![range(number, from, to)], results, rejections: Vec::new() }
}

async fn resume_one(sink: &DeltaSink, number: i32) -> Resume {
    sink.resume(&[partition(number)]).await.unwrap().remove(0)
}

/// Every (partition, offset) in a table, sorted, duplicates included.
async fn offsets(options: &Options, table: &str) -> Vec<(i64, i64)> {
    let rows = query(options, table, "SELECT CAST(partition AS BIGINT), \"offset\" FROM t ORDER BY 1, 2").await;
    let mut found = Vec::new();
    for batch in rows {
        let partitions = batch.column(0).as_primitive::<Int64Type>();
        let offsets = batch.column(1).as_primitive::<Int64Type>();
        found.extend((0..batch.num_rows()).map(|row| (partitions.value(row), offsets.value(row))));
    }
    found
}

async fn query(options: &Options, table: &str, sql: &str) -> Vec<arrow::array::RecordBatch> {
    let session = SessionContext::new();
    let delta = DeltaTable::new(open_store(&options.url, "job", table, &options.options).unwrap());
    delta.update_datafusion_session(&session.state()).unwrap();
    session.register_table("t", delta.table_provider().await.unwrap()).unwrap();
    session.sql(sql).await.unwrap().collect().await.unwrap()
}

fn expected(number: i64, offsets: std::ops::RangeInclusive<i64>) -> Vec<(i64, i64)> {
    offsets.map(|offset| (number, offset)).collect()
}

async fn version_of(options: &Options, table: &str) -> u64 {
    let mut delta = DeltaTable::new(open_store(&options.url, "job", table, &options.options).unwrap());
    delta.load().await.unwrap();
    delta.version().unwrap()
}

#[tokio::test]
async fn rows_and_offsets_share_one_version_and_every_column_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    assert_eq!(resume_one(&writer, 0).await.committed, None);
    let committed = writer.commit(&batch(0, None, 9)).await.unwrap();
    assert_eq!(committed.done, [(partition(0), RejectionMark::default())]);
    assert_eq!(committed.version, Some(1));
    assert_eq!(version_of(&options, "results").await, 1);
    assert_eq!(version_of(&options, "rejections").await, 1, "taken over once; no rejection, no commit");
    assert_eq!(resume_one(&sink(&options), 0).await.committed, Some(9));
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=9));
    let rows = query(&options, "results", "SELECT embedding, headers, time FROM t WHERE \"offset\" = 3").await;
    let vector = rows[0].column(0).as_list::<i32>().value(0);
    assert_eq!(vector.as_primitive::<Float32Type>().values(), &[3.0, 0.5, -1.0]);
    assert!(rows[0].column(1).as_map().value(0).column(1).is_null(0));
}

#[tokio::test]
async fn offsets_advance_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    let empty = Batch { ranges: vec![range(0, None, 41)], ..Batch::default() };
    assert_eq!(writer.commit(&empty).await.unwrap().version, Some(1));
    assert_eq!(resume_one(&sink(&options), 0).await.committed, Some(41));
}

#[tokio::test]
async fn a_zombie_is_fenced_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let (zombie, owner) = (sink(&options), sink(&options));
    zombie.open().await.unwrap();
    zombie.commit(&batch(0, None, 4)).await.unwrap();
    owner.open().await.unwrap();
    owner.commit(&batch(0, Some(4), 9)).await.unwrap();
    // Stopped by its offsets, and with rejections already by its mark of the rejections table.
    let mut rejecting = batch(0, Some(4), 7);
    rejecting.rejections.push(rejection(0, 7));
    rejecting.ranges[0].rejections = RejectionMark { commits: 3, last_offset: Some(2) };
    for late in [batch(0, Some(4), 7), rejecting.clone(), rejecting] {
        let committed = zombie.commit(&late).await.unwrap();
        assert_eq!(committed.fenced, [partition(0)]);
        assert!(committed.done.is_empty());
        assert_eq!(committed.version, None);
    }
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=9));
    assert!(offsets(&options, "rejections").await.is_empty());
}

#[tokio::test]
async fn a_writer_that_has_read_the_others_commit_is_fenced_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let (zombie, owner) = (sink(&options), sink(&options));
    owner.open().await.unwrap();
    owner.commit(&batch(0, None, 4)).await.unwrap();
    // The zombie's view of the log is now newer than the other's commit; its range is not.
    assert_eq!(resume_one(&zombie, 0).await.committed, Some(4));
    let committed = zombie.commit(&batch(0, None, 4)).await.unwrap();
    assert_eq!(committed.fenced, [partition(0)]);
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=4));
}

#[tokio::test]
async fn one_fenced_partition_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let (zombie, owner) = (sink(&options), sink(&options));
    zombie.open().await.unwrap();
    owner.commit(&batch(1, None, 4)).await.unwrap();
    let mut mixed = batch(0, None, 3);
    mixed.ranges.extend(batch(1, None, 2).ranges);
    mixed.results.extend(batch(1, None, 2).results);
    mixed.results.swap(0, 5);
    let committed = zombie.commit(&mixed).await.unwrap();
    assert_eq!(committed.fenced, [partition(1)]);
    assert_eq!(committed.done.len(), 1);
    let mut all = expected(0, 0..=3);
    all.extend(expected(1, 0..=4));
    assert_eq!(offsets(&options, "results").await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_different_partitions_lose_nothing_however_often_they_collide() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let run = |number: i32| {
        let options = options.clone();
        tokio::spawn(async move {
            let writer = sink(&options);
            writer.open().await.unwrap();
            let mut from = None;
            for to in 0..30 {
                let committed = writer.commit(&batch(number, from, to)).await.unwrap();
                assert!(committed.fenced.is_empty());
                from = Some(to);
            }
        })
    };
    let (first, second) = tokio::join!(run(0), run(1));
    first.unwrap();
    second.unwrap();
    let mut all = expected(0, 0..=29);
    all.extend(expected(1, 0..=29));
    assert_eq!(offsets(&options, "results").await, all);
    assert_eq!(version_of(&options, "results").await, 60);
}

#[tokio::test]
async fn rejections_written_before_a_crash_are_passed_over_by_the_next_owner() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let dying = sink(&options);
    dying.open().await.unwrap();
    dying.commit(&batch(0, None, 4)).await.unwrap();
    let mut half = batch(0, Some(4), 6);
    half.ranges[0].to = 9;
    half.rejections = vec![rejection(0, 7), rejection(0, 9), rejection(0, 8)];
    assert_eq!(dying.commit_rejections(&half, "an unfinished batch").await.unwrap().len(), 1);

    let next = sink(&options);
    let resume = resume_one(&next, 0).await;
    assert_eq!(resume.committed, Some(4));
    assert_eq!(resume.rejections, RejectionMark { commits: 2, last_offset: Some(9) });
    assert_eq!(resume.already_rejected, [7, 8, 9]);
    // The first owner comes back to life: it is behind in the rejections table, so nothing of it is written.
    let revived = sink(&options).commit(&half).await.unwrap();
    assert_eq!(revived.fenced, [partition(0)]);
    let mut rest = batch(0, Some(4), 6);
    rest.ranges[0].to = 9;
    rest.ranges[0].rejections = resume.rejections;
    let committed = next.commit(&rest).await.unwrap();
    assert_eq!(committed.done, [(partition(0), resume.rejections)]);
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=6));
    assert_eq!(offsets(&options, "rejections").await, expected(0, 7..=9));
    assert!(resume_one(&sink(&options), 0).await.already_rejected.is_empty());
}

#[tokio::test]
async fn marks_of_rejections_follow_each_commit() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    let (mut from, mut mark) = (None, RejectionMark::default());
    for (to, rejected) in [(1, Some(1)), (2, None), (4, Some(3))] {
        let rejections = rejected.map(|offset| rejection(0, offset)).into_iter().collect();
        let ranges = vec![Range { rejections: mark, ..range(0, from, to) }];
        let committed = writer.commit(&Batch { ranges, results: Vec::new(), rejections }).await.unwrap();
        mark = committed.done[0].1;
        from = Some(to);
    }
    assert_eq!(mark, RejectionMark { commits: 2, last_offset: Some(3) });
    let resume = resume_one(&sink(&options), 0).await;
    let taken_over = RejectionMark { commits: mark.commits + 1, ..mark };
    assert_eq!((resume.committed, resume.rejections), (Some(4), taken_over));
}

#[tokio::test]
async fn an_earlier_owner_cannot_reject_what_the_next_one_has_annotated() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let (zombie, owner) = (sink(&options), sink(&options));
    zombie.open().await.unwrap();
    let first = resume_one(&zombie, 0).await;
    resume_one(&owner, 0).await;
    owner.commit(&batch(0, None, 4)).await.unwrap();
    // The zombie found offset 3 bad; it writes rejections before results, and must not get even that far.
    let mut late = batch(0, None, 2);
    late.ranges[0] = Range { to: 3, rejections: first.rejections, ..late.ranges[0].clone() };
    late.rejections.push(rejection(0, 3));
    assert_eq!(zombie.commit(&late).await.unwrap().fenced, [partition(0)]);
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=4));
    assert!(offsets(&options, "rejections").await.is_empty());
}

#[tokio::test]
async fn a_batch_given_again_after_success_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    let mut again = batch(0, None, 3);
    again.ranges[0].to = 4;
    again.rejections.push(rejection(0, 4));
    let first = writer.commit(&again).await.unwrap();
    let second = writer.commit(&again).await.unwrap();
    assert_eq!(first.done, second.done);
    assert_eq!(first.version, second.version);
    assert!(second.fenced.is_empty());
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=3));
    assert_eq!(offsets(&options, "rejections").await, expected(0, 4..=4));
}

#[tokio::test]
async fn columns_are_added_and_a_column_of_another_type_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let narrow = sink(&options);
    narrow.open().await.unwrap();
    narrow.commit(&batch(0, None, 1)).await.unwrap();
    let metrics = || Arc::new(Metrics::new());
    let mut schema = results_schema();
    schema.columns.insert(3, Column::required("score", ColumnType::Float64));
    let wide = DeltaSink::new("job", &options, schema.clone(), rejections_schema(), metrics()).unwrap();
    wide.open().await.unwrap();
    let mut row = result_row(0, 2);
    row.insert(3, Value::Float(0.75));
    let one = Batch { ranges: vec![range(0, Some(1), 2)], results: vec![row], rejections: Vec::new() };
    assert_eq!(wide.commit(&one).await.unwrap().done.len(), 1);
    // A worker of the older job goes on beside it.
    assert_eq!(narrow.commit(&batch(0, Some(2), 3)).await.unwrap().done.len(), 1);
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=3));
    let scores = query(&options, "results", "SELECT count(score), count(*) FROM t").await;
    let count = |column: usize| scores[0].column(column).as_primitive::<Int64Type>().value(0);
    assert_eq!((count(0), count(1)), (1, 4));

    schema.columns[3].kind = ColumnType::Text;
    let other = DeltaSink::new("job", &options, schema, rejections_schema(), metrics()).unwrap();
    match other.open().await {
        Err(SinkError::Incompatible { detail, .. }) => {
            assert!(detail.contains("score") && detail.contains("double") && detail.contains("string"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_start_at_once_agree_on_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let started: Vec<_> = (0..6)
        .map(|_| {
            let writer = sink(&options);
            tokio::spawn(async move { writer.open().await })
        })
        .collect();
    for worker in started {
        worker.await.unwrap().unwrap();
    }
    assert_eq!(version_of(&options, "results").await, 0);
}

#[tokio::test]
async fn a_partitioned_table_keeps_its_rows_apart() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { partition_by: vec!["kind".to_owned()], ..options(&folder) };
    let writer = sink(&options);
    writer.open().await.unwrap();
    writer.commit(&batch(0, None, 9)).await.unwrap();
    for kind in ["even", "odd"] {
        assert!(folder.path().join(format!("job/results/kind={kind}")).is_dir());
    }
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=9));
    let unpartitioned = Options { partition_by: Vec::new(), ..options.clone() };
    assert!(matches!(sink(&unpartitioned).open().await, Err(SinkError::Incompatible { .. })));
    let by_vector = Options { partition_by: vec!["embedding".to_owned()], ..options };
    let refused = DeltaSink::new("job", &by_vector, results_schema(), rejections_schema(), Arc::new(Metrics::new()));
    assert!(matches!(refused, Err(SinkError::Configuration { .. })));
}

#[tokio::test]
async fn statistics_cover_offsets_but_no_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    writer.commit(&batch(0, None, 9)).await.unwrap();
    let log = folder.path().join("job/results/_delta_log/00000000000000000001.json");
    let log = std::fs::read_to_string(log).unwrap();
    let add = log.lines().find(|line| line.contains("\"add\"")).unwrap();
    let add: serde_json::Value = serde_json::from_str(add).unwrap();
    let stats: serde_json::Value = serde_json::from_str(add["add"]["stats"].as_str().unwrap()).unwrap();
    assert_eq!(stats["numRecords"], 10);
    assert_eq!(stats["maxValues"]["offset"], 9);
    assert!(stats["maxValues"].get("embedding").is_none(), "{stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_beside_commits_keeps_rows_and_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&folder);
    options.upkeep.target_file_size = ByteSize::mib(8);
    let writer = sink(&options);
    writer.open().await.unwrap();
    let idle = sink(&options);
    idle.commit(&batch(7, None, 0)).await.unwrap();
    for to in 0..10 {
        writer.commit(&batch(0, (to > 0).then(|| to - 1), to)).await.unwrap();
    }
    let beside = tokio::spawn(async move {
        for to in 10..30 {
            let committed = writer.commit(&batch(0, Some(to - 1), to)).await.unwrap();
            assert_eq!(committed.done.len(), 1, "upkeep must not fence a writer");
        }
        writer
    });
    let report = upkeep(&options, "job").await.unwrap();
    let writer = beside.await.unwrap();
    assert!(report.results.files_merged >= 10, "{report:?}");
    assert!(report.results.checkpoint.is_some(), "{report:?}");
    assert_eq!(report.results.files_removed, 0, "everything is younger than the shortest retention: {report:?}");
    upkeep(&options, "job").await.unwrap();
    writer.commit(&batch(0, Some(29), 30)).await.unwrap();
    let mut all = expected(0, 0..=30);
    all.extend(expected(7, 0..=0));
    assert_eq!(offsets(&options, "results").await, all);
    // A new worker reads the offsets from the checkpoint, also those of the partition that has been idle since.
    let fresh = sink(&options);
    assert_eq!(resume_one(&fresh, 0).await.committed, Some(30));
    assert_eq!(resume_one(&fresh, 7).await.committed, Some(0));
    assert_eq!(resume_one(&idle, 0).await.committed, Some(30));
}

#[tokio::test]
async fn of_two_compactions_of_the_same_files_one_gives_way_and_no_row_is_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    for to in 0..12 {
        writer.commit(&batch(0, (to > 0).then(|| to - 1), to)).await.unwrap();
    }
    let open = async || {
        let guard = Guard::new(open_store(&options.url, "job", "results", &options.options).unwrap());
        let mut table = DeltaTable::new(guard.clone());
        table.load().await.unwrap();
        (table, guard)
    };
    let (first, second) = (open().await, open().await);
    let (_, merged) = compact(first.0, &first.1, "first", &options.upkeep).await.unwrap();
    assert_eq!((merged.files_merged, merged.files_written), (12, 1));
    writer.commit(&batch(0, Some(11), 12)).await.unwrap();
    // It has planned to merge what is merged already; it looks again, and finds the one file and the new one.
    let (_, merged) = compact(second.0, &second.1, "second", &options.upkeep).await.unwrap();
    assert_eq!((merged.files_merged, merged.files_written), (2, 1));
    assert_eq!(offsets(&options, "results").await, expected(0, 0..=12));
}

#[tokio::test]
async fn upkeep_of_tables_that_do_not_exist_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(upkeep(&options(&folder), "job").await.unwrap(), super::UpkeepReport::default());
}

#[tokio::test]
async fn the_log_is_never_continued_below_a_checkpoint_whose_commits_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let (sleeper, owner) = (sink(&options), sink(&options));
    sleeper.open().await.unwrap();
    sleeper.commit(&batch(0, None, 0)).await.unwrap();
    owner.commit(&batch(1, None, 0)).await.unwrap();
    owner.commit(&batch(1, Some(0), 1)).await.unwrap();
    upkeep(&options, "job").await.unwrap();
    let log = folder.path().join("job/results/_delta_log");
    let newest = version_of(&options, "results").await;
    for version in 0..newest {
        std::fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    let committed = sleeper.commit(&batch(0, Some(0), 1)).await.unwrap();
    assert_eq!(committed.version, Some(newest + 1));
    assert_eq!(offsets(&options, "results").await, [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_costs_nothing() {
    let (store, options) = flaky("before");
    let writer = sink(&options);
    writer.open().await.unwrap();
    let mut wanted = batch(0, None, 3);
    wanted.ranges[0].to = 4;
    wanted.rejections.push(rejection(0, 4));
    for failures in 1..=4 {
        store.refuse_puts.store(failures, Ordering::SeqCst);
        let mut tries = 0;
        let committed = loop {
            tries += 1;
            match writer.commit(&wanted).await {
                Ok(committed) => break committed,
                Err(error) => assert_eq!(error.blame(), Blame::World, "{error}"),
            }
        };
        assert_eq!(tries, failures + 1);
        assert!(committed.fenced.is_empty());
        let mark = committed.done[0].1;
        let to = wanted.ranges[0].to;
        wanted = batch(0, Some(to), to + 3);
        wanted.ranges[0].to = to + 4;
        wanted.ranges[0].rejections = mark;
        wanted.rejections = vec![rejection(0, to + 4)];
    }
    let all: Vec<(i64, i64)> = (0..16).filter(|offset| ![4, 8, 12].contains(offset)).map(|at| (0, at)).collect();
    assert_eq!(offsets(&options, "results").await, all);
    assert_eq!(offsets(&options, "rejections").await, [(0, 4), (0, 8), (0, 12), (0, 16)]);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised_and_not_doubled() {
    let (store, options) = flaky("after");
    let writer = sink(&options);
    writer.open().await.unwrap();
    let mut wanted = batch(0, None, 3);
    wanted.ranges[0].to = 4;
    wanted.rejections.push(rejection(0, 4));
    store.lose_answers.store(2, Ordering::SeqCst);
    // First the answer to the rejections' commit is lost, then the answer to the results' commit.
    for _ in 0..2 {
        assert_eq!(writer.commit(&wanted).await.unwrap_err().blame(), Blame::World);
    }
    // Meanwhile the tables move on by other hands.
    sink(&options).commit(&batch(3, None, 1)).await.unwrap();
    let committed = writer.commit(&wanted).await.unwrap();
    assert_eq!(committed.done, [(partition(0), RejectionMark { commits: 1, last_offset: Some(4) })]);
    let mut all = expected(0, 0..=3);
    all.extend(expected(3, 0..=1));
    assert_eq!(offsets(&options, "results").await, all);
    assert_eq!(offsets(&options, "rejections").await, [(0, 4)]);
}

#[tokio::test]
async fn a_row_of_a_partition_that_is_not_in_the_batch_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let writer = sink(&options);
    writer.open().await.unwrap();
    let mut stray = batch(0, None, 1);
    stray.results.push(result_row(5, 0));
    assert!(matches!(writer.commit(&stray).await, Err(SinkError::Encoding { .. })));
    assert_eq!(version_of(&options, "results").await, 0);
}

/// A store in memory, shared by all who open the same host, whose puts can be made to fail.
#[derive(Debug, Clone, Default)]
struct Flaky {
    inner: Arc<InMemory>,
    /// So many puts fail without effect.
    refuse_puts: Arc<AtomicUsize>,
    /// So many puts into a log take effect, but report a failure.
    lose_answers: Arc<AtomicUsize>,
}

static FLAKY_STORES: LazyLock<Mutex<HashMap<String, Flaky>>> = LazyLock::new(Mutex::default);

fn flaky(host: &str) -> (Flaky, Options) {
    let key = Url::parse("flaky://").unwrap();
    object_store_factories().insert(key.clone(), Arc::new(FlakyStores));
    logstore_factories().insert(key, Arc::new(FlakyStores));
    let store = Flaky::default();
    FLAKY_STORES.lock().unwrap().insert(host.to_owned(), store.clone());
    (store, Options { url: format!("flaky://{host}/tables"), ..Options::default() })
}

struct FlakyStores;

impl ObjectStoreFactory for FlakyStores {
    fn parse_url_opts(&self, url: &Url, _: &StorageConfig) -> DeltaResult<(ObjectStoreRef, Path)> {
        let store = FLAKY_STORES.lock().unwrap()[url.host_str().unwrap()].clone();
        Ok((Arc::new(store), Path::from_url_path(url.path())?))
    }
}

impl LogStoreFactory for FlakyStores {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}

fn outage() -> object_store::Error {
    object_store::Error::Generic { store: "Flaky", source: "connection reset".into() }
}

fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl std::fmt::Display for Flaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if take(&self.refuse_puts) {
            return Err(outage());
        }
        let put = self.inner.put_opts(location, payload, options).await?;
        if location.as_ref().contains("_delta_log") && take(&self.lose_answers) {
            return Err(outage());
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
