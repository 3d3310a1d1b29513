//! The settings of traces. This file opens no connection.

use serde::{Deserialize, Serialize};

/// Section `[traces]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The collector, such as `http://localhost:4318`; empty means no traces.
    pub endpoint: String,
    /// The share of assets that are traced, from 0 to 1; a message that says itself whether it is sampled wins.
    pub ratio: f64,
    /// The name of the service in the traces.
    pub service: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { endpoint: String::new(), ratio: 1.0, service: "assay".to_owned() }
    }
}

impl Options {
    /// Key and complaint of each value that cannot be used.
    pub fn validate(&self) -> Vec<(&'static str, &'static str)> {
        let mut wrong = Vec::new();
        let is_url = reqwest::Url::parse(&self.endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !self.endpoint.is_empty() && !is_url {
            wrong.push(("endpoint", "must be an http:// or https:// URL, or empty"));
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            wrong.push(("ratio", "must be between 0 and 1"));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_off_and_wrong_values_are_named() {
        assert_eq!(Options::default().validate(), []);
        assert!(Options::default().endpoint.is_empty());
        let wrong = Options { endpoint: "collector:4318".to_owned(), ratio: 2.0, ..Options::default() };
        let keys: Vec<_> = wrong.validate().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["endpoint", "ratio"]);
    }
}
