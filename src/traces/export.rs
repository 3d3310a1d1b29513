//! Sends finished journeys to a collector: OTLP over HTTP with JSON, as the OpenTelemetry protocol 1.x describes it.
//!
//! It knows the wire and nothing of assets. Invariant: traces are best effort. Nothing waits for the collector, memory is
//! bounded, and what cannot be delivered is dropped with a warning.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::context::Context;
use super::journey::{Journey, Notes};
use super::options::Options;

/// Finished journeys that wait to be sent.
const WAITING: usize = 4096;
/// Journeys in one request.
const BATCH: usize = 256;
/// How long the first journey of a request waits for company.
const COMPANY: Duration = Duration::from_millis(500);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Begins journeys; clones share one exporter. The default begins none.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Active>>);

#[derive(Debug)]
struct Active {
    ratio: f64,
    finished: mpsc::Sender<Notes>,
}

/// The sending side; it ends when no tracer and no journey is left.
#[derive(Debug)]
pub struct Exporting(Option<JoinHandle<()>>);

impl Tracer {
    /// Starts to export, when there is an endpoint. Errors: the HTTP client cannot be built.
    pub fn start(options: &Options) -> Result<(Self, Exporting), reqwest::Error> {
        if options.endpoint.is_empty() {
            return Ok((Self::default(), Exporting(None)));
        }
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
        let url = format!("{}/v1/traces", options.endpoint.trim_end_matches('/'));
        let (finished, waiting) = mpsc::channel(WAITING);
        let exporter = tokio::spawn(export(client, url, options.service.clone(), waiting));
        Ok((Self(Some(Arc::new(Active { ratio: options.ratio, finished }))), Exporting(Some(exporter))))
    }

    /// Begins the journey of one asset, when it is to be traced. `attributes` is asked only then.
    pub fn begin(
        &self,
        headers: &[(String, Option<String>)],
        attributes: impl FnOnce() -> Vec<(&'static str, String)>,
    ) -> Option<Arc<Journey>> {
        let active = self.0.as_ref()?;
        let context = Context::of(headers);
        let sampled = context.sampled.unwrap_or_else(|| rand::random::<f64>() < active.ratio);
        sampled.then(|| Arc::new(Journey::begin(context, attributes(), active.finished.clone())))
    }
}

impl Exporting {
    /// Waits until everything that was finished is sent, but not for ever.
    pub async fn end(self) {
        if let Some(exporter) = self.0
            && tokio::time::timeout(PATIENCE, exporter).await.is_err()
        {
            tracing::warn!("the last traces were not sent in time");
        }
    }
}

async fn export(client: reqwest::Client, url: String, service: String, mut waiting: mpsc::Receiver<Notes>) {
    let mut failing = false;
    while let Some(first) = waiting.recv().await {
        let mut batch = vec![first];
        let gathering = async {
            while batch.len() < BATCH
                && let Some(next) = waiting.recv().await
            {
                batch.push(next);
            }
        };
        // Whatever has come until then is sent.
        let _ = tokio::time::timeout(COMPANY, gathering).await;
        let body = request(&service, &batch).to_string();
        let sent = client.post(&url).header("content-type", "application/json").body(body).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => failing = false,
            // Once until it works again.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, traces = batch.len(), "traces cannot be sent; they are dropped");
            }
            Err(_) => {}
        }
    }
}

/// An `ExportTraceServiceRequest`.
fn request(service: &str, batch: &[Notes]) -> Value {
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    json!({
        "resourceSpans": [{
            "resource": { "attributes": [attribute("service.name", service)] },
            "scopeSpans": [{ "scope": { "name": "assay", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
        }]
    })
}

/// The journey itself, and a child for each of its parts.
fn spans(notes: &Notes) -> Vec<Value> {
    let trace = format!("{:032x}", notes.context.trace);
    let root = identity();
    let mut attributes: Vec<Value> = notes.attributes.iter().map(|(name, value)| attribute(name, value)).collect();
    let (outcome, reason) = notes.outcome.unwrap_or(("dropped", None));
    attributes.push(attribute("assay.outcome", outcome));
    attributes.extend(reason.map(|reason| attribute("assay.reason", reason)));
    let mut whole = json!({
        "traceId": trace,
        "spanId": root,
        "name": "asset",
        // A consumer of messages.
        "kind": 5,
        "startTimeUnixNano": nanoseconds(notes.began),
        "endTimeUnixNano": nanoseconds(notes.ended),
        "attributes": attributes,
    });
    if let Some(parent) = notes.context.parent {
        whole["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(reason) = reason {
        whole["status"] = json!({ "code": 2, "message": reason });
    }
    let parts = notes.parts.iter().map(|part| {
        json!({
            "traceId": trace,
            "spanId": identity(),
            "parentSpanId": root,
            "name": part.name,
            "kind": 1,
            "startTimeUnixNano": nanoseconds(part.began),
            "endTimeUnixNano": nanoseconds(part.ended.unwrap_or(notes.ended)),
        })
    });
    std::iter::once(whole).chain(parts).collect()
}

fn attribute(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": { "stringValue": value } })
}

/// A span's id, which must not be zero.
fn identity() -> String {
    format!("{:016x}", rand::random::<u64>().max(1))
}

/// JSON numbers do not hold it; the protocol writes it as text.
fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_traced_without_an_endpoint() {
        let (tracer, exporting) = Tracer::start(&Options::default()).unwrap();
        assert!(tracer.begin(&[], || panic!("attributes are asked only when they are used")).is_none());
        exporting.end().await;
    }

    #[tokio::test]
    async fn the_message_decides_over_the_ratio() {
        let options = Options { endpoint: "http://127.0.0.1:9".to_owned(), ratio: 0.0, ..Options::default() };
        let (tracer, _) = Tracer::start(&options).unwrap();
        let header = |flags: &str| {
            let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            vec![("traceparent".to_owned(), Some(value))]
        };
        assert!(tracer.begin(&[], Vec::new).is_none());
        assert!(tracer.begin(&header("00"), Vec::new).is_none());
        assert!(tracer.begin(&header("01"), Vec::new).is_some());
    }
}
