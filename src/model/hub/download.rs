//! One file of a repository into the cache, with a progress bar.
//!
//! What was fetched before an interruption is kept and gone on from; hf-hub does that, but does not look whether the
//! result is whole. Invariant: a file that is in a snapshot has the length that the hub told.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};

use super::address::HubAddress;
use super::error::HubError;

/// How often one file is begun or gone on with.
const ATTEMPTS: usize = 3;

/// Fetches files of one commit.
pub struct Downloads<'a> {
    address: &'a HubAddress,
    api: &'a Api,
    repo: ApiRepo,
    cache: CacheRepo,
    /// Where the commit's files go.
    folder: PathBuf,
}

impl<'a> Downloads<'a> {
    pub fn new(address: &'a HubAddress, api: &'a Api, cache: &Path, commit: &str) -> Self {
        let repo = Repo::with_revision(address.repository.clone(), RepoType::Model, commit.to_owned());
        let cache = Cache::new(cache.to_owned()).repo(repo.clone());
        Self { address, api, repo: api.repo(repo), folder: cache.pointer_path(commit), cache }
    }

    /// Fetches one file unless it is there already. `place` is shown, for example `3/7`.
    pub fn fetch(&self, file: &str, place: &str) -> Result<PathBuf, HubError> {
        let there = self.folder.join(file);
        if there.is_file() {
            return Ok(there);
        }
        let what = |error: ApiError| refusal(self.address, file, &error);
        let metadata = self.api.metadata(&self.repo.url(file)).map_err(what)?;
        tracing::info!(repository = %self.address, file, bytes = metadata.size(), "fetching");
        let mut attempt = 1;
        loop {
            let fetched = self.attempt(file, place, &metadata);
            if fetched.is_ok() || attempt == ATTEMPTS {
                return fetched;
            }
            if let Err(HubError::NotFound { .. } | HubError::Refused { .. }) = fetched {
                return fetched;
            }
            attempt += 1;
        }
    }

    fn attempt(&self, file: &str, place: &str, metadata: &Metadata) -> Result<PathBuf, HubError> {
        let expected = metadata.size() as u64;
        let blob = self.cache.blob_path(metadata.etag());
        let length = |path: &PathBuf| std::fs::metadata(path).map(|metadata| metadata.len());
        // A part that is whole cannot be gone on with: a server refuses a range that begins behind the end.
        let part = blob.with_extension("part");
        if length(&part).is_ok_and(|length| length >= expected) {
            remove(&part)?;
        }
        let bar = Bar::new(place);
        let path = self.repo.download_with_progress(file, bar).map_err(|error| refusal(self.address, file, &error))?;
        let found = length(&blob).map_err(|source| HubError::Cache { path: blob.clone(), source })?;
        if found != expected {
            remove(&path)?;
            remove(&blob)?;
            let (address, file) = (Box::new(self.address.clone()), file.to_owned());
            return Err(HubError::Damaged { address, file, expected, found, attempts: ATTEMPTS });
        }
        Ok(path)
    }
}

fn remove(path: &PathBuf) -> Result<(), HubError> {
    std::fs::remove_file(path).map_err(|source| HubError::Cache { path: path.clone(), source })
}

/// What an error of hf-hub says about `what`.
pub fn refusal(address: &HubAddress, what: &str, error: &ApiError) -> HubError {
    let (address, what) = (Box::new(address.clone()), what.to_owned());
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status @ (401 | 403)) => HubError::Refused { address, what, status },
            ureq::Error::StatusCode(status @ 404) => HubError::NotFound { address, what, status },
            ref other => HubError::Fetch { address, what, detail: other.to_string() },
        },
        other => HubError::Fetch { address, what, detail: other.to_string() },
    }
}

/// Whether the hub did not answer at all.
pub fn is_unreachable(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => !matches!(**error, ureq::Error::StatusCode(_)),
        ApiError::IoError(_) => true,
        _ => false,
    }
}

/// Drawn on standard error where that is a terminal, and gone when the file is there.
struct Bar(ProgressBar);

impl Bar {
    fn new(place: &str) -> Self {
        const TEMPLATE: &str = "{prefix} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        let bar = ProgressBar::new(0).with_prefix(place.to_owned());
        bar.set_style(ProgressStyle::with_template(TEMPLATE).expect("the template is valid"));
        Self(bar)
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        self.0.set_length(size as u64);
        self.0.set_message(filename.to_owned());
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}
