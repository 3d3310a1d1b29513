//! Third stage, on CPU threads: pictures are decoded, templates filled, model inputs made.
//!
//! Receives [`FetchedAsset`]s, sends [`PreparedAsset`]s, several at once. The stage has threads of its own, which take assets
//! by themselves: nothing is handed over while a core waits, and memory stays where it was freed. A picture that cannot be
//! decoded rejects its asset, a decoder that panics too. Media bytes are given back here. Ends when its input ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::domain::{Asset, AssetKind, Blame, Rejection, Stage};
use crate::engine::{Generation, Image, Inference, OutputSchema, Pooling, Prepared, Request, Sampling, Task};
use crate::job::{self, Annotate, Embedding, EmbeddingInput, JobSpec};
use crate::media::{DecodeLimits, Media, decode};
use crate::metrics::Metrics;

use super::error::PipelineError;
use super::fetch::FetchedAsset;
use super::tracked::Tracked;

/// Prepared assets go on together, because each time the next stage is woken a core changes its thread: when there are so
/// many, when this has taken so long, or when there is nothing else to do.
pub(super) const TOGETHER: usize = 32;

/// Looked at between two assets.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

/// What inference needs, and what the row will need beside it.
pub(super) struct PreparedAsset {
    pub(super) id: String,
    pub(super) kind: AssetKind,
    pub(super) event_time: i64,
    pub(super) media_hashes: Vec<String>,
    /// For each embedding of the job, whether the asset has an input for it.
    pub(super) present: Vec<bool>,
    pub(super) prepared: Prepared,
}

/// What the stage needs to know.
pub(super) struct Preparer {
    pub(super) job: Arc<JobSpec>,
    pub(super) inference: Arc<dyn Inference>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) threads: usize,
    /// Where errors go that are no asset's fault.
    pub(super) fatal: mpsc::Sender<PipelineError>,
}

pub(super) async fn run(
    input: mpsc::Receiver<Tracked<FetchedAsset>>,
    output: mpsc::Sender<Vec<Tracked<PreparedAsset>>>,
    preparer: Arc<Preparer>,
) {
    let input = Arc::new(Mutex::new(input));
    // Each thread holds a sender, so the channel closes when the last one has ended.
    let (working, mut ended) = mpsc::channel::<()>(1);
    for number in 0..preparer.threads {
        let (input, output, worker, working) = (input.clone(), output.clone(), preparer.clone(), working.clone());
        let work = move || {
            worker.work(&input, &output);
            drop(working);
        };
        if let Err(error) = std::thread::Builder::new().name(format!("prepare-{number}")).spawn(work) {
            let detail = format!("a thread of the prepare stage cannot be started: {error}");
            let _ = preparer.fatal.send(PipelineError::Panicked { detail }).await;
        }
    }
    drop((working, output));
    ended.recv().await;
}

impl Preparer {
    /// What one thread does, until the input ends.
    fn work(
        &self,
        input: &Mutex<mpsc::Receiver<Tracked<FetchedAsset>>>,
        output: &mpsc::Sender<Vec<Tracked<PreparedAsset>>>,
    ) {
        let mut ready = Vec::with_capacity(TOGETHER);
        let mut handed_over = Instant::now();
        let more_is_there = || input.try_lock().is_ok_and(|input| !input.is_empty());
        loop {
            let is_due = || ready.len() >= TOGETHER || handed_over.elapsed() >= LONGEST_WAIT || !more_is_there();
            if !ready.is_empty() && is_due() {
                // A closed channel means that the pipeline is ending; the assets report themselves as abandoned.
                let _ = output.blocking_send(std::mem::replace(&mut ready, Vec::with_capacity(TOGETHER)));
                handed_over = Instant::now();
            }
            let received = input.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(asset) = received else { return };
            if !asset.is_cancelled() {
                ready.extend(self.prepare_tracked(asset));
            }
        }
    }

    fn prepare_tracked(&self, tracked: Tracked<FetchedAsset>) -> Option<Tracked<PreparedAsset>> {
        let work = tracked.work(Stage::Prepare);
        let timer = self.metrics.prepare_seconds.start_timer();
        let mut prepared = tracked.and_then(|fetched| {
            let id = fetched.asset.id.clone();
            catch_unwind(AssertUnwindSafe(|| self.prepare(fetched))).unwrap_or_else(|_| {
                Err(rejection(&id, "prepare_panicked", "preparing this asset's inputs panicked".to_owned()))
            })
        });
        if let Some(prepared) = &mut prepared {
            prepared.release_media();
        }
        timer.observe_duration();
        drop(work);
        prepared
    }

    fn prepare(&self, fetched: FetchedAsset) -> Result<PreparedAsset, Rejection> {
        let FetchedAsset { asset, media } = fetched;
        let images: Vec<Arc<Image>> =
            media.iter().map(|medium| self.decode(&asset.id, medium).map(Arc::new)).collect::<Result<_, _>>()?;
        let (request, present) = request(&self.job, &asset, &images);
        let prepared = self.inference.prepare(&request).map_err(|error| {
            let reason = error.asset_reason().unwrap_or_else(|| {
                // Full means that another such error is already on its way.
                let _ = self.fatal.try_send(error.clone().into());
                "engine"
            });
            rejection(&asset.id, reason, error.to_string())
        })?;
        Ok(PreparedAsset {
            kind: asset.kind(),
            id: asset.id,
            event_time: asset.event_time,
            media_hashes: media.into_iter().map(|medium| medium.sha256).collect(),
            present,
            prepared,
        })
    }

