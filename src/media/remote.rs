//! The media store of the house: asks the allow-list, reads from bucket, web host or folder, and counts.
//!
//! One attempt per call. It holds at most `concurrency` reads at once; waiting for a turn is no part of the measured
//! time. Nothing passes that the allow-list has not located.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::allow::{AllowList, Location};
use super::api::{Media, MediaError, MediaStore};
use super::bucket::Buckets;
use super::folder::Folders;
use super::options::{Options, OptionsError};
use super::web::Web;
use crate::metrics::Metrics;

const FILE_SCHEME: &str = "file://";

/// Reads media from everywhere that `media.allow` lists.
pub struct RemoteMedia {
    allow: AllowList,
    buckets: Buckets,
    web: Web,
    folders: Arc<Folders>,
    turns: Semaphore,
    metrics: Arc<Metrics>,
}

impl RemoteMedia {
    /// Makes the stores of all listed buckets; connects to nothing yet. Returns the first thing that is wrong with the
    /// options ([`Options::validate`] returns all).
    pub fn new(options: &Options, metrics: Arc<Metrics>) -> Result<Self, OptionsError> {
        if let Some(error) = options.validate().into_iter().next() {
            return Err(error);
        }
        let allow = AllowList::parse(&options.allow).expect("validate has parsed the same entries");
        Ok(Self {
            buckets: Buckets::new(options, &allow)?,
            web: Web::new(options, &allow)?,
            folders: Arc::new(Folders::new(allow.folders())),
            turns: Semaphore::new(options.concurrency.min(Semaphore::MAX_PERMITS)),
            allow,
            metrics,
        })
    }

    async fn attempt(&self, url: &str, limit: u64) -> Result<Media, MediaError> {
        let location = self.allow.check(url)?;
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        let started = Instant::now();
        let result = self.read(url, location, limit).await;
        self.metrics.media_fetch_seconds.observe(started.elapsed().as_secs_f64());
        result
    }

    fn counted(&self, result: Result<Media, MediaError>) -> Result<Media, MediaError> {
        match &result {
            Ok(media) => self.metrics.media_read_bytes_total.inc_by(media.bytes.len() as u64),
            Err(error) => self.metrics.media_errors_total.with_label_values(&[error.reason()]).inc(),
        }
        result
    }

    async fn read(&self, url: &str, location: Location, limit: u64) -> Result<Media, MediaError> {
        match location {
            Location::Bucket { scheme, bucket, key } => self.buckets.read(url, (scheme, bucket), &key, limit).await,
            Location::Web(location) => self.web.read(url, location, limit).await,
            Location::File(path) => {
                let (folders, reference) = (Arc::clone(&self.folders), url.to_owned());
                let reading = tokio::task::spawn_blocking(move || folders.read(&reference, &path, limit));
                reading.await.unwrap_or_else(|error| {
                    // Only when the runtime shuts down: reading itself does not panic.
                    Err(MediaError::Unavailable { url: url.to_owned(), detail: error.to_string(), retry_after: None })
                })
            }
        }
    }
}

#[async_trait]
impl MediaStore for RemoteMedia {
    async fn fetch(&self, url: &str, limit: u64) -> Result<Media, MediaError> {
        self.counted(self.attempt(url, limit).await)
    }

    fn is_local(&self, url: &str) -> bool {
        url.starts_with(FILE_SCHEME)
    }

