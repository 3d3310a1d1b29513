//! How to reach the hub. Plain data: whoever reads the environment fills it in.

use std::fmt;
use std::path::PathBuf;

/// Where models are fetched from and where they are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Without a slash at its end, for example `https://huggingface.co`.
    pub endpoint: String,
    /// The cache's folder, in the layout of Hugging Face's own tools, so that they share it.
    pub cache: PathBuf,
    /// Opens private and gated repositories. Never shown.
    pub token: Option<String>,
    /// Use the cache and nothing else.
    pub offline: bool,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, token, offline } = self;
        let token = token.as_ref().map(|_| "hidden");
        let mut shown = formatter.debug_struct("HubOptions");
        shown.field("endpoint", endpoint).field("cache", cache).field("token", &token).field("offline", offline);
        shown.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let options = HubOptions {
            endpoint: "https://hub.example".to_owned(),
            cache: PathBuf::from("/cache"),
            token: Some("hf_secret".to_owned()),
            offline: false,
        };
        let shown = format!("{options:?}");
        assert!(shown.contains("hub.example") && shown.contains("hidden") && !shown.contains("secret"), "{shown}");
    }
}
