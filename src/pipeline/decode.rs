//! First stage: a record's bytes become an [`Asset`], or a rejection that names the field.
//!
//! Receives tracked records, sends tracked assets. A tombstone ends here as a removal. Decoding is a few microseconds of
//! CPU, so records go in chunks to tasks, one per core. Ends when its input ends.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use crate::domain::{Asset, Blame, Outcome, Rejection, Stage};
use crate::job::{MessageDecoder, MessageError, check_key};
use crate::source::Record;

use super::tracked::Tracked;

const CHUNK: usize = 64;

pub(super) async fn run(
    mut input: mpsc::Receiver<Tracked<Arc<Record>>>,
    output: mpsc::Sender<Tracked<Asset>>,
    decoder: Arc<MessageDecoder>,
    threads: usize,
) {
    let workers = Arc::new(Semaphore::new(threads));
    let mut chunk = Vec::with_capacity(CHUNK);
    while input.recv_many(&mut chunk, CHUNK).await > 0 {
        let worker = workers.clone().acquire_owned().await.expect("the semaphore is never closed");
        let records = std::mem::take(&mut chunk);
        let (decoder, output) = (decoder.clone(), output.clone());
        tokio::spawn(async move {
            for record in records {
                if let Some(asset) = decode(record, &decoder) {
                    // A closed channel means that the pipeline is ending; the asset reports itself as abandoned.
                    let _ = output.send(asset).await;
                }
            }
            drop(worker);
        });
    }
}

fn decode(tracked: Tracked<Arc<Record>>, decoder: &MessageDecoder) -> Option<Tracked<Asset>> {
    let work = tracked.work(Stage::Decode);
    let Some(payload) = tracked.value.payload.clone() else {
        drop(work);
        let outcome = removal(&tracked.value);
        tracked.settle(outcome);
        return None;
    };
    let decoded = tracked.and_then(|record| {
        let asset = decoder.decode(&payload).map_err(rejection)?;
        check_key(&asset, record.origin.key.as_deref()).map_err(rejection)?;
        Ok(asset)
    });
    drop(work);
    decoded
}

fn removal(record: &Record) -> Outcome {
    match &record.origin.key {
        Some(key) if !key.is_empty() => Outcome::Removed { asset_id: key.clone() },
        _ => Outcome::Rejected(Rejection {
            asset_id: None,
            stage: Stage::Decode,
            reason: "tombstone_without_key",
            detail: "a record with a null value removes the asset that its key names, but it has no key".to_owned(),
            blame: Blame::Asset,
            attempts: 1,
        }),
    }
}

fn rejection(error: MessageError) -> Rejection {
    Rejection {
        asset_id: error.asset_id().map(str::to_owned),
        stage: Stage::Decode,
        reason: error.reason(),
        detail: error.to_string(),
        blame: Blame::Asset,
        attempts: 1,
    }
}
