//! The worker's HTTP side: `/metrics` for Prometheus; `/startupz`, `/healthz` and `/readyz` for a supervisor.
//!
//! It answers from what others set; it decides nothing. Invariant: what is dead is never ready.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// What the probes answer; clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    started: bool,
    ready: bool,
    dead: Option<&'static str>,
}

impl Health {
    /// Alive, not started and not ready.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// The models are loaded.
    pub fn set_started(&self) {
        self.0.send_modify(|state| state.started = true);
    }

    pub fn set_ready(&self, ready: bool) {
        self.0.send_modify(|state| state.ready = ready);
    }

    /// The process cannot recover and is to be replaced.
    pub fn set_dead(&self, reason: &'static str) {
        self.0.send_modify(|state| state.dead = Some(reason));
    }

    pub fn is_ready(&self) -> bool {
        let state = self.0.borrow();
        state.ready && state.dead.is_none()
    }

    fn startupz(&self) -> (StatusCode, &'static str) {
        if self.0.borrow().started {
            (StatusCode::OK, "started\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "models are being loaded\n")
        }
    }

    fn healthz(&self) -> (StatusCode, String) {
        match self.0.borrow().dead {
            None => (StatusCode::OK, "alive\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    }

    fn readyz(&self) -> (StatusCode, &'static str) {
        if self.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the address; fails at once when another process has it.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("server.address {address} cannot be used: {error}")))
}

/// Serves until `shutdown` is done.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Health,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (started, alive, ready) = (health.clone(), health.clone(), health);
    let exposition = move || {
        let text = metrics.render();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response() }
    };
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/startupz", get(move || async move { started.startupz() }))
        .route("/healthz", get(move || async move { alive.healthz() }))
        .route("/readyz", get(move || async move { ready.readyz() }));
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// How long a worker may take for an answer about its health.
const PATIENCE: Duration = Duration::from_secs(4);

/// Asks a worker on this machine whether it is alive; gives what it says.
///
/// # Errors
/// Nobody answers at the port of `address`, or what answers is not alive; the error holds its reason.
pub async fn probe(address: SocketAddr) -> std::io::Result<String> {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let address = SocketAddr::new(host, address.port());
    let failed = |kind, detail: String| std::io::Error::new(kind, format!("worker at {address}: {detail}"));
    let answer = tokio::time::timeout(PATIENCE, ask(address, "/healthz")).await;
    let answer = answer.map_err(|_| failed(std::io::ErrorKind::TimedOut, "does not answer".to_owned()))?;
    let answer = answer.map_err(|error| failed(error.kind(), error.to_string()))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_owned();
    if answer.starts_with("HTTP/1.1 200") { Ok(body) } else { Err(failed(std::io::ErrorKind::Other, body)) }
}

/// The whole answer of one request. Only our own server is asked, so more of the protocol is not needed.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        super::ask(address, path).await.unwrap()
    }

    #[tokio::test]
    async fn probes_and_metrics_answer_what_was_set() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, metrics, stop) = (Health::new(), Arc::new(Metrics::new()), CancellationToken::new());
        metrics.records_total.with_label_values(&["a"]).inc();
        let server = tokio::spawn(serve(listener, metrics, health.clone(), stop.clone().cancelled_owned()));
        assert!(ask(address, "/startupz").await.starts_with("HTTP/1.1 503"));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        health.set_started();
        assert!(ask(address, "/startupz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        health.set_ready(true);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let exposition = ask(address, "/metrics").await;
        assert!(exposition.contains("text/plain; version=0.0.4"));
        assert!(exposition.contains("assay_records_total{job=\"a\"} 1"));
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert_eq!(probe(address).await.unwrap(), "alive");
        health.set_dead("the device thread has ended");
        let dead = ask(address, "/healthz").await;
        assert!(dead.starts_with("HTTP/1.1 503") && dead.contains("the device thread has ended"));
        assert!(probe(address).await.unwrap_err().to_string().ends_with("the device thread has ended"));
        health.set_ready(true);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"), "what is dead is not ready");
        stop.cancel();
        server.await.unwrap().unwrap();
        assert!(probe(address).await.is_err(), "nobody is there any more");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