    fn decode(&self, asset_id: &str, medium: &Media) -> Result<Image, Rejection> {
        let limits = &self.job.limits;
        // Three bytes a pixel for the picture; progressive, turned and transparent ones need several times as much.
        let limits =
            DecodeLimits { pixels: limits.pixels, side: limits.side, allocation: limits.pixels.saturating_mul(16) };
        decode(&medium.bytes, &limits)
            .map(|picture| Image { width: picture.width, height: picture.height, rgb: picture.rgb })
            .map_err(|error| rejection(asset_id, error.reason(), format!("picture {}: {error}", medium.sha256)))
    }
}

/// What the job asks of the models about an asset whose pictures are `images`, the main one first; and for each
/// embedding column whether it will have a value. Vectors come in the order of the columns.
fn request(job: &JobSpec, asset: &Asset, images: &[Arc<Image>]) -> (Request, Vec<bool>) {
    let mut generation = job.annotate.as_ref().map(|annotate| generation(annotate, asset, images));
    let mut task = |embedding: &Embedding| {
        let model = embedding.model.clone();
        match &embedding.input {
            EmbeddingInput::Text(template) => Some(Task::EmbedText { model, text: template.render(asset) }),
            EmbeddingInput::Image => images.first().map(|image| Task::EmbedImage { model, image: image.clone() }),
            EmbeddingInput::Prompt(pooling) => {
                let pooling = match pooling {
                    job::Pooling::Last => Pooling::Last,
                    job::Pooling::Mean => Pooling::Mean,
                };
                generation.take().map(|generation| Task::Generate(Generation { pooling: Some(pooling), ..generation }))
            }
        }
    };
    let tasks: Vec<Option<Task>> = job.embeddings.iter().map(&mut task).collect();
    let present = tasks.iter().map(Option::is_some).collect();
    let tasks = tasks.into_iter().flatten().chain(generation.map(Task::Generate)).collect();
    (Request { tasks }, present)
}

fn generation(annotate: &Annotate, asset: &Asset, images: &[Arc<Image>]) -> Generation {
    let job::AnswerSampling { temperature, top_p, min_p, top_k, repetition_penalty, seed } = annotate.sampling;
    Generation {
        model: annotate.model.clone(),
        instruction: annotate.instruction.clone(),
        images: images.iter().take(annotate.images).cloned().collect(),
        prompt: annotate.prompt.render(asset),
        output: Some(OutputSchema { schema: annotate.output.clone(), choices: job::choices(asset) }),
        sampling: Sampling {
            temperature: temperature as f32,
            top_p: top_p as f32,
            min_p: min_p as f32,
            top_k,
            repetition_penalty: repetition_penalty as f32,
            seed: seed ^ id_seed(&asset.id),
        },
        max_tokens: annotate.max_tokens,
        deadline: Some(annotate.deadline),
        pooling: None,
    }
}

/// FNV-1a (Fowler, Noll and Vo): the same for an id on every machine and in every version.
fn id_seed(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn rejection(asset_id: &str, reason: &'static str, detail: String) -> Rejection {
    Rejection {
        asset_id: Some(asset_id.to_owned()),
        stage: Stage::Prepare,
        reason,
        detail,
        blame: Blame::Asset,
        attempts: 1,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::Semaphore;

    use super::super::tracked::{Settled, tests::tracked};
    use super::*;
    use crate::domain::{Content, Product};
    use crate::engine::InstantInference;

    fn preparer() -> Arc<Preparer> {
        let embedding = "[[embeddings]]\ncolumn = \"e\"\nmodel = \"m\"\ninput = \"text\"\ntemplate = \"{id}\"\n";
        let text = format!("name = \"j\"\nkind = \"product\"\ntopics = [\"t\"]\n{embedding}");
        Arc::new(Preparer {
            job: Arc::new(JobSpec::parse(Path::new("j.toml"), &text).unwrap()),
            inference: Arc::new(InstantInference::new([("m", 2)])),
            metrics: Arc::new(Metrics::new()),
            threads: 2,
            fatal: mpsc::channel(1).0,
        })
    }

    fn fetched(outcomes: &mpsc::Sender<Settled>) -> Tracked<FetchedAsset> {
        let content = Content::Product(Product::default());
        let asset = Asset { id: "a".to_owned(), event_time: 0, content, media: Vec::new() };
        tracked(outcomes.clone(), &Arc::new(Semaphore::new(3))).map(|_| FetchedAsset { asset, media: Vec::new() })
    }

    #[tokio::test]
    async fn an_asset_that_comes_alone_does_not_wait_for_others() {
        let (outcomes, _settled) = mpsc::channel(1);
        let (sender, input) = mpsc::channel(4);
        let (output, mut prepared) = mpsc::channel(4);
        let stage = tokio::spawn(run(input, output, preparer()));
        for _ in 0..3 {
            assert!(sender.send(fetched(&outcomes)).await.is_ok());
            let together = prepared.recv().await.expect("the stage goes on");
            assert_eq!(together.len(), 1);
        }
        drop(sender);
        stage.await.unwrap();
        assert!(prepared.recv().await.is_none());
    }

    #[tokio::test]
    async fn assets_that_wait_go_on_together_and_none_is_left_behind() {
        let (outcomes, _settled) = mpsc::channel(1);
        let (sender, input) = mpsc::channel(500);
        let (output, mut prepared) = mpsc::channel(1);
        for _ in 0..500 {
            assert!(sender.send(fetched(&outcomes)).await.is_ok());
        }
        drop(sender);
        let stage = tokio::spawn(run(input, output, preparer()));
        let mut count = 0;
        while let Some(together) = prepared.recv().await {
            assert!((1..=TOGETHER).contains(&together.len()));
            count += together.len();
        }
        assert_eq!(count, 500);
        stage.await.unwrap();
    }
}
