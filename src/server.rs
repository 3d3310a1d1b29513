//! The worker's HTTP side: `/metrics` for Prometheus, `/healthz` and `/readyz` for a supervisor.
//!
//! It answers from what others set; it decides nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// What the probes answer; clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    ready: bool,
    dead: Option<&'static str>,
}

impl Health {
    /// Alive and not ready.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    pub fn set_ready(&self, ready: bool) {
        self.0.send_modify(|state| state.ready = ready);
    }

    /// The process cannot recover and is to be replaced.
    pub fn set_dead(&self, reason: &'static str) {
        self.0.send_modify(|state| *state = State { ready: false, dead: Some(reason) });
    }

    pub fn is_ready(&self) -> bool {
        self.0.borrow().ready
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
    let (alive, ready) = (health.clone(), health);
    let exposition = move || {
        let text = metrics.render();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response() }
    };
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/healthz", get(move || async move { alive.healthz() }))
        .route("/readyz", get(move || async move { ready.readyz() }));
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_and_metrics_answer_what_was_set() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, metrics, stop) = (Health::new(), Arc::new(Metrics::new()), CancellationToken::new());
        metrics.records_total.with_label_values(&["a"]).inc();
        let server = tokio::spawn(serve(listener, metrics, health.clone(), stop.clone().cancelled_owned()));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        health.set_ready(true);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let exposition = ask(address, "/metrics").await;
        assert!(exposition.contains("text/plain; version=0.0.4"));
        assert!(exposition.contains("assay_records_total{job=\"a\"} 1"));
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        health.set_dead("the device thread has ended");
        let dead = ask(address, "/healthz").await;
        assert!(dead.starts_with("HTTP/1.1 503") && dead.contains("the device thread has ended"));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        stop.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
