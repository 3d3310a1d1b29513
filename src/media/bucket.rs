//! Reading from S3, Cloud Storage and Azure through object_store: one store per listed bucket, made at the start.
//!
//! object_store signs and finds credentials; its retries are off, because who calls decides about the next attempt.
//! Where a bucket lies (endpoint, proxy, certificates) is the operator's word, so the address guard of web hosts does
//! not apply. Answers that are no success never reach object_store: it would read their whole body and drop
//! `Retry-After`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, ClientOptions, GetOptions, HeaderValue, ObjectStore, RetryConfig};

use super::allow::{AllowList, BucketScheme};
use super::api::{Media, MediaError};
use super::body::{Patience, collect};
use super::failure::{Refusal, find, in_words, retry_after};
use super::options::{Options, OptionsError};

/// How much of an error's body is read: its code stands at the beginning.
const ERROR_BODY: usize = 2048;

/// The stores of all listed buckets.
#[derive(Debug)]
pub struct Buckets {
    stores: HashMap<(BucketScheme, String), Arc<dyn ObjectStore>>,
    response_timeout: Duration,
    stall_timeout: Duration,
}

impl Buckets {
    /// Makes a store for each listed bucket, from the environment and then the bucket's own options.
    pub fn new(options: &Options, allow: &AllowList) -> Result<Self, OptionsError> {
        let mut stores = HashMap::new();
        for (scheme, bucket) in allow.buckets() {
            let store = build(scheme, bucket, options).map_err(|error| OptionsError::Bucket {
                bucket: format!("{scheme}://{bucket}"),
                detail: format!("cannot be used: {}", in_words(&error)),
            })?;
            stores.insert((scheme, bucket.to_owned()), store);
        }
        Ok(Self { stores, response_timeout: options.response_timeout, stall_timeout: options.stall_timeout })
    }

    /// Reads one object of a listed bucket; `url` is the reference as it was written.
    pub async fn read(
        &self,
        url: &str,
        place: (BucketScheme, String),
        key: &str,
        limit: u64,
    ) -> Result<Media, MediaError> {
        let store = self.stores.get(&place).expect("every bucket of the allow-list has a store");
        let path = Path::parse(key)
            .map_err(|error| MediaError::Malformed { url: url.to_owned(), detail: error.to_string() })?;
        let mut options = GetOptions::default();
        options.extensions.insert(OfMedia);
        let answer = tokio::time::timeout(self.response_timeout, store.get_opts(&path, options)).await;
        let object = match answer {
            Ok(Ok(object)) => object,
            Ok(Err(error)) => return Err(not_answered(url, &error)),
            Err(_) => {
                let detail = format!("no answer within {:?}", self.response_timeout);
                return Err(MediaError::Unavailable { url: url.to_owned(), detail, retry_after: None });
            }
        };
        let announced = Some(object.meta.size);
        let chunks = object.into_stream().map(|chunk| chunk.map_err(|error| in_words(&error)));
        collect(url, announced, chunks, Patience { limit, stall: self.stall_timeout }).await
    }
}

fn not_answered(url: &str, error: &object_store::Error) -> MediaError {
    match find::<Refusal>(error) {
        Some(refusal) => refusal.clone().meaning_from_bucket(url),
        None => MediaError::Unavailable { url: url.to_owned(), detail: in_words(error), retry_after: None },
    }
}

/// One store, without retries and without a deadline over the whole transfer.
fn build(scheme: BucketScheme, bucket: &str, options: &Options) -> object_store::Result<Arc<dyn ObjectStore>> {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let connect = humantime::format_duration(options.connect_timeout).to_string();
    // The timeout of object_store cuts off large objects that come slowly but well; silence is measured by `collect`.
    let transport = [(ClientConfigKey::ConnectTimeout, connect), (ClientConfigKey::Timeout, "1day".to_owned())];
    let own: BTreeMap<String, String> = options.store(scheme, bucket);
    match scheme {
        BucketScheme::S3 => {
            let mut builder = AmazonS3Builder::from_env();
            for (key, value) in transport {
                builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            for (key, value) in own {
                builder = builder.with_config(key.parse()?, value);
            }
            Ok(Arc::new(builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector).build()?))
        }
        BucketScheme::CloudStorage => {
            let mut builder = GoogleCloudStorageBuilder::from_env();
            for (key, value) in transport {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            for (key, value) in own {
                builder = builder.with_config(key.parse()?, value);
            }
            Ok(Arc::new(builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector).build()?))
        }
        BucketScheme::Azure => {
            let mut builder = MicrosoftAzureBuilder::from_env();
            for (key, value) in transport {
                builder = builder.with_config(AzureConfigKey::Client(key), value);
            }
            for (key, value) in own {
                builder = builder.with_config(key.parse()?, value);
            }
            Ok(Arc::new(builder.with_container_name(bucket).with_retry(retry).with_http_connector(Connector).build()?))
        }
    }
}

/// Marks the request for a medium, as opposed to those by which object_store gets credentials.
#[derive(Debug, Clone, Copy)]
struct OfMedia;

/// object_store's own client, with [`Watched`] around it.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched(ReqwestConnector::default().connect(options)?)))
    }
}

/// Turns answers that are no success into a [`Refusal`], and supplies the length where an answer has none.
#[derive(Debug)]
struct Watched(HttpClient);

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.extensions().get::<OfMedia>().is_none() {
            return self.0.execute(request).await;
        }
        let mut response = self.0.execute(request).await?;
        if !response.status().is_success() {
            return Err(HttpError::new(HttpErrorKind::Unknown, refusal(response).await));
        }
        // object_store refuses answers of unknown length (transcoded or chunked ones); the limit is kept all the same.
        response.headers_mut().entry("content-length").or_insert(HeaderValue::from_static("0"));
        Ok(response)
    }
}

async fn refusal(response: HttpResponse) -> Refusal {
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let wait = text("retry-after").and_then(|value| retry_after(value, SystemTime::now()));
    let location = text("location").map(str::to_owned);
    let status = response.status().as_u16();
    let mut body = Vec::new();
    let mut chunks = response.into_body().bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BODY - body.len())]);
        if body.len() >= ERROR_BODY {
            break;
        }
    }
    Refusal { status, retry_after: wait, location, body: String::from_utf8_lossy(&body).into_owned() }
}
