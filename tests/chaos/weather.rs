//! A proxy of our own before the store: it passes requests on, and answers a share of them as a bad store would.
//!
//! It changes no request: signatures stay right, because the client signs for the proxy's own address and the store believes the
//! Host header. Which requests are hit is a matter of the seed and of their order.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use bytes::Bytes;
use futures::stream;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::plan::Weather;

/// Longer than any client of the workers waits.
const SILENCE: Duration = Duration::from_secs(8);
/// Pieces of a slow body, and the pause between two of them.
const DROPS: usize = 8;
const DROP_EVERY: Duration = Duration::from_millis(120);

/// The running proxy; it ends with the runtime.
#[derive(Clone)]
pub struct Proxy {
    pub endpoint: String,
    sky: Arc<Mutex<Sky>>,
}

struct Sky {
    now: Option<(Weather, f64, Instant)>,
    /// Where the writer of a table's version does not hear that it is there.
    untold: Option<&'static str>,
    random: ChaCha8Rng,
    hits: u64,
}

#[derive(Clone)]
struct Way {
    client: reqwest::Client,
    upstream: String,
    sky: Arc<Mutex<Sky>>,
}

impl Proxy {
    pub async fn start(upstream: &str, seed: u64) -> Self {
        let sky = Sky { now: None, untold: None, random: ChaCha8Rng::seed_from_u64(seed), hits: 0 };
        let sky = Arc::new(Mutex::new(sky));
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.build().expect("a client");
        let way = Way { client, upstream: upstream.to_owned(), sky: sky.clone() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let routes = Router::new().fallback(pass).with_state(way);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { endpoint, sky }
    }

    /// Bad weather for a while; the last word counts.
    pub fn turn(&self, kind: Weather, share: f64, length: Duration) {
        self.sky.lock().unwrap().now = Some((kind, share, Instant::now() + length));
    }

    /// From now on a new version of this table becomes durable and its writer is not told.
    pub fn leave_versions_untold(&self, table: &'static str) {
        self.sky.lock().unwrap().untold = Some(table);
    }

    pub fn clear(&self) {
        let mut sky = self.sky.lock().unwrap();
        (sky.now, sky.untold) = (None, None);
    }

    /// Requests that were hit so far.
    pub fn hits(&self) -> u64 {
        self.sky.lock().unwrap().hits
    }
}

impl Sky {
    fn keeps_untold(&self, path: &str) -> bool {
        self.untold.is_some_and(|table| path.contains(&format!("/{table}/_delta_log/")))
    }

    fn strike(&mut self) -> Option<Weather> {
        let (kind, share, until) = self.now?;
        let struck = Instant::now() < until && self.random.random_bool(share);
        self.hits += u64::from(struck);
        struck.then_some(kind)
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response<Body> {
    let struck = way.sky.lock().unwrap().strike();
    match struck {
        Some(Weather::Refusing(status)) => return short(status),
        Some(Weather::Silent) => {
            tokio::time::sleep(SILENCE).await;
            return short(503);
        }
        _ => {}
    }
    let untold = request.method() == Method::PUT && way.sky.lock().unwrap().keeps_untold(request.uri().path());
    let Some((status, headers, body)) = forward(&way, request).await else { return short(502) };
    if untold {
        way.sky.lock().unwrap().hits += 1;
        tokio::time::sleep(SILENCE).await;
        return short(503);
    }
    match struck {
        Some(Weather::Forgetful) => short(500),
        Some(Weather::Cutting) => {
            let half = body.slice(..body.len() / 2);
            let torn = Err(std::io::Error::other("cut"));
            answer(status, &headers, Body::from_stream(stream::iter([Ok(half), torn])))
        }
        Some(Weather::Slow) => {
            let size = body.len().div_ceil(DROPS).max(1);
            let drops: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
            let falling = stream::unfold(drops.into_iter(), |mut drops| async move {
                let drop = drops.next()?;
                tokio::time::sleep(DROP_EVERY).await;
                Some((Ok::<_, std::io::Error>(drop), drops))
            });
            answer(status, &headers, Body::from_stream(falling))
        }
        _ => answer(status, &headers, Body::from(body)),
    }
}

/// What the store answers; none when it is not there.
async fn forward(way: &Way, request: Request) -> Option<(StatusCode, HeaderMap, Bytes)> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.ok()?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = parts.headers;
    headers.remove("transfer-encoding");
    let request = way.client.request(parts.method, format!("{}{path}", way.upstream)).headers(headers).body(body);
    let response = request.send().await.ok()?;
    let (status, headers) = (response.status(), response.headers().clone());
    Some((status, headers, response.bytes().await.ok()?))
}

fn answer(status: StatusCode, headers: &HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers.clone();
    response.headers_mut().remove("transfer-encoding");
    response
}

fn short(status: u16) -> Response<Body> {
    let body = Body::from("<Error><Code>SlowDown</Code></Error>");
    Response::builder().status(status).body(body).expect("a response")
}
