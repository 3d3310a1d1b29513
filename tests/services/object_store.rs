//! Real object stores with conditional writes: S3Proxy, which all tests share, and others where their toolchain is there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::script;

const SCRIPT: &str = "objectstore.sh";

/// A running store with the bucket `assay`.
pub struct ObjectStore {
    folder: PathBuf,
    settings: BTreeMap<String, String>,
}

impl ObjectStore {
    /// The S3 server that all tests share.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<ObjectStore>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[])).as_ref()
    }

    /// Another server; `--versitygw` or `--azure`.
    pub fn start(flags: &[&str]) -> Option<Self> {
        let folder = script::folder("objectstore");
        let settings = script::up(SCRIPT, &folder, flags)?;
        Some(Self { folder, settings })
    }

    pub fn setting(&self, name: &str) -> &str {
        &self.settings[name]
    }

    /// Where it listens; none for a store that is not S3.
    pub fn endpoint(&self) -> Option<&str> {
        self.settings.get("AWS_ENDPOINT_URL").map(String::as_str)
    }

    /// The URL of a folder in the bucket.
    pub fn url(&self, folder: &str) -> String {
        format!("{}/{folder}", self.setting("OBJECTSTORE_URL"))
    }

    /// The lines of a configuration that name this store, reached at another address.
    pub fn lines(&self, endpoint: &str) -> String {
        let line = |(key, value): (String, String)| {
            let value = if key == "aws_endpoint_url" { endpoint.to_owned() } else { value };
            format!("{key} = \"{value}\"\n")
        };
        self.options().into_iter().map(line).collect()
    }

    /// What object_store needs, by its own keys.
    pub fn options(&self) -> BTreeMap<String, String> {
        let own = |(key, _): &(&String, &String)| !key.starts_with("OBJECTSTORE_");
        self.settings.iter().filter(own).map(|(key, value)| (key.to_lowercase(), value.clone())).collect()
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        script::run(SCRIPT, "down", &self.folder, &[]);
        // The watcher has nothing to do any more.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
