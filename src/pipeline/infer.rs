//! Fourth stage: prepared assets wait for their answers from the engine.
//!
//! Receives [`PreparedAsset`]s, several at once, and settles every one of them. At most `window` are with the engine at
//! once; it packs them into batches as it likes. A bad input or output rejects its asset; a dead engine ends the pipeline.
//! Ends when its input has ended and nothing waits.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::domain::{Annotation, Blame, Outcome, Rejection, Stage, Value};
use crate::engine::{Answer, Inference, InferenceError};
use crate::job::{AnswerError, JobSpec};

use super::error::PipelineError;
use super::prepare::PreparedAsset;
use super::tracked::Tracked;

/// What the stage needs to know.
pub(super) struct Inferrer {
    pub(super) job: Arc<JobSpec>,
    pub(super) inference: Arc<dyn Inference>,
    /// Where errors go that are no asset's fault.
    pub(super) fatal: mpsc::Sender<PipelineError>,
}

pub(super) async fn run(
    mut input: mpsc::Receiver<Vec<Tracked<PreparedAsset>>>,
    window: usize,
    inferrer: Arc<Inferrer>,
) {
    let mut waiting = FuturesUnordered::new();
    let mut received = Vec::new().into_iter();
    let mut ended = false;
    loop {
        let room = window.saturating_sub(waiting.len());
        let assets = received.by_ref().filter(|asset: &Tracked<PreparedAsset>| !asset.is_cancelled()).take(room);
        waiting.extend(assets.map(|asset| inferrer.infer(asset)));
        tokio::select! {
            biased;
            Some(()) = waiting.next() => {}
            assets = input.recv(), if !ended && waiting.len() < window => match assets {
                Some(assets) => received = assets.into_iter(),
                None => ended = true,
            },
            else => return,
        }
    }
}

impl Inferrer {
    async fn infer(&self, tracked: Tracked<PreparedAsset>) {
        // Waiting for the device is a queue, so it does not count; a device that is stuck is no asset's fault.
        tracked.enter(Stage::Infer);
        let (asset, rest) = tracked.split();
        let PreparedAsset { id, kind, event_time, media_hashes, present, prepared } = asset;
        let outcome = match self.inference.infer(prepared).await {
            Ok(answer) => match values(&self.job, &answer, &present) {
                Ok(values) => Outcome::Annotated(Annotation {
                    asset_id: id,
                    kind,
                    event_time,
                    media_hashes,
                    prompt_tokens: answer.prompt_tokens,
                    completion_tokens: answer.completion_tokens,
                    device_seconds: answer.device_seconds,
                    finish_reason: answer.finish_reason,
                    values,
                }),
                Err(error) => Outcome::Rejected(unusable(id, &error)),
            },
            Err(error) => match rejection(id, &error) {
                Some(rejection) => Outcome::Rejected(rejection),
                None => {
                    let _ = self.fatal.try_send(error.into());
                    // The pipeline ends; the asset must not get an outcome that is not its fault.
                    std::future::pending().await
                }
            },
        };
        rest.settle(outcome);
    }
}

/// One cell for each annotation column, then one for each embedding column: the next vector where the asset had an
/// input, else null.
fn values(job: &JobSpec, answer: &Answer, present: &[bool]) -> Result<Vec<Value>, AnswerError> {
    let text = answer.texts.first().map_or("", String::as_str);
    let mut values = job.annotate.as_ref().map_or(Ok(Vec::new()), |annotate| annotate.values(text))?;
    let mut vectors = answer.embeddings.iter();
    let mut cell = |present: &bool| if *present { vectors.next().cloned().map(Value::Embedding) } else { None };
    values.extend(present.iter().map(|present| cell(present).unwrap_or(Value::Null)));
    Ok(values)
}

/// An answer that does not fit its schema: the model's doing, but this asset's alone.
fn unusable(asset_id: String, error: &AnswerError) -> Rejection {
    Rejection {
        reason: "model_output",
        asset_id: Some(asset_id),
        stage: Stage::Infer,
        detail: format!("the model answered with {error}"),
        blame: Blame::Asset,
        attempts: 1,
    }
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
    use std::path::Path;

    use tokio::sync::Semaphore;

    use super::super::tracked::tests::tracked;
    use super::*;
    use crate::domain::AssetKind;
    use crate::engine::{InstantInference, Request, Task};

    fn answer(texts: Vec<String>) -> Answer {
        Answer {
            embeddings: vec![vec![1.0], vec![2.0]],
            texts,
            prompt_tokens: 2,
            completion_tokens: 0,
            device_seconds: 0.0,
            finish_reason: "embedded",
        }
    }

    fn job(annotate: &str) -> JobSpec {
        let folder = tempfile::tempdir().unwrap();
        let schema = r#"{"type": "object", "properties": {"brand": {"type": "string"}}}"#;
        std::fs::write(folder.path().join("out.json"), schema).unwrap();
        let embedding = "[[embeddings]]\ncolumn = \"e\"\nmodel = \"m\"\ninput = \"image\"\n";
        let text = format!("name = \"j\"\nkind = \"ad\"\ntopics = [\"t\"]\n{embedding}{annotate}");
        JobSpec::parse(&folder.path().join(Path::new("j.toml")), &text).unwrap()
    }

    #[test]
    fn a_missing_input_leaves_its_column_null() {
        let values = values(&job(""), &answer(Vec::new()), &[true, false, true]).unwrap();
        assert_eq!(values, [Value::Embedding(vec![1.0]), Value::Null, Value::Embedding(vec![2.0])]);
    }

    #[test]
    fn annotations_come_before_embeddings_and_what_is_no_json_is_refused() {
        let job = job("[annotate]\nmodel = \"m\"\nprompt = \"{id}\"\noutput = \"out.json\"\n");
        let good = answer(vec![r#"{"brand": "Acme"}"#.to_owned()]);
        let expected = [Value::Text("Acme".into()), Value::Embedding(vec![1.0])];
        assert_eq!(values(&job, &good, &[true]).unwrap(), expected);
        let error = values(&job, &answer(vec!["Acme".to_owned()]), &[true]).unwrap_err();
        assert_eq!(unusable("a".to_owned(), &error).reason, "model_output");
    }

    #[tokio::test]
    async fn of_many_that_come_at_once_each_is_settled() {
        let (outcomes, mut settled) = mpsc::channel(10);
        let (sender, input) = mpsc::channel(1);
        let inference = Arc::new(InstantInference::new([("m", 2)]));
        let asset = || {
            let task = Task::EmbedText { model: "m".into(), text: "a mug".to_owned() };
            let prepared = PreparedAsset {
                id: "a".to_owned(),
                kind: AssetKind::Ad,
                event_time: 0,
                media_hashes: Vec::new(),
                present: vec![true],
                prepared: inference.prepare(&Request { tasks: vec![task] }).unwrap(),
            };
            tracked(outcomes.clone(), &Arc::new(Semaphore::new(3))).map(|_| prepared)
        };
        let sent = sender.send((0..10).map(|_| asset()).collect()).await;
        assert!(sent.is_ok());
        drop(sender);
        let inferrer = Inferrer { job: Arc::new(job("")), inference, fatal: mpsc::channel(1).0 };
        run(input, 3, Arc::new(inferrer)).await;
        let annotated = |_| matches!(settled.try_recv().unwrap().outcome, Some(Outcome::Annotated(_)));
        assert!((0..10).all(annotated));
    }
}
