//! Opens the place where a Delta table lies, on a local disk or on any cloud store.
//!
//! Knows URLs, options and credentials; knows no rows and no offsets. Every log store made here commits by put-if-absent:
//! of two writers of the same version exactly one succeeds.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deltalake::logstore::{
    LogStore, LogStoreFactory, LogStoreRef, ObjectStoreFactory, ObjectStoreRef, StorageConfig, default_logstore,
    logstore_factories, logstore_for, object_store_factories,
};
use deltalake::{DeltaResult, DeltaTableError, Path};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::sink::api::SinkError;

/// The schemes that [`register_stores`] adds to Delta's own `file` and `memory`.
const CLOUD_SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "wasbs"];

/// How long the store's client itself repeats a failed request; longer outages are the caller's to sit out.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Teaches the Delta library to open `s3://`, `gs://` and `az://` tables. May be called any number of times.
pub fn register_stores() {
    for scheme in CLOUD_SCHEMES {
        let key = Url::parse(&format!("{scheme}://")).expect("a scheme alone is a valid URL");
        object_store_factories().entry(key.clone()).or_insert_with(|| Arc::new(CloudStores));
        logstore_factories().entry(key).or_insert_with(|| Arc::new(CloudStores));
    }
}

/// The log store of the table at `{root}/{job}/{table}`.
pub(super) fn open_store(
    root: &str,
    job: &str,
    table: &str,
    options: &BTreeMap<String, String>,
) -> Result<LogStoreRef, SinkError> {
    register_stores();
    let location = format!("{}/{job}/{table}", root.trim_end_matches('/'));
    let wrong = |detail: String| SinkError::Configuration { table: location.clone(), detail };
    let url = Url::parse(&location).map_err(|error| {
        wrong(format!("tables.url is no URL ({error}); write for example file:///data/tables or s3://bucket/tables"))
    })?;
    if url.scheme() == "file" && url.host_str().is_some_and(|host| !host.is_empty()) {
        return Err(wrong("tables.url names a host; a local folder has three slashes: file:///folder".to_owned()));
    }
    let options: HashMap<String, String> = options.clone().into_iter().collect();
    let config = StorageConfig::parse_options(options).map_err(|error| wrong(error.to_string()))?;
    logstore_for(&url, config).map_err(|error| match error {
        DeltaTableError::InvalidTableLocation(_) => {
            wrong(format!("the scheme {}:// is not known; use file, s3, gs or az", url.scheme()))
        }
        error => wrong(format!("the store cannot be set up: {}", reasons(&error))),
    })
}

/// Sorts an error of the Delta library by who can mend it.
pub(super) fn sink_error(table: &str, error: impl StdError + 'static) -> SinkError {
    let table = table.to_owned();
    let detail = reasons(&error);
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(current) = cause {
        use object_store::Error::{
            InvalidPath, NotImplemented, NotSupported, PermissionDenied, Unauthenticated, UnknownConfigurationKey,
        };
        if let Some(
            InvalidPath { .. }
            | NotImplemented { .. }
            | NotSupported { .. }
            | PermissionDenied { .. }
            | Unauthenticated { .. }
            | UnknownConfigurationKey { .. },
        ) = current.downcast_ref::<object_store::Error>()
        {
            return SinkError::Configuration { table, detail };
        }
        if let Some(DeltaTableError::InvalidTableLocation(_)) = current.downcast_ref::<DeltaTableError>() {
            return SinkError::Configuration { table, detail };
        }
        cause = current.source();
    }
    SinkError::Unavailable { table, detail }
}

/// The whole chain of reasons, without repeating what the outer message already says.
fn reasons(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let reason = current.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = current.source();
    }
    text
}

/// Builds cloud stores with the clients of `object_store`.
struct CloudStores;

impl ObjectStoreFactory for CloudStores {
    fn parse_url_opts(&self, url: &Url, config: &StorageConfig) -> DeltaResult<(ObjectStoreRef, Path)> {
        let (scheme, path) =
            ObjectStoreScheme::parse(url).map_err(|_| DeltaTableError::InvalidTableLocation(url.to_string()))?;
        let options: Vec<(&str, &str)> = config.raw().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let retry = RetryConfig { retry_timeout: CLIENT_PATIENCE, ..RetryConfig::default() };
        let store: ObjectStoreRef = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let mut builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(retry);
                for (key, value) in options {
                    builder = builder.with_config(parse_key::<AmazonS3ConfigKey>(key)?, value);
                }
                Arc::new(builder.build()?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_retry(retry);
                for (key, value) in options {
                    builder = builder.with_config(parse_key::<GoogleConfigKey>(key)?, value);
                }
                Arc::new(builder.build()?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_retry(retry);
                for (key, value) in options {
                    builder = builder.with_config(parse_key::<AzureConfigKey>(key)?, value);
                }
                Arc::new(builder.build()?)
            }
            _ => return Err(DeltaTableError::InvalidTableLocation(url.to_string())),
        };
        Ok((store, path))
    }
}

impl LogStoreFactory for CloudStores {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}

fn parse_key<K: FromStr<Err = object_store::Error>>(key: &str) -> DeltaResult<K> {
    Ok(K::from_str(&key.to_ascii_lowercase())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str, options: &[(&str, &str)]) -> Result<LogStoreRef, SinkError> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        open_store(url, "job", "results", &options)
    }

    #[tokio::test]
    async fn every_scheme_opens_without_network() {
        register_stores();
        register_stores();
        let s3 = [("aws_region", "eu-central-1"), ("AWS_ACCESS_KEY_ID", "a"), ("aws_secret_access_key", "b")];
        assert!(open("s3://bucket/tables", &s3).is_ok());
        let azure = [("azure_storage_account_name", "account"), ("azure_storage_account_key", "a2V5")];
        assert!(open("az://container/tables", &azure).is_ok());
        assert!(open("gs://bucket/tables", &[("google_skip_signature", "true")]).is_ok());
        assert!(open("memory:///tables", &[]).is_ok());
        assert!(open("file:///tmp/tables", &[]).is_ok());
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_place_is_a_configuration_error() {
        for (url, option, word) in [
            ("tables", ("a", "b"), "no URL"),
            ("file://tables", ("a", "b"), "three slashes"),
            ("ftp://host/tables", ("a", "b"), "ftp"),
            ("s3://bucket/tables", ("aws_regoin", "b"), "aws_regoin"),
        ] {
            match open(url, &[option]) {
                Err(SinkError::Configuration { detail, .. }) => assert!(detail.contains(word), "{url}: {detail}"),
                other => panic!("{url}: {other:?}"),
            }
        }
    }
}
