//! What the cache has of one revision of a repository.
//!
//! The layout is that of Hugging Face's tools: `refs/REVISION` names a commit and `snapshots/COMMIT` has its files. What
//! was fetched in full is listed in a file beside them. Invariant: a snapshot is complete only if its list was written
//! after its last file.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::address::HubAddress;
use super::error::HubError;
use super::wanted;

/// The folder of the lists, in the repository's folder.
const LISTS: &str = ".assay";

/// One revision in the cache.
pub struct Snapshot<'a> {
    address: &'a HubAddress,
    /// The repository's folder in the cache.
    home: PathBuf,
    cache: CacheRepo,
}

impl<'a> Snapshot<'a> {
    /// Whether or not anything of it is there.
    pub fn new(cache: &Path, address: &'a HubAddress) -> Self {
        let HubAddress { repository, revision, .. } = address;
        let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.clone());
        Self { address, home: cache.join(repo.folder_name()), cache: Cache::new(cache.to_owned()).repo(repo) }
    }

    /// The folder or file to load, if all of it was fetched before.
    pub fn complete(&self) -> Option<PathBuf> {
        let commit = self.commit()?;
        let folder = self.folder(&commit);
        let list = std::fs::read_to_string(self.list(&commit)).ok()?;
        list.lines().all(|name| folder.join(name).is_file()).then(|| self.model(folder))
    }

    /// The folder or file to load, if some tool has put there all that a model needs; else what is missing.
    pub fn usable(&self) -> Result<PathBuf, Vec<String>> {
        let nowhere = || self.home.join("snapshots");
        let folder = self.commit().map_or_else(nowhere, |commit| self.folder(&commit));
        let missing = match &self.address.file {
            Some(file) if folder.join(file).is_file() => Vec::new(),
            Some(file) => vec![file.clone()],
            None => wanted::missing(&folder),
        };
        if missing.is_empty() { Ok(self.model(folder)) } else { Err(missing) }
    }

    /// Notes that all `files` of `commit` are there, and that the revision is this commit.
    pub fn finish(&self, commit: &str, files: &[String]) -> Result<PathBuf, HubError> {
        let list = self.list(commit);
        let failed = |source| HubError::Cache { path: list.clone(), source };
        std::fs::create_dir_all(self.home.join(LISTS)).map_err(failed)?;
        std::fs::write(&list, files.join("\n")).map_err(failed)?;
        self.cache.create_ref(commit).map_err(|source| HubError::Cache { path: self.home.join("refs"), source })?;
        Ok(self.model(self.folder(commit)))
    }

    /// Waits until no other process fetches this repository, and keeps others waiting until the file is dropped.
    pub fn lock(&self) -> Result<std::fs::File, HubError> {
        let path = self.home.join(LISTS).join("lock");
        let locked = std::fs::create_dir_all(self.home.join(LISTS))
            .and_then(|()| std::fs::File::create(&path))
            .and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| HubError::Cache { path, source })
    }

    /// Where the files of a commit are.
    pub fn folder(&self, commit: &str) -> PathBuf {
        self.cache.pointer_path(commit)
    }

    fn commit(&self) -> Option<String> {
        let revision = &self.address.revision;
        if self.folder(revision).is_dir() {
            return Some(revision.clone());
        }
        let commit = std::fs::read_to_string(self.home.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned())
    }

    fn model(&self, folder: PathBuf) -> PathBuf {
        match &self.address.file {
            Some(file) => folder.join(file),
            None => folder,
        }
    }

    fn list(&self, commit: &str) -> PathBuf {
        let name = match &self.address.file {
            Some(file) => format!("{commit}.{}", file.replace('/', "--")),
            None => commit.to_owned(),
        };
        self.home.join(LISTS).join(name)
    }
}
