//! Fourth stage: prepared assets wait for their answers from the engine.
//!
//! Receives [`PreparedAsset`]s and settles every one of them. At most `window` are with the engine at once; it packs them into
//! batches as it likes. A bad input or output rejects its asset; a dead engine ends the pipeline. Ends when its input has ended
//! and nothing waits.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::domain::{Annotation, Blame, Outcome, Rejection, Stage, Value};
use crate::engine::{Answer, Inference, InferenceError};

use super::error::PipelineError;
use super::prepare::PreparedAsset;
use super::tracked::Tracked;

pub(super) async fn run(
    mut input: mpsc::Receiver<Tracked<PreparedAsset>>,
    inference: Arc<dyn Inference>,
    window: usize,
    fatal: mpsc::Sender<PipelineError>,
) {
    let mut waiting = FuturesUnordered::new();
    let mut ended = false;
    while !ended || !waiting.is_empty() {
        tokio::select! {
            biased;
            Some(()) = waiting.next() => {}
            asset = input.recv(), if !ended && waiting.len() < window => match asset {
                Some(asset) if !asset.is_cancelled() => waiting.push(infer(asset, inference.as_ref(), &fatal)),
                Some(_) => {}
                None => ended = true,
            },
        }
    }
}

async fn infer(tracked: Tracked<PreparedAsset>, inference: &dyn Inference, fatal: &mpsc::Sender<PipelineError>) {
    // Waiting for the device is a queue, so it does not count; a device that is stuck is no asset's fault.
    tracked.enter(Stage::Infer);
    let (asset, rest) = tracked.split();
    let PreparedAsset { id, kind, event_time, media_hashes, present, prepared } = asset;
    let outcome = match inference.infer(prepared).await {
        Ok(answer) => Outcome::Annotated(Annotation {
            asset_id: id,
            kind,
            event_time,
            media_hashes,
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.completion_tokens,
            device_seconds: answer.device_seconds,
            finish_reason: answer.finish_reason,
            values: embeddings(answer, &present),
        }),
        Err(error) => match rejection(id, &error) {
            Some(rejection) => Outcome::Rejected(rejection),
            None => {
                let _ = fatal.try_send(error.into());
                // The pipeline ends; the asset must not get an outcome that is not its fault.
                std::future::pending().await
            }
        },
    };
    rest.settle(outcome);
}

/// One cell for each embedding column: the next vector where the asset had an input, else null.
fn embeddings(answer: Answer, present: &[bool]) -> Vec<Value> {
    let mut vectors = answer.embeddings.into_iter();
    let mut cell = |present: &bool| if *present { vectors.next().map(Value::Embedding) } else { None };
    present.iter().map(|present| cell(present).unwrap_or(Value::Null)).collect()
}

fn rejection(asset_id: String, error: &InferenceError) -> Option<Rejection> {
    Some(Rejection {
        reason: error.asset_reason()?,
        asset_id: Some(asset_id),
        stage: Stage::Infer,
        detail: error.to_string(),
        blame: Blame::Asset,
        attempts: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_input_leaves_its_column_null() {
        let answer = Answer {
            embeddings: vec![vec![1.0], vec![2.0]],
            prompt_tokens: 2,
            completion_tokens: 0,
            device_seconds: 0.0,
            finish_reason: "embedded",
        };
        let values = embeddings(answer, &[true, false, true]);
        assert_eq!(values, [Value::Embedding(vec![1.0]), Value::Null, Value::Embedding(vec![2.0])]);
    }
}
