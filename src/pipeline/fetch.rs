//! Second stage: the media that the job needs are read.
//!
//! Receives tracked assets, sends [`FetchedAsset`]s. A medium that is missing, forbidden or too large rejects its asset. A
//! store that is down is asked again with growing waits, for as long as it takes, and rejects nothing. Ends when its input ends.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::domain::{Asset, Blame, MediaReference, Rejection, Stage};
use crate::job::JobSpec;
use crate::media::{Media, MediaError, MediaStore};
use crate::retry;

use super::tracked::Tracked;

/// Files of this machine that one thread reads in a row.
const CHUNK: usize = 32;

/// An asset and the media that were read for it.
pub(super) struct FetchedAsset {
    pub(super) asset: Asset,
    /// In message order.
    pub(super) media: Vec<Media>,
}

/// What the stage needs to know.
pub(super) struct Fetcher {
    pub(super) job: Arc<JobSpec>,
    pub(super) store: Arc<dyn MediaStore>,
    pub(super) retry: retry::Options,
    pub(super) concurrency: usize,
}

pub(super) async fn run(
    mut input: mpsc::Receiver<Tracked<Asset>>,
    output: mpsc::Sender<Tracked<FetchedAsset>>,
    fetcher: Arc<Fetcher>,
) {
    let slots = Arc::new(Semaphore::new(fetcher.concurrency.max(1)));
    let slot = async || Arc::new(slots.clone().acquire_owned().await.expect("the semaphore is never closed"));
    let most = fetcher.job.limits.media;
    let mut chunk = Vec::with_capacity(CHUNK);
    while input.recv_many(&mut chunk, CHUNK).await > 0 {
        let mut local = Vec::new();
        for tracked in chunk.drain(..) {
            let Some(tracked) = tracked.and_then(|asset| within_limit(asset, most)) else { continue };
            let needed = fetcher.needed(&tracked.value);
            if needed.is_empty() {
                let _ = output.send(tracked.map(|asset| FetchedAsset { asset, media: Vec::new() })).await;
            } else if needed.iter().all(|reference| fetcher.store.is_local(&reference.url)) {
                local.push(tracked);
            } else {
                fetcher.clone().start(tracked, output.clone(), slot().await);
            }
        }
        if !local.is_empty() {
            let slot = slot().await;
            // Files are not read before the next stage has places for them: they would grow cold, and their thread wait.
            drop(output.reserve_many(local.len()).await);
            let (fetcher, output) = (fetcher.clone(), output.clone());
            tokio::task::spawn_blocking(move || fetcher.read_local(local, &output, &slot));
        }
    }
}

fn within_limit(asset: Asset, most: usize) -> Result<Asset, Rejection> {
    if asset.media.len() <= most {
        return Ok(asset);
    }
    Err(Rejection {
        detail: format!("the message lists {} media, the job allows {most} (limits.media)", asset.media.len()),
        asset_id: Some(asset.id),
        stage: Stage::Fetch,
        reason: "too_many_media",
        blame: Blame::Asset,
        attempts: 1,
    })
}

