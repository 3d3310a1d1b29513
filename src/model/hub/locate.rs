//! From where a model is said to be to where it is on this machine.
//!
//! What is in the cache is used as it is, without the network; the revision then stays the commit that it was when it was
//! fetched. Blocking. Invariant: a folder that is handed out after fetching has every wanted file of one commit.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::address::HubAddress;
use super::download::{Downloads, is_unreachable, refusal};
use super::error::HubError;
use super::options::HubOptions;
use super::snapshot::Snapshot;
use super::wanted::{self, INDEX, MODULES, WantedWeights};

/// The path to load: `location` itself, or for `hf://` the folder or file in the cache, fetched if it is not there yet.
pub fn locate(location: &Path, options: &HubOptions) -> Result<PathBuf, HubError> {
    let Some(address) = HubAddress::read(location)? else { return Ok(location.to_owned()) };
    let snapshot = Snapshot::new(&options.cache, &address);
    if let Some(path) = snapshot.complete() {
        return Ok(path);
    }
    let from_cache = |reason: String| {
        let lacking = |missing| HubError::Missing {
            address: Box::new(address.clone()),
            reason,
            cache: options.cache.clone(),
            missing,
        };
        snapshot.usable().map_err(lacking)
    };
    if options.offline {
        return from_cache("HF_HUB_OFFLINE forbids the network".to_owned());
    }
    let _alone = snapshot.lock()?;
    // Whoever held the lock may have fetched it.
    if let Some(path) = snapshot.complete() {
        return Ok(path);
    }
    let api = api(options).map_err(|error| refusal(&address, "the hub", &error))?;
    let HubAddress { repository, revision, .. } = &address;
    let repo = api.repo(Repo::with_revision(repository.clone(), RepoType::Model, revision.clone()));
    let published = match repo.info() {
        Ok(published) => published,
        Err(error) if is_unreachable(&error) => {
            let path = from_cache(format!("{} cannot be reached ({error})", options.endpoint))?;
            tracing::warn!(%address, %error, "the hub cannot be reached; the cache is used");
            return Ok(path);
        }
        Err(error) => return Err(refusal(&address, "the repository or this revision of it", &error)),
    };
    let commit = checked(published.sha, &address)?;
    let files: Vec<String> = published.siblings.into_iter().map(|file| file.rfilename).collect();
    let downloads = Downloads::new(&address, &api, &options.cache, &commit);
    let fetched = fetch(&address, &downloads, &files)?;
    snapshot.finish(&commit, &fetched)
}

fn api(options: &HubOptions) -> Result<Api, ApiError> {
    // Which has the token that Hugging Face's tools keep beside the cache.
    let builder = ApiBuilder::from_cache(Cache::new(options.cache.clone())).with_endpoint(options.endpoint.clone());
    match &options.token {
        Some(token) => builder.with_token(Some(token.clone())).build(),
        None => builder.build(),
    }
}

/// A commit becomes the name of a folder.
fn checked(commit: String, address: &HubAddress) -> Result<String, HubError> {
    match !commit.is_empty() && commit.chars().all(|letter| letter.is_ascii_hexdigit()) {
        true => Ok(commit),
        false => {
            let detail = format!("the hub calls the commit {commit:?}, which is no hexadecimal number");
            Err(HubError::Fetch { address: Box::new(address.clone()), what: "the repository".to_owned(), detail })
        }
    }
}

/// Fetches what is wanted of the `published` files: settings first, because they tell what else is. Their names, all.
fn fetch(address: &HubAddress, downloads: &Downloads<'_>, published: &[String]) -> Result<Vec<String>, HubError> {
    let mut fetched = Vec::new();
    let mut get = |names: Vec<String>| -> Result<(), HubError> {
        let count = names.len();
        for (index, name) in names.iter().enumerate() {
            downloads.fetch(name, &format!("{}/{count}", index + 1))?;
        }
        fetched.extend(names);
        Ok(())
    };
    if let Some(file) = &address.file {
        get([wanted::settings(published), vec![file.clone()]].concat())?;
        return Ok(fetched);
    }
    get(wanted::settings(published))?;
    let has = |name: &str| published.iter().any(|published| published == name);
    if has(MODULES) {
        let modules = content(address, downloads, MODULES)?;
        get(wanted::module_settings(&modules, published).map_err(|error| malformed(address, MODULES, &error))?)?;
    }
    if has(INDEX) {
        let index = content(address, downloads, INDEX)?;
        let shards = wanted::shards(&index).map_err(|error| malformed(address, INDEX, &error))?;
        if let Some(shard) = shards.iter().find(|shard| !has(shard)) {
            let detail = format!("lists {shard}, which is not in the repository");
            return Err(malformed(address, INDEX, &detail));
        }
        get(shards)?;
        return Ok(fetched);
    }
    match wanted::weights(published) {
        WantedWeights::Files(files) => get(files)?,
        WantedWeights::None => return Err(HubError::NoWeights { address: Box::new(address.clone()) }),
        WantedWeights::Several(files) => return Err(HubError::ManyFiles { address: Box::new(address.clone()), files }),
    }
    Ok(fetched)
}

