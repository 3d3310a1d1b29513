//! The configuration of the media room, and everything that can be wrong with it.
//!
//! It reads no environment and connects to nothing. Values under `stores` may be secrets and are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use serde::{Deserialize, Serialize};

use super::allow::{AllowList, BucketScheme, EntryError, parse_bucket};
use crate::retry;

/// The section `[media]`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What may be read: `s3://bucket/prefix`, `gs://bucket`, `az://container`, `https://host/prefix`,
    /// `file:///folder`. An entry covers everything below it; an empty list permits nothing.
    pub allow: Vec<String>,
    /// Media read at once.
    pub concurrency: usize,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Until an answer begins, connecting included.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// Between two pieces of a body.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// The waits between attempts; who calls the store applies them.
    pub retry: retry::Options,
    /// By bucket, as in `"s3://bucket"`: object_store's own option names. They win over the environment.
    pub stores: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            concurrency: 64,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(15),
            retry: retry::Options::default(),
            stores: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stores: BTreeMap<_, Vec<_>> =
            self.stores.iter().map(|(bucket, options)| (bucket, options.keys().collect())).collect();
        f.debug_struct("Options")
            .field("allow", &self.allow)
            .field("concurrency", &self.concurrency)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("retry", &self.retry)
            .field("stores", &stores)
            .finish()
    }
}

/// What is wrong with [`Options`]. Messages start with the key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("media.stores: {bucket:?} {detail}")]
    Bucket { bucket: String, detail: String },
    #[error("media.{key}: must be more than zero")]
    Zero { key: &'static str },
    #[error("media: the HTTPS client cannot be built: {detail}")]
    Client { detail: String },
}

impl Options {
    /// Everything that is wrong, found without network and environment. Empty: all is well.
    pub fn validate(&self) -> Vec<OptionsError> {
        let mut errors = self.zeros();
        let allow = match AllowList::parse(&self.allow) {
            Ok(allow) => Some(allow),
            Err(entries) => {
                errors.extend(entries.into_iter().map(OptionsError::Entry));
                None
            }
        };
        for (bucket, options) in &self.stores {
            let wrong = |detail| OptionsError::Bucket { bucket: bucket.clone(), detail };
            match parse_bucket(bucket) {
                Ok((scheme, name)) => {
                    let listed = allow.as_ref().is_none_or(|allow| allow.buckets().contains(&(scheme, &name)));
                    if !listed {
                        errors.push(wrong("is listed by no entry of media.allow".to_owned()));
                    }
                    let unknown = options.keys().filter(|key| !is_known(scheme, key));
                    errors.extend(unknown.map(|key| wrong(format!("has the unknown option {key:?}"))));
                }
                Err(detail) => errors.push(wrong(detail)),
            }
        }
        errors
    }

    /// The options of one bucket, by normalised name.
    pub fn store(&self, scheme: BucketScheme, bucket: &str) -> BTreeMap<String, String> {
        let is_meant = |key: &str| parse_bucket(key).is_ok_and(|(s, name)| s == scheme && name == bucket);
        self.stores.iter().filter(|(key, _)| is_meant(key)).flat_map(|(_, options)| options.clone()).collect()
    }

    fn zeros(&self) -> Vec<OptionsError> {
        [
            ("concurrency", self.concurrency == 0),
            ("connect_timeout", self.connect_timeout.is_zero()),
            ("response_timeout", self.response_timeout.is_zero()),
            ("stall_timeout", self.stall_timeout.is_zero()),
        ]
        .into_iter()
        .filter(|(_, is_zero)| *is_zero)
        .map(|(key, _)| OptionsError::Zero { key })
        .collect()
    }
}

fn is_known(scheme: BucketScheme, key: &str) -> bool {
    match scheme {
        BucketScheme::S3 => key.parse::<AmazonS3ConfigKey>().is_ok(),
        BucketScheme::CloudStorage => key.parse::<GoogleConfigKey>().is_ok(),
        BucketScheme::Azure => key.parse::<AzureConfigKey>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_reads_human_units_and_refuses_unknown_keys() {
        let text = r#"
            allow = ["s3://shop/pictures"]
            stall_timeout = "250ms"
            [stores."s3://shop"]
            aws_region = "eu-west-1"
        "#;
        let options: Options = toml::from_str(text).unwrap();
        assert_eq!(options.stall_timeout, Duration::from_millis(250));
        assert_eq!(options.concurrency, 64);
        assert!(options.validate().is_empty(), "{:?}", options.validate());
        assert!(toml::from_str::<Options>("allowed = []").is_err());
    }

    #[test]
    fn debug_shows_no_store_values() {
        let mut options = Options::default();
        let secret = BTreeMap::from([("aws_secret_access_key".to_owned(), "hush".to_owned())]);
        options.stores.insert("s3://shop".to_owned(), secret);
        let text = format!("{options:?}");
        assert!(text.contains("aws_secret_access_key") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn validation_names_every_mistake() {
        let text = r#"
            allow = ["s3://shop", "nonsense"]
            concurrency = 0
            [stores."s3://shop"]
            aws_regoin = "hush"
            [stores."https://cdn.example.com"]
            [stores."s3://shop/prefix"]
        "#;
        let options: Options = toml::from_str(text).unwrap();
        let errors: Vec<_> = options.validate().iter().map(ToString::to_string).collect();
        let text = errors.join("\n");
        for expected in ["media.concurrency", "\"nonsense\"", "\"aws_regoin\"", "\"https://cdn", "\"s3://shop/prefix\""]
        {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert_eq!(errors.len(), 5, "{text}");
        assert!(!text.contains("hush"));
    }

    #[test]
    fn options_for_an_unlisted_bucket_are_a_mistake() {
        let options: Options = toml::from_str("allow = [\"s3://shop\"]\n[stores.\"s3://shpo\"]").unwrap();
        assert!(options.validate()[0].to_string().contains("s3://shpo"));
    }
}