impl Fetcher {
    /// The references to read: as many as the job looks at, the main picture first.
    fn needed<'a>(&self, asset: &'a Asset) -> Vec<&'a MediaReference> {
        let main = asset.media.iter().position(|medium| medium.role.as_deref() == Some("main")).unwrap_or_default();
        let others = asset.media.iter().enumerate().filter(|(place, _)| *place != main).map(|(_, medium)| medium);
        asset.media.get(main).into_iter().chain(others).take(self.job.pictures()).collect()
    }

    /// Fetches the media of one asset in a task of its own.
    fn start(
        self: Arc<Self>,
        tracked: Tracked<Asset>,
        output: mpsc::Sender<Tracked<FetchedAsset>>,
        slot: Arc<OwnedSemaphorePermit>,
    ) {
        tokio::spawn(async move {
            if let Some(fetched) = self.fetch(tracked).await {
                let _ = output.send(fetched).await;
            }
            // Given back only now, so that no more media wait than there are slots.
            drop(slot);
        });
    }

    /// Reads the files of some assets one after the other. Those whose folder is not there just now are tried again.
    fn read_local(
        self: Arc<Self>,
        assets: Vec<Tracked<Asset>>,
        output: &mpsc::Sender<Tracked<FetchedAsset>>,
        slot: &Arc<OwnedSemaphorePermit>,
    ) {
        let mut ready = Vec::with_capacity(CHUNK);
        for tracked in assets.into_iter().filter(|tracked| !tracked.is_cancelled()) {
            let work = tracked.work(Stage::Fetch);
            let limit = self.job.limits.media_bytes;
            let media =
                self.needed(&tracked.value).iter().map(|medium| self.store.read_local(&medium.url, limit)).collect();
            match media {
                Err(error) if MediaError::blame(&error) == Blame::World => {
                    work.excuse();
                    self.clone().start(tracked, output.clone(), slot.clone());
                }
                media => {
                    drop(work);
                    ready.extend(tracked.and_then(|asset| match media {
                        Ok(media) => Ok(FetchedAsset { asset, media }),
                        Err(error) => Err(rejection(&asset.id, &error, 1)),
                    }));
                }
            }
        }
        // Together: who waits for each place alone is woken for each, and every time a core changes its thread.
        let Ok(places) = Handle::current().block_on(output.reserve_many(ready.len())) else { return };
        for (place, fetched) in places.zip(ready) {
            place.send(fetched);
        }
    }

    async fn fetch(&self, tracked: Tracked<Asset>) -> Option<Tracked<FetchedAsset>> {
        let mut media = Vec::new();
        for reference in self.needed(&tracked.value) {
            match self.fetch_one(&tracked, &reference.url).await? {
                Ok(medium) => media.push(medium),
                Err((error, attempts)) => {
                    let rejection = rejection(&tracked.value.id, &error, attempts);
                    return tracked.and_then(|_| Err(rejection));
                }
            }
        }
        Some(tracked.map(|asset| FetchedAsset { asset, media }))
    }

    /// One medium, tried until it is read or its asset is to blame; None when nobody waits for it any more.
    async fn fetch_one(&self, tracked: &Tracked<Asset>, url: &str) -> Option<Result<Media, (MediaError, u32)>> {
        let limit = self.job.limits.media_bytes;
        let mut backoff = retry::Backoff::new(self.retry);
        loop {
            if tracked.is_cancelled() {
                return None;
            }
            let work = tracked.work(Stage::Fetch);
            let error = match self.store.fetch(url, limit).await {
                Ok(medium) => return Some(Ok(medium)),
                Err(error) => error,
            };
            if error.blame() != Blame::World {
                return Some(Err((error, backoff.attempts() + 1)));
            }
            let at_least = match &error {
                MediaError::Unavailable { retry_after, .. } => {
                    work.excuse();
                    *retry_after
                }
                _ => None,
            };
            tracing::debug!(%error, attempts = backoff.attempts() + 1, "medium cannot be read for now");
            backoff.wait(at_least).await;
        }
    }
}

fn rejection(asset_id: &str, error: &MediaError, attempts: u32) -> Rejection {
    Rejection {
        asset_id: Some(asset_id.to_owned()),
        stage: Stage::Fetch,
        reason: error.reason(),
        detail: error.to_string(),
        blame: error.blame(),
        attempts,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    use super::super::tracked::tests::tracked;
    use super::*;
    use crate::domain::{Content, Product};

    const READERS: usize = 4;

    /// A disk that hands out nothing until so many read from it at once.
    #[derive(Default)]
    struct SlowDisk {
        reading: Mutex<usize>,
        came: Condvar,
    }

    #[async_trait::async_trait]
    impl MediaStore for SlowDisk {
        async fn fetch(&self, _: &str, _: u64) -> Result<Media, MediaError> {
            unreachable!("all files are local")
        }

        fn is_local(&self, _: &str) -> bool {
            true
        }

        fn read_local(&self, _: &str, _: u64) -> Result<Media, MediaError> {
            let mut reading = self.reading.lock().unwrap();
            *reading += 1;
            self.came.notify_all();
            let patience = Duration::from_secs(60);
            let (_guard, waited) =
                self.came.wait_timeout_while(reading, patience, |reading| *reading < READERS).unwrap();
            assert!(!waited.timed_out(), "nobody else reads");
            Ok(Media { bytes: Default::default(), sha256: String::new() })
        }
    }

    #[tokio::test]
    async fn a_slow_disk_is_read_by_as_many_as_there_are_slots() {
        let embedding = "[[embeddings]]\ncolumn = \"e\"\nmodel = \"m\"\ninput = \"image\"\n";
        let text = format!("name = \"j\"\nkind = \"product\"\ntopics = [\"t\"]\n{embedding}");
        let job = Arc::new(JobSpec::parse(Path::new("j.toml"), &text).unwrap());
        let assets = READERS * CHUNK;
        let (outcomes, _settled) = mpsc::channel(assets);
        let (sender, input) = mpsc::channel(assets);
        for _ in 0..assets {
            let medium = MediaReference { url: "file:///a.jpg".to_owned(), role: None };
            let content = Content::Product(Product::default());
            let asset = Asset { id: "a".to_owned(), event_time: 0, content, media: vec![medium] };
            let record = tracked(outcomes.clone(), &Arc::new(Semaphore::new(3)));
            assert!(sender.send(record.map(|_| asset)).await.is_ok());
        }
        drop(sender);
        let (output, mut fetched) = mpsc::channel(CHUNK);
        let store = Arc::new(SlowDisk::default());
        let fetcher = Fetcher { job, store, retry: retry::Options::default(), concurrency: READERS };
        let stage = tokio::spawn(run(input, output, Arc::new(fetcher)));
        for _ in 0..assets {
            assert!(fetched.recv().await.is_some());
        }
        assert!(fetched.recv().await.is_none());
        stage.await.unwrap();
    }
}
