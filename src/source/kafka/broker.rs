//! A broker inside the process, for `assay demo` and tests: librdkafka's mock cluster.
//!
//! It keeps everything in memory and loses it with the process. It supports producing (idempotent too), fetching,
//! committed offsets and classic consumer groups including cooperative-sticky. It does not support: creating topics
//! over the admin API (use [`EmbeddedBroker::create_topic`]), control records (transactions leave no markers),
//! compaction, access control, TLS, and partitions of more than 5 MiB or 100,000 messages (the oldest are dropped).
//! The first join of a group takes three seconds, so session.timeout.ms must be longer; a later change of its members
//! takes about the session timeout less one second.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;

use crate::source::api::SourceError;

/// A running broker; it stops when this is dropped.
#[derive(Debug)]
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    // An Option so that drop can hang up before it waits for the thread.
    requests: Option<SyncSender<CreateTopic>>,
    thread: Option<JoinHandle<()>>,
}

struct CreateTopic {
    name: String,
    partitions: i32,
    answer: SyncSender<Result<(), String>>,
}

impl EmbeddedBroker {
    /// Starts a cluster of one broker on a free port of the loopback interface.
    pub fn start() -> Result<Self, SourceError> {
        let (requests, incoming) = sync_channel::<CreateTopic>(1);
        let (ready, started) = sync_channel(1);
        // The cluster's handle may not change threads, so it lives and dies on one of its own.
        let thread = std::thread::Builder::new().name("kafka-broker".to_owned()).spawn(move || {
            let cluster = match MockCluster::new(1) {
                Ok(cluster) => cluster,
                Err(error) => return drop(ready.send(Err(error.to_string()))),
            };
            if ready.send(Ok(cluster.bootstrap_servers())).is_err() {
                return;
            }
            for request in incoming {
                let outcome = cluster.create_topic(&request.name, request.partitions, 1);
                // Whoever asked may have given up.
                let _ = request.answer.send(outcome.map_err(|error| error.to_string()));
            }
        });
        let thread = thread.map_err(|error| unavailable(error.to_string()))?;
        let bootstrap_servers = started
            .recv()
            .map_err(|_| unavailable("the embedded broker did not start".to_owned()))?
            .map_err(unavailable)?;
        Ok(Self { bootstrap_servers, requests: Some(requests), thread: Some(thread) })
    }

    /// What clients need to connect.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Creates a topic. Errors when it exists already.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), SourceError> {
        let (answer, outcome) = sync_channel(1);
        let request = CreateTopic { name: name.to_owned(), partitions, answer };
        let requests = self.requests.as_ref().ok_or(SourceError::Closed)?;
        requests.send(request).map_err(|_| SourceError::Closed)?;
        outcome
            .recv()
            .map_err(|_| SourceError::Closed)?
            .map_err(|detail| SourceError::Topic { topic: name.to_owned(), detail })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened; nothing depends on it now.
            let _ = thread.join();
        }
    }
}

fn unavailable(detail: String) -> SourceError {
    SourceError::Unavailable { detail }
}
