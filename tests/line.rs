//! One pipeline over a replayed topic and real tables, with faults at the media and inference boundaries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use assay::engine::InferenceError;
use assay::pipeline::{self, Mode, PipelineError};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::stage::fakes::{MemoryMedia, ScriptedInference, bomb, png};
use crate::stage::tables::{ask, count, places};
use crate::stage::worker::{JOB, Run, once, pictured, product, until};

fn place(partition: i32, offset: i64) -> (String, i32, i64) {
    ("products".to_owned(), partition, offset)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_asset_has_one_row_with_its_lineage() {
    let run = Run::new();
    let line = |id: &str| json!({ "key": id, "value": product(id), "headers": { "trace": "t1" }, "timestamp": 1_700_000_000_000_i64 });
    run.write(0, &(0..120).map(|n| line(&format!("a{n}"))).collect::<Vec<_>>());
    run.write(1, &(0..80).map(|n| line(&format!("b{n}"))).collect::<Vec<_>>());
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();

    let expected: Vec<_> = (0..120).map(|n| place(0, n)).chain((0..80).map(|n| place(1, n))).collect();
    assert_eq!(places(&run.tables(), JOB).await, expected);
    let complete = "SELECT count(*) FROM results WHERE asset_id IS NOT NULL AND message_time IS NOT NULL \
        AND event_time IS NOT NULL AND processed_time IS NOT NULL AND headers['trace'] = 't1' AND job = 'embedding' \
        AND job_fingerprint IS NOT NULL AND models['tiny'] = '0123456789abcdef' AND words[1] = 14 + length(asset_id) - 2 \
        AND prompt_tokens = 1 AND finish_reason = 'embedded' AND NOT deleted AND kind = 'product'";
    let titles = count(&run.tables(), JOB, complete).await;
    let short = count(&run.tables(), JOB, "SELECT count(*) FROM results WHERE length(asset_id) >= 2").await;
    assert_eq!((titles, short), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_repeated_adds_nothing_and_a_longer_topic_adds_the_new_lines() {
    let run = Run::new();
    let lines: Vec<Value> = (0..30).map(|n| product(&format!("a{n}"))).collect();
    run.write(0, &lines[..20]);
    for _ in 0..2 {
        once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
        assert_eq!(places(&run.tables(), JOB).await.len(), 20);
    }
    run.write(0, &lines);
    let inference = ScriptedInference::new("tiny");
    once(run.parts(MemoryMedia::with([]), inference.clone()).await).await.unwrap();
    assert_eq!(places(&run.tables(), JOB).await, (0..30).map(|n| place(0, n)).collect::<Vec<_>>());
    assert_eq!(inference.answered.load(Ordering::SeqCst), 10, "only the new lines were worked on");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_asset_costs_exactly_one_rejection_that_says_why() {
    let run = Run::new();
    let mut untitled = product("untitled");
    untitled.as_object_mut().unwrap().remove("title");
    let mut unusable = product("unusable");
    unusable["description"] = "unusable".into();
    let mut panics = product("panics");
    panics["description"] = "panic".into();
    let mut many = product("many");
    many["media"] = (0..9).map(|n| json!({ "url": format!("s3://b/{n}") })).collect();
    let lines = [
        product("good"),
        untitled,
        pictured("missing", "s3://b/missing"),
        pictured("bomb", "s3://b/bomb"),
        pictured("noise", "s3://b/noise"),
        pictured("large", "s3://b/large"),
        unusable,
        panics,
        many,
        json!({ "key": "other", "value": product("mismatch") }),
        pictured("pictured", "s3://b/red"),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).chain(["{not json\n".to_owned()]).collect();
    run.write_raw(0, &text);
    let media = MemoryMedia::with([
        ("s3://b/red", png(7, 5)),
        ("s3://b/bomb", bomb()),
        ("s3://b/noise", vec![7; 300]),
        ("s3://b/large", vec![0; 2 << 20]),
    ]);
    let parts = run.parts(media, ScriptedInference::new("tiny")).await;
    let metrics = parts.metrics.clone();
    once(parts).await.unwrap();
    let exposition = metrics.render();
    for count in [
        "assay_rejections_total{job=\"embedding\",reason=\"media_not_found\",stage=\"fetch\"} 1",
        "assay_outcomes_total{job=\"embedding\",outcome=\"rejected\"} 10",
        "assay_outcomes_total{job=\"embedding\",outcome=\"annotated\"} 2",
    ] {
        assert!(exposition.contains(count), "{count}\n{exposition}");
    }

    let rows = ask(&run.tables(), JOB, "SELECT \"offset\", stage, reason, blame FROM rejections ORDER BY 1").await;
    let row = |offset: &str, stage: &str, reason: &str| [offset, stage, reason, "asset"].map(str::to_owned).to_vec();
    let expected = [
        row("1", "decode", "schema_violation"),
        row("2", "fetch", "media_not_found"),
        row("3", "prepare", "picture_over_limits"),
        row("4", "prepare", "picture_undecodable"),
        row("5", "fetch", "media_too_large"),
        row("6", "prepare", "model_input"),
        row("7", "prepare", "prepare_panicked"),
        row("8", "fetch", "too_many_media"),
        row("9", "decode", "key_mismatch"),
        row("11", "decode", "json_malformed"),
    ];
    assert_eq!(rows, expected);
    let detail = ask(&run.tables(), JOB, "SELECT detail FROM rejections WHERE \"offset\" = 1").await;
    assert!(detail[0][0].contains("title"), "the missing field is named: {}", detail[0][0]);
    let raw = ask(&run.tables(), JOB, "SELECT CAST(raw AS VARCHAR) FROM rejections WHERE \"offset\" = 11").await;
    assert_eq!(raw[0][0], "{not json");
    let good =
        ask(&run.tables(), JOB, "SELECT asset_id, picture[1], media_hashes[1] IS NOT NULL FROM results ORDER BY 1")
            .await;
    assert_eq!(good, [vec!["good", "NULL", "false"], vec!["pictured", "7.0", "true"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_for_a_while_rejects_nothing() {
    let run = Run::new();
    run.write(0, &(0..40).map(|n| pictured(&format!("a{n}"), "s3://b/red")).collect::<Vec<_>>());
    let media = MemoryMedia::with([("s3://b/red", png(3, 3))]);
    media.down.store(true, Ordering::SeqCst);
    let running = tokio::spawn(once(run.parts(media.clone(), ScriptedInference::new("tiny")).await));
    until("many attempts were refused", || media.refused.load(Ordering::SeqCst) > 200).await;
    media.down.store(false, Ordering::SeqCst);
    running.await.unwrap().unwrap();
    assert_eq!(count(&run.tables(), JOB, "SELECT count(*) FROM rejections").await, 0);
    assert_eq!(count(&run.tables(), JOB, "SELECT count(*) FROM results WHERE picture[1] = 3").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asset_that_stalls_is_rejected_at_its_deadline_and_holds_nobody() {
    let run = Run::new();
    let mut lines: Vec<_> = (0..20).map(|n| product(&format!("a{n}"))).collect();
    lines[3] = pictured("slow", "s3://b/stalls");
    run.write(0, &lines);
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    let rejected = ask(&run.tables(), JOB, "SELECT \"offset\", stage, reason FROM rejections").await;
    assert_eq!(rejected, [["3", "fetch", "deadline_exceeded"]]);
    assert_eq!(places(&run.tables(), JOB).await, (0..20).map(|n| place(0, n)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_commits_what_is_settled_and_the_next_run_does_the_rest() {
    let run = Run::new();
    run.write(0, &(0..600).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>());
    let inference = ScriptedInference::new("tiny");
    let shutdown = CancellationToken::new();
    let parts = run.parts(MemoryMedia::with([]), inference.clone()).await;
    let running = tokio::spawn(pipeline::run(parts, Mode::Continuous, shutdown.clone()));
    until("something was answered", || inference.answered.load(Ordering::SeqCst) > 20).await;
    shutdown.cancel();
    running.await.unwrap().expect("a drain is no failure");
    let answered = inference.answered.load(Ordering::SeqCst) as usize;
    let written = places(&run.tables(), JOB).await;
    assert_eq!(written.len(), answered, "everything that was answered is durable");
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    assert_eq!(places(&run.tables(), JOB).await, (0..600).map(|n| place(0, n)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grace_that_is_too_short_is_an_error_and_loses_nothing() {
    let run = Run::new();
    run.write(0, &(0..10).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>());
    let inference = ScriptedInference::new("tiny");
    inference.held.store(true, Ordering::SeqCst);
    let mut parts = run.parts(MemoryMedia::with([]), inference).await;
    parts.grace = std::time::Duration::from_millis(50);
    let (shutdown, progress) = (CancellationToken::new(), parts.progress.clone());
    let running = tokio::spawn(pipeline::run(parts, Mode::Continuous, shutdown.clone()));
    until("all were received", || progress.snapshot().received == 10).await;
    shutdown.cancel();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, PipelineError::DrainIncomplete { open: 10 }), "{error}");
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    assert_eq!(places(&run.tables(), JOB).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_ends_the_pipeline_and_rejects_nothing() {
    let run = Run::new();
    run.write(0, &(0..50).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>());
    let inference = ScriptedInference::new("tiny");
    inference.dead.store(true, Ordering::SeqCst);
    let error = once(run.parts(MemoryMedia::with([]), inference).await).await.unwrap_err();
    assert!(matches!(error, PipelineError::Inference(InferenceError::Dead { .. })), "{error}");
    assert_eq!(places(&run.tables(), JOB).await, []);
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    assert_eq!(places(&run.tables(), JOB).await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_follows_event_time_and_tombstones_remove() {
    let run = Run::new();
    let at = |id: &str, time: &str, title: &str| {
        let mut product = product(id);
        product["event_time"] = time.into();
        product["title"] = title.into();
        let millis = humantime::parse_rfc3339(time).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        json!({ "key": id, "value": product, "timestamp": millis as u64 })
    };
    run.write(
        0,
        &[
            at("late", "2026-01-02T00:00:00Z", "xx"),
            at("late", "2026-01-01T00:00:00Z", "x"),
            at("gone", "2026-01-01T00:00:00Z", "x"),
            json!({ "key": "gone", "value": null, "timestamp": 1_800_000_000_000_u64 }),
            at("same", "2026-01-01T00:00:00Z", "x"),
            at("same", "2026-01-01T00:00:00Z", "xxx"),
        ],
    );
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    let latest = ask(&run.tables(), JOB, "SELECT asset_id, words[1] FROM latest ORDER BY 1").await;
    assert_eq!(latest, [["late", "5.0"], ["same", "6.0"]]);
    assert_eq!(count(&run.tables(), JOB, "SELECT count(*) FROM results").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_writer_is_fenced_and_writes_nothing_more() {
    let run = Run::new();
    run.write(0, &(0..100).map(|n| product(&format!("a{n}"))).collect::<Vec<_>>());
    let held = ScriptedInference::new("tiny");
    held.held.store(true, Ordering::SeqCst);
    let zombie = run.parts(MemoryMedia::with([]), held.clone()).await;
    let (progress, metrics, shutdown) = (zombie.progress.clone(), zombie.metrics.clone(), CancellationToken::new());
    let running = tokio::spawn(pipeline::run(zombie, Mode::Continuous, shutdown.clone()));
    until("the zombie has read all", || progress.snapshot().received == 100).await;
    once(run.parts(MemoryMedia::with([]), ScriptedInference::new("tiny")).await).await.unwrap();
    held.held.store(false, Ordering::SeqCst);
    held.release.notify_waiters();
    let fenced = || metrics.fenced_partitions_total.with_label_values(&[JOB]).get() > 0;
    until("the zombie was fenced", fenced).await;
    shutdown.cancel();
    running.await.unwrap().expect("being fenced is no failure");
    assert_eq!(places(&run.tables(), JOB).await, (0..100).map(|n| place(0, n)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn few_permits_are_enough_for_any_number_of_assets() {
    let run = Run::new();
    run.write(0, &(0..300).map(|n| pictured(&format!("a{n}"), "s3://b/red")).collect::<Vec<_>>());
    let mut parts = run.parts(MemoryMedia::with([("s3://b/red", png(2, 2))]), ScriptedInference::new("tiny")).await;
    parts.options.assets = 3;
    parts.options.bytes = bytesize::ByteSize::kib(1);
    let progress = Arc::clone(&parts.progress);
    once(parts).await.unwrap();
    assert_eq!(progress.snapshot().annotated, 300);
    assert_eq!(places(&run.tables(), JOB).await.len(), 300);
}