fn content(address: &HubAddress, downloads: &Downloads<'_>, file: &str) -> Result<Vec<u8>, HubError> {
    let path = downloads.fetch(file, "1/1")?;
    std::fs::read(&path).map_err(|error| malformed(address, file, &error))
}

fn malformed(address: &HubAddress, file: &str, detail: &dyn std::fmt::Display) -> HubError {
    HubError::Malformed { address: Box::new(address.clone()), file: file.to_owned(), detail: detail.to_string() }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::server::{HubServer, Trouble};
    use super::*;
    use crate::model::fixture;
    use crate::model::registry::load;
    use crate::model::weights::Precision;

    const ADDRESS: &str = "hf://org/name";

    fn options(server: &HubServer, cache: &Path) -> HubOptions {
        HubOptions { endpoint: server.endpoint(), cache: cache.join("hub"), token: None, offline: false }
    }

    fn fetch_from(server: &HubServer, cache: &Path) -> Result<PathBuf, HubError> {
        locate(Path::new(ADDRESS), &options(server, cache))
    }

    #[test]
    fn models_of_every_layout_are_fetched_once_and_load_like_the_original() {
        for (name, trouble) in
            [("bert-minilm", Trouble::None), ("llama3-untied", Trouble::Elsewhere), ("qwen3-vl", Trouble::None)]
        {
            let cache = tempfile::tempdir().unwrap();
            let original = load(&fixture::model(name), Precision::F32, &Device::Cpu).unwrap();
            let server = HubServer::start(&fixture::model(name), trouble);
            let options = options(&server, cache.path());
            let folder = locate(Path::new(ADDRESS), &options).unwrap();
            let fetched = load(&folder, Precision::F32, &Device::Cpu).unwrap();
            assert_eq!(fetched.fingerprint, original.fingerprint, "{name}");
            drop(server);
            assert_eq!(
                locate(Path::new(ADDRESS), &options).unwrap(),
                folder,
                "{name}: the second time needs no server"
            );
            let offline = HubOptions { offline: true, ..options };
            assert_eq!(locate(Path::new(ADDRESS), &offline).unwrap(), folder);
        }
    }

    #[test]
    fn what_is_no_part_of_the_model_stays_where_it_is_and_the_token_goes_along() {
        let (cache, published) = (tempfile::tempdir().unwrap(), fixture::copy_of("clip"));
        for extra in ["README.md", "pytorch_model.bin", "tf_model.h5.index.json"] {
            std::fs::write(published.path().join(extra), "{}").unwrap();
        }
        let server = HubServer::start(published.path(), Trouble::NeedsToken("hf_abc".to_owned()));
        let options = options(&server, cache.path());
        let refusal = locate(Path::new(ADDRESS), &options).unwrap_err().to_string();
        assert!(refusal.contains("hf://org/name: the repository") && refusal.contains("HTTP 401"), "{refusal}");
        let options = HubOptions { token: Some("hf_abc".to_owned()), ..options };
        let folder = locate(Path::new("hf://org/name@v2"), &options).unwrap();
        let asked = server.asked();
        assert!(asked.iter().any(|path| path == "/api/models/org/name/revision/v2"), "{asked:?}");
        for extra in ["README.md", "pytorch_model.bin", "tf_model.h5.index.json"] {
            assert!(!asked.iter().any(|path| path.ends_with(extra)), "{extra} was fetched");
        }
        assert!(folder.join("model.safetensors").is_file());
    }

    #[test]
    fn an_interrupted_download_goes_on_where_it_was() {
        let cache = tempfile::tempdir().unwrap();
        let server = HubServer::start(&fixture::model("clip"), Trouble::CutAt(50_000));
        let folder = fetch_from(&server, cache.path()).unwrap();
        let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(bytes(&folder) == bytes(&fixture::model("clip")));
        assert!(server.ranges().iter().any(|range| range == "bytes=50000-"), "{:?}", server.ranges());
    }

    #[test]
    fn what_another_process_left_half_done_is_gone_on_with_or_begun_anew() {
        let whole = std::fs::read(fixture::model("clip").join("model.safetensors")).unwrap();
        for (left, trouble) in [
            (&whole[..1000], Trouble::None),
            // Whole, but never renamed.
            (&whole[..], Trouble::None),
            // The server sends everything whatever was asked for.
            (&whole[..1000], Trouble::IgnoresRanges),
        ] {
            let cache = tempfile::tempdir().unwrap();
            let server = HubServer::start(&fixture::model("clip"), trouble);
            let blobs = cache.path().join("hub/models--org--name/blobs");
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join(format!("{}.part", server.etag("model.safetensors"))), left).unwrap();
            let folder = fetch_from(&server, cache.path()).unwrap();
            assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == whole);
        }
    }

    #[test]
    fn a_failure_names_repository_and_file_and_the_next_try_goes_on() {
        let cache = tempfile::tempdir().unwrap();
        let gone = HubServer::start(&fixture::model("clip"), Trouble::Lacks("model.safetensors".to_owned()));
        let refusal = fetch_from(&gone, cache.path()).unwrap_err().to_string();
        assert!(refusal.contains("hf://org/name: model.safetensors does not exist (HTTP 404)"), "{refusal}");
        let server = HubServer::start(&fixture::model("clip"), Trouble::None);
        let folder = fetch_from(&server, cache.path()).unwrap();
        assert!(folder.join("model.safetensors").is_file());
        assert!(!server.asked().iter().any(|path| path.ends_with("config.json")), "it was there already");
        let refusal = locate(Path::new("hf://org/other"), &options(&server, cache.path())).unwrap_err().to_string();
        assert!(refusal.contains("hf://org/other") && refusal.contains("HTTP 404"), "{refusal}");
    }

    #[test]
    fn without_the_hub_the_cache_serves_or_says_what_it_lacks() {
        let cache = tempfile::tempdir().unwrap();
        // What other tools leave: no list, a revision, a snapshot.
        let home = cache.path().join("hub/models--org--name");
        std::fs::create_dir_all(home.join("refs")).unwrap();
        std::fs::write(home.join("refs/main"), "00ff").unwrap();
        std::fs::create_dir_all(home.join("snapshots/00ff")).unwrap();
        std::fs::write(home.join("snapshots/00ff/config.json"), "{}").unwrap();
        // Nobody listens where a server has been.
        let endpoint = HubServer::start(&fixture::model("clip"), Trouble::None).endpoint();
        let options = HubOptions { endpoint, cache: cache.path().join("hub"), token: None, offline: false };
        let offline = HubOptions { offline: true, ..options.clone() };
        for (options, reason) in [(&options, "cannot be reached"), (&offline, "HF_HUB_OFFLINE")] {
            let refusal = locate(Path::new(ADDRESS), options).unwrap_err().to_string();
            for part in [ADDRESS, reason, "lacks model.safetensors", "hub"] {
                assert!(refusal.contains(part), "{refusal}");
            }
        }
        std::fs::write(home.join("snapshots/00ff/model.safetensors"), "").unwrap();
        for options in [&options, &offline] {
            assert_eq!(locate(Path::new(ADDRESS), options).unwrap(), home.join("snapshots/00ff"));
        }
    }

    #[test]
    fn weights_that_cannot_be_chosen_or_read_are_said() {
        let cache = tempfile::tempdir().unwrap();
        let published = tempfile::tempdir().unwrap();
        std::fs::write(published.path().join("pytorch_model.bin"), "").unwrap();
        let refusal = |published: &Path| {
            let server = HubServer::start(published, Trouble::None);
            fetch_from(&server, cache.path()).unwrap_err().to_string()
        };
        assert!(refusal(published.path()).contains("hf://org/name has no weights"));
        for file in ["a-Q4.gguf", "a-Q8.gguf"] {
            std::fs::write(published.path().join(file), "GGUF").unwrap();
        }
        let several = refusal(published.path());
        assert!(several.contains("a-Q4.gguf, a-Q8.gguf") && several.contains("hf://org/name/a-Q4.gguf"), "{several}");
        let server = HubServer::start(published.path(), Trouble::None);
        let file = locate(Path::new("hf://org/name/a-Q8.gguf"), &options(&server, cache.path())).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"GGUF");
        assert!(!server.asked().iter().any(|path| path.ends_with("a-Q4.gguf")));
    }

    #[test]
    fn a_path_of_this_machine_is_itself() {
        let options = HubOptions { endpoint: String::new(), cache: PathBuf::from("/none"), token: None, offline: true };
        assert_eq!(locate(Path::new("models/clip"), &options).unwrap(), Path::new("models/clip"));
    }
}
