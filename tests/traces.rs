//! Traces as a collector receives them: a pipeline over a replayed topic, and an OTLP/HTTP server on loopback.

use assay::traces::{Options, Tracer};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::stage::fakes::{MemoryMedia, ScriptedInference, png};
use crate::stage::worker::{Run, once, pictured};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A collector's address, and the requests that it has got.
async fn collector() -> (String, mpsc::Receiver<Value>) {
    let (sender, requests) = mpsc::channel(16);
    let take = move |body: Bytes| {
        let sender = sender.clone();
        async move { sender.send(serde_json::from_slice(&body).expect("JSON")).await.expect("somebody listens") }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}"), requests)
}

fn attribute<'a>(span: &'a Value, name: &str) -> &'a str {
    let attributes = span["attributes"].as_array().expect("attributes");
    let found = attributes.iter().find(|attribute| attribute["key"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {span}"))["value"]["stringValue"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_of_an_asset_continues_the_trace_of_its_message() {
    let run = Run::new();
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    run.write(
        0,
        &[
            json!({ "key": "good", "value": pictured("good", "s3://b/red"), "headers": { "traceparent": parent } }),
            json!({ "key": "bad", "value": { "id": "bad" } }),
        ],
    );
    let (endpoint, mut requests) = collector().await;
    let (tracer, exporting) = Tracer::start(&Options { endpoint, ..Options::default() }).unwrap();
    let mut parts = run.parts(MemoryMedia::with([("s3://b/red", png(3, 3))]), ScriptedInference::new("tiny")).await;
    parts.tracer = tracer;
    once(parts).await.unwrap();
    exporting.end().await;

    let mut spans = Vec::new();
    while let Ok(request) = requests.try_recv() {
        let resource = &request["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "assay");
        spans.extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().clone());
    }
    let whole = |outcome: &str| {
        let of_assets = spans.iter().filter(|span| span["name"] == "asset");
        of_assets.clone().find(|span| attribute(span, "assay.outcome") == outcome).expect("one of each")
    };
    let parts_of = |span: &Value| -> Vec<Value> {
        let parts = spans.iter().filter(|part| part["parentSpanId"] == span["spanId"]);
        parts.inspect(|part| assert_eq!(part["traceId"], span["traceId"])).map(|part| part["name"].clone()).collect()
    };

    let good = whole("annotated");
    assert_eq!((&good["traceId"], &good["parentSpanId"]), (&TRACE.into(), &"b7ad6b7169203331".into()));
    assert_eq!(attribute(good, "messaging.kafka.offset"), "0");
    assert_eq!(parts_of(good), ["decode", "fetch", "prepare", "infer", "commit"]);
    let bad = whole("rejected");
    assert!(bad["parentSpanId"].is_null() && bad["traceId"] != TRACE, "{bad}");
    assert_eq!(attribute(bad, "assay.reason"), "schema_violation");
    assert_eq!((&bad["status"]["code"], parts_of(bad)), (&2.into(), vec!["decode".into(), "commit".into()]));
    let nanoseconds = |name: &str| good[name].as_str().unwrap().parse::<u128>().unwrap();
    assert!(nanoseconds("startTimeUnixNano") < nanoseconds("endTimeUnixNano"));
}