    fn read_local(&self, url: &str, limit: u64) -> Result<Media, MediaError> {
        let started = Instant::now();
        let result = self.allow.check(url).and_then(|location| match location {
            Location::File(path) => self.folders.read(url, &path, limit),
            _ => Err(MediaError::Malformed { url: url.to_owned(), detail: "it is no file of this machine".to_owned() }),
        });
        self.metrics.media_fetch_seconds.observe(started.elapsed().as_secs_f64());
        self.counted(result)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::http::{Response, Uri};
    use futures::{StreamExt, stream};

    use super::*;
    use crate::domain::Blame;

    /// A web host and an S3 store in one: paths below `/shop/` answer as S3 does.
    struct Server {
        address: SocketAddr,
        requests: Arc<AtomicUsize>,
    }

    async fn server() -> Server {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let answer = move |uri: Uri| {
            counter.fetch_add(1, Ordering::SeqCst);
            let path = uri.path().to_owned();
            let query = uri.query().unwrap_or_default().to_owned();
            async move {
                if path.ends_with("/silent") {
                    std::future::pending::<()>().await;
                }
                answer(&path, query)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Server { address, requests }
    }

    fn answer(path: &str, query: String) -> Response<Body> {
        let chunk = |text: &'static str| Ok::<_, std::io::Error>(Bytes::from_static(text.as_bytes()));
        let found =
            || Response::builder().header("etag", "\"1\"").header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let status = |status: u16| Response::builder().status(status);
        let last = path.rsplit('/').next().unwrap_or_default();
        let response = match last {
            "plain" => found().body(Body::from("abc")),
            "query" => found().body(Body::from(query)),
            "chunked" => found().body(Body::from_stream(stream::iter([chunk("ab"), chunk("c")]))),
            "endless" => found().body(Body::from_stream(stream::repeat_with(move || chunk("0123456789")))),
            "stalled" => found().body(Body::from_stream(stream::iter([chunk("a")]).chain(stream::pending()))),
            "broken" => {
                let error = Err(std::io::Error::other("torn"));
                found().body(Body::from_stream(stream::iter([chunk("a"), error])))
            }
            "moved" => status(302).header("location", "http://169.254.169.254/latest").body(Body::empty()),
            "busy" => status(503).header("retry-after", "7").body(Body::from("<Code>SlowDown</Code>")),
            "many" => status(429).header("retry-after", "3").body(Body::empty()),
            "expired" => status(403).body(Body::from("<Code>AccessDenied</Code>")),
            "nobucket" => status(404).body(Body::from("<Code>NoSuchBucket</Code>")),
            _ => status(404).body(Body::from("<Code>NoSuchKey</Code>")),
        };
        response.unwrap()
    }

    fn options(allow: &[String]) -> Options {
        Options {
            allow: allow.to_vec(),
            response_timeout: Duration::from_millis(300),
            stall_timeout: Duration::from_millis(100),
            ..Options::default()
        }
    }

    async fn web() -> (Server, RemoteMedia, String) {
        let server = server().await;
        let base = format!("http://{}", server.address);
        let media = RemoteMedia::new(&options(std::slice::from_ref(&base)), Arc::new(Metrics::new())).unwrap();
        (server, media, base)
    }

    async fn bucket() -> (Server, RemoteMedia) {
        let server = server().await;
        let mut options = options(&["s3://shop".to_owned()]);
        let store = [
            ("aws_endpoint", format!("http://{}", server.address)),
            ("aws_allow_http", "true".to_owned()),
            ("aws_access_key_id", "key".to_owned()),
            ("aws_secret_access_key", "word".to_owned()),
            ("aws_region", "us-east-1".to_owned()),
        ];
        let store = store.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        options.stores.insert("s3://shop".to_owned(), store);
        let media = RemoteMedia::new(&options, Arc::new(Metrics::new())).unwrap();
        (server, media)
    }

    #[tokio::test]
    async fn a_web_medium_is_read_with_its_query_and_hash() {
        let (_server, media, base) = web().await;
        let plain = media.fetch(&format!("{base}/plain"), 3).await.unwrap();
        assert_eq!(&plain.bytes[..], b"abc");
        assert_eq!(plain.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let query = media.fetch(&format!("{base}/query?a=b%2Fc&d"), 100).await.unwrap();
        assert_eq!(&query.bytes[..], b"a=b%2Fc&d");
        assert_eq!(media.metrics.media_read_bytes_total.get(), 3 + 9);
    }

    #[tokio::test]
    async fn a_listed_localhost_is_reached_by_name() {
        let server = server().await;
        let base = format!("http://localhost:{}", server.address.port());
        let media = RemoteMedia::new(&options(std::slice::from_ref(&base)), Arc::new(Metrics::new())).unwrap();
        assert!(media.fetch(&format!("{base}/plain"), 3).await.is_ok());
    }

    #[tokio::test]
    async fn the_limit_holds_for_announced_and_for_endless_bodies() {
        let (_server, media, base) = web().await;
        for path in ["plain", "endless"] {
            let error = media.fetch(&format!("{base}/{path}"), 2).await.unwrap_err();
            assert!(matches!(error, MediaError::TooLarge { limit: 2, .. }), "{path}: {error}");
        }
        assert_eq!(&media.fetch(&format!("{base}/chunked"), 3).await.unwrap().bytes[..], b"abc");
    }

    #[tokio::test]
    async fn redirects_are_refused_with_their_target() {
        let (server, media, base) = web().await;
        let error = media.fetch(&format!("{base}/moved"), 100).await.unwrap_err();
        assert!(matches!(error, MediaError::Forbidden { .. }), "{error}");
        assert!(error.to_string().contains("http://169.254.169.254/latest"), "{error}");
        assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_busy_host_is_no_fault_of_the_asset_and_tells_when_to_return() {
        let (server, media, base) = web().await;
        for (path, seconds) in [("busy", 7), ("many", 3)] {
            let error = media.fetch(&format!("{base}/{path}"), 100).await.unwrap_err();
            assert_eq!(error.blame(), Blame::World);
            let MediaError::Unavailable { retry_after, .. } = error else { panic!("{error}") };
            assert_eq!(retry_after, Some(Duration::from_secs(seconds)));
        }
        assert_eq!(server.requests.load(Ordering::SeqCst), 2, "one attempt per call");
    }

    #[tokio::test]
    async fn silence_is_noticed_before_and_within_the_body() {
        let (_server, media, base) = web().await;
        let error = media.fetch(&format!("{base}/silent"), 100).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 300ms"), "{error}");
        let error = media.fetch(&format!("{base}/stalled"), 100).await.unwrap_err();
        assert!(matches!(error, MediaError::Stalled { .. }), "{error}");
        let error = media.fetch(&format!("{base}/broken"), 100).await.unwrap_err();
        assert!(matches!(error, MediaError::Unavailable { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_closed_port_is_the_worlds_fault() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let media = RemoteMedia::new(&options(std::slice::from_ref(&base)), Arc::new(Metrics::new())).unwrap();
        let error = media.fetch(&format!("{base}/plain"), 100).await.unwrap_err();
        assert_eq!(error.blame(), Blame::World, "{error}");
    }

    #[tokio::test]
    async fn missing_and_expired_media_are_the_assets_fault_and_counted() {
        let (_server, media, base) = web().await;
        for (path, reason) in [("none", "media_not_found"), ("expired", "media_refused")] {
            let error = media.fetch(&format!("{base}/{path}"), 100).await.unwrap_err();
            assert_eq!((error.reason(), error.blame()), (reason, Blame::Asset));
            assert_eq!(media.metrics.media_errors_total.with_label_values(&[reason]).get(), 1);
        }
        assert_eq!(media.metrics.media_fetch_seconds.get_sample_count(), 2);
    }

    #[tokio::test]
    async fn nothing_unlisted_is_asked_for() {
        let (server, media, _) = web().await;
        let elsewhere = format!("http://localhost:{}/plain", server.address.port());
        for url in [elsewhere.as_str(), "file:///etc/passwd", "s3://shop/a", "nonsense"] {
            assert_eq!(media.fetch(url, 100).await.unwrap_err().blame(), Blame::Asset, "{url}");
        }
        assert_eq!(server.requests.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn objects_are_read_from_a_bucket_with_or_without_a_length() {
        let (_server, media) = bucket().await;
        for key in ["plain", "folder/plain", "chunked"] {
            assert_eq!(&media.fetch(&format!("s3://shop/{key}"), 3).await.unwrap().bytes[..], b"abc", "{key}");
        }
        for key in ["plain", "endless"] {
            let error = media.fetch(&format!("s3://shop/{key}"), 2).await.unwrap_err();
            assert!(matches!(error, MediaError::TooLarge { .. }), "{key}: {error}");
        }
        let error = media.fetch("s3://shop/stalled", 100).await.unwrap_err();
        assert!(matches!(error, MediaError::Stalled { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_buckets_refusals_are_told_apart_after_one_attempt() {
        let (server, media) = bucket().await;
        let mut requests = 0;
        for (key, reason) in [
            ("none", "media_not_found"),
            ("nobucket", "media_unavailable"),
            ("expired", "media_unavailable"),
            ("silent", "media_unavailable"),
            ("broken", "media_unavailable"),
        ] {
            let error = media.fetch(&format!("s3://shop/{key}"), 100).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{key}: {error}");
            requests += 1;
            assert_eq!(server.requests.load(Ordering::SeqCst), requests, "{key}");
        }
        let error = media.fetch("s3://shop/busy", 100).await.unwrap_err();
        let MediaError::Unavailable { retry_after, detail, .. } = error else { panic!("{error}") };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
        assert!(detail.contains("SlowDown"), "{detail}");
    }

    #[tokio::test]
    async fn files_of_listed_folders_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a b.jpg"), b"abc").unwrap();
        let base = format!("file://{}", folder.path().display());
        let media = RemoteMedia::new(&options(std::slice::from_ref(&base)), Arc::new(Metrics::new())).unwrap();
        assert_eq!(&media.fetch(&format!("{base}/a%20b.jpg"), 3).await.unwrap().bytes[..], b"abc");
        let url = format!("{base}/a%20b.jpg");
        assert!(media.is_local(&url));
        assert_eq!(&media.read_local(&url, 3).unwrap().bytes[..], b"abc");
        assert!(matches!(media.read_local("file:///etc/passwd", 100), Err(MediaError::Forbidden { .. })));
        assert_eq!(media.metrics.media_read_bytes_total.get(), 6);
        let error = media.fetch(&format!("{base}/none.jpg"), 3).await.unwrap_err();
        assert!(matches!(error, MediaError::NotFound { .. }), "{error}");
    }

    #[tokio::test]
    async fn bad_options_are_refused_at_the_start() {
        let refused = RemoteMedia::new(&options(&["nonsense".to_owned()]), Arc::new(Metrics::new()));
        assert!(matches!(refused.err(), Some(OptionsError::Entry(_))));
    }
}
