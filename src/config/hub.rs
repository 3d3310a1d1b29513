//! What the environment says of the hub that models are fetched from, by the names that Hugging Face's own tools know.

use std::path::PathBuf;

use crate::model::HubOptions;

const ENDPOINT: &str = "https://huggingface.co";

/// From `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`.
pub fn hub_options() -> HubOptions {
    options(|name| std::env::var_os(name)?.into_string().ok())
}

fn options(variable: impl Fn(&str) -> Option<String>) -> HubOptions {
    let given = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let folder = |name: &str| given(name).map(PathBuf::from);
    let caches = || folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache"))).unwrap_or_default();
    let home = || folder("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
    let offline = given("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
    HubOptions {
        endpoint: given("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned(),
        cache: folder("HF_HUB_CACHE").unwrap_or_else(|| home().join("hub")),
        token: given("HF_TOKEN"),
        offline: ["1", "on", "yes", "true"].contains(&offline.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> HubOptions {
        options(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        for (pairs, cache) in [
            (vec![("HOME", "/home/a")], "/home/a/.cache/huggingface/hub"),
            (vec![("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (vec![("HOME", "/home/a"), ("HF_HOME", "/models")], "/models/hub"),
            (vec![("HF_HOME", "/models"), ("HF_HUB_CACHE", "/cache")], "/cache"),
        ] {
            assert_eq!(from(&pairs).cache, PathBuf::from(cache));
        }
    }

    #[test]
    fn endpoint_token_and_being_offline_are_taken_over() {
        let usual = from(&[("HF_TOKEN", "  ")]);
        assert_eq!((usual.endpoint.as_str(), usual.token, usual.offline), (ENDPOINT, None, false));
        let own = from(&[("HF_ENDPOINT", "https://hub.example/"), ("HF_TOKEN", "hf_a\n"), ("HF_HUB_OFFLINE", "ON")]);
        assert_eq!(
            (own.endpoint.as_str(), own.token.as_deref(), own.offline),
            ("https://hub.example", Some("hf_a"), true)
        );
    }
}
