//! Sends the whole corpus to a worker process and looks at what it cost: rows, time and memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use assay::source::{EmbeddedBroker, KafkaOptions, Submitter};
use axum::Router;
use axum::http::{Response, Uri};

use super::messages::{endless_title, messages};
use super::pictures::{odd_pictures, pictures};
use super::references::references;
use crate::services::say;
use crate::stage::deployment::{Deployment, Worker};
use crate::stage::tables::{ask, places};
use crate::stage::worker::{JOB, pictured, product, until};

const TOPIC: &str = "products";
/// Peak memory of the worker; its model, its threads and the file format take most of it.
const MOST_MEMORY_KIB: u64 = 512 * 1024;
const MOST_TIME: Duration = Duration::from_secs(60);

/// A host that sends its readers to another one, which counts its visitors.
struct Detour {
    host: String,
    visitors: Arc<AtomicU64>,
}

impl Detour {
    async fn open() -> Self {
        let visitors = Arc::new(AtomicU64::new(0));
        let counted = visitors.clone();
        let inside = serve(Router::new().fallback(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async { "a secret" }
        }))
        .await;
        let redirect = move |uri: Uri| {
            let target = match uri.path().rsplit('/').next().unwrap_or_default() {
                "inside" => "http://169.254.169.254/latest/meta-data/".to_owned(),
                "file" => "file:///etc/passwd".to_owned(),
                "itself" => uri.to_string(),
                _ => format!("{inside}/secret.png"),
            };
            async move { Response::builder().status(302).header("location", target).body(String::new()).expect("one") }
        };
        let host = serve(Router::new().route("/pictures/redirect/{target}", axum::routing::get(redirect))).await;
        Self { host, visitors }
    }
}

async fn serve(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    host
}

/// Peak memory of a process in KiB.
fn peak_memory(worker: &Worker) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.id())).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
}

#[expect(clippy::too_many_lines, reason = "one run, and what is to be said of it")]
#[tokio::test(flavor = "multi_thread")]
async fn hostile_input_costs_one_typed_rejection_each_in_bounded_time_and_memory() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let detour = Detour::open().await;
    let kafka = KafkaOptions { bootstrap_servers: broker.bootstrap_servers().to_owned(), ..KafkaOptions::default() };
    let media = tempfile::tempdir().unwrap();
    let allowed = media.path().join("allowed");
    std::fs::create_dir(&allowed).unwrap();
    std::fs::write(media.path().join("secret.png"), crate::stage::fakes::png(4, 4)).unwrap();
    std::os::unix::fs::symlink(media.path().join("secret.png"), allowed.join("link.png")).unwrap();
    let folder = allowed.display().to_string();
    let deployment = Deployment::new(
        TOPIC,
        &format!(
            "[source.kafka]\nbootstrap_servers = \"{}\"\n[media]\nallow = [\"file://{folder}\", \"s3://assay/media\", \
             \"{}/pictures\"]\n[media.stores.\"s3://assay\"]\naws_endpoint = \"http://127.0.0.1:1\"\n\
             aws_allow_http = \"true\"\naws_access_key_id = \"a\"\naws_secret_access_key = \"b\"\n\
             [tables]\nurl = \"tables\"\n",
            kafka.bootstrap_servers, detour.host
        ),
    );

    // What each offset is, and which reasons fit it.
    const NO_ASSET: &[&str] = &["json_malformed", "schema_violation", "key_mismatch", "too_many_media"];
    const NO_PICTURE: &[&str] = &["picture_undecodable", "picture_over_limits", "media_too_large"];
    const NOT_TO_BE_READ: &[&str] =
        &["media_forbidden", "media_reference_malformed", "media_refused", "media_not_found", "schema_violation"];
    let mut sent: Vec<(String, &[&str])> = Vec::new();
    let submitter = Submitter::new(&kafka).unwrap();
    let send = async |payload: &[u8]| submitter.send(TOPIC, Some(0), None, Some(payload), &[]).await.unwrap();
    for (name, message) in messages() {
        send(&message).await;
        sent.push((name.to_owned(), NO_ASSET));
    }
    for reference in references(&folder, &detour.host) {
        send(pictured("x", &reference).to_string().as_bytes()).await;
        sent.push((reference, NOT_TO_BE_READ));
    }
    let odd = odd_pictures();
    for (name, bytes) in pictures().iter().chain(&odd) {
        std::fs::write(allowed.join(name), bytes).unwrap();
        send(pictured("x", &format!("file://{folder}/{name}")).to_string().as_bytes()).await;
        let reasons = if odd.iter().any(|(odd, _)| odd == name) { &[][..] } else { NO_PICTURE };
        sent.push((name.clone(), reasons));
    }
    send(product("good").to_string().as_bytes()).await;
    sent.push(("good".to_owned(), &[]));
    send(&endless_title()).await;
    sent.push(("endless title".to_owned(), &[]));
    submitter.flush().await.unwrap();

    let started = Instant::now();
    let worker = deployment.worker("worker", &["--once"]);
    let (mut peak, mut worker) = (0, worker);
    let running = worker.id();
    until("the worker ends", || {
        peak = peak_memory(&worker).unwrap_or_default().max(peak);
        std::fs::read_to_string(format!("/proc/{running}/stat")).map_or(true, |stat| stat.contains(") Z "))
    })
    .await;
    let status = worker.ended().await;
    assert!(status.success(), "{status}: {}", worker.log());
    assert!(started.elapsed() < MOST_TIME, "took {:?}", started.elapsed());
    assert!(peak > 0 && peak < MOST_MEMORY_KIB, "took {peak} KiB");
    say(&format!("hostile input: {} messages in {:.1?}, {} MiB at most", sent.len(), started.elapsed(), peak / 1024));
    assert_eq!(detour.visitors.load(Ordering::SeqCst), 0, "nobody was led inside");

    let tables = deployment.run.tables();
    assert_eq!(places(&tables, JOB).await.len(), sent.len(), "one row each");
    let rows = ask(&tables, JOB, "SELECT \"offset\", reason, blame FROM rejections").await;
    let reasons: BTreeMap<usize, (String, String)> =
        rows.into_iter().map(|row| (row[0].parse().unwrap(), (row[1].clone(), row[2].clone()))).collect();
    let wrong: Vec<_> = sent
        .iter()
        .enumerate()
        .filter(|(offset, (_, allowed))| match reasons.get(offset) {
            Some((reason, blame)) => !allowed.contains(&reason.as_str()) || blame != "asset",
            None => !allowed.is_empty(),
        })
        .map(|(offset, (name, _))| (name.chars().take(80).collect::<String>(), reasons.get(&offset)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
