//! `assay bench pipeline`: what the pipeline itself costs, with an inference stand-in that answers at once.
//!
//! Every case runs in a process of its own, so that its peak of memory is its own. What is measured is a real run: records
//! are replayed from disk, pictures are read and decoded, rows are committed to Delta tables.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::memory::peak_mebibytes;
use crate::engine::{Inference, InstantInference};
use crate::job::{JobSpec, rejections_schema, results_schema};
use crate::media::{self, DecodeLimits, RemoteMedia};
use crate::metrics::Metrics;
use crate::pipeline::{self, Mode, Parts, Progress};
use crate::sink::{self, DeltaSink, Sink};
use crate::source::{ReplayOptions, ReplaySource};
use crate::traces::Tracer;

const DIMENSIONS: usize = 64;
const PARTITIONS: usize = 4;
const PICTURES: usize = 200;
const MODEL: &str = "instant";

/// What to measure.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// The number of assets; a tenth of it in the first case, for the peak of memory to be compared with.
    #[arg(long, default_value_t = 100_000)]
    assets: usize,
    /// Print JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Measure one case in this process; used by the command itself.
    #[arg(long, hide = true, value_enum)]
    case: Option<Case>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Case {
    Text,
    Media,
    /// Decoding the same pictures on as many threads, and nothing else.
    Decode,
}

/// One measured case.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    case: Case,
    assets: usize,
    seconds: f64,
    assets_per_second: f64,
    /// Peak of resident memory; none where the system does not tell.
    peak_mebibytes: Option<f64>,
}

/// Measures the cases one after the other and prints them with their ratios.
pub async fn pipeline(args: PipelineArgs) -> Result<()> {
    if args.assets < 10 {
        bail!("--assets must be at least 10");
    }
    if let Some(case) = args.case {
        println!("{}", serde_json::to_string(&measure(case, args.assets).await?)?);
        return Ok(());
    }
    let tenth = args.assets / 10;
    let cases = [
        (Case::Text, tenth),
        (Case::Text, args.assets),
        // Before and after, because other tenants of the machine come and go.
        (Case::Decode, args.assets / 2),
        (Case::Media, args.assets),
        (Case::Decode, args.assets / 2),
    ];
    let measured: Vec<_> =
        cases.into_iter().map(|(case, assets)| in_own_process(case, assets)).collect::<Result<_>>()?;
    if args.json {
        for case in &measured {
            println!("{}", serde_json::to_string(case)?);
        }
    } else {
        print_table(&measured);
    }
    Ok(())
}

fn in_own_process(case: Case, assets: usize) -> Result<Measured> {
    let name = case.to_possible_value().context("every case has a name")?;
    let output = std::process::Command::new(std::env::current_exe()?)
        .args(["--log", "warn", "bench", "pipeline", "--case", name.get_name(), "--assets", &assets.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("measuring {} ended with {}", name.get_name(), output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn print_table(measured: &[Measured]) {
    println!("{:<8} {:>9} {:>9} {:>12} {:>10}", "case", "assets", "seconds", "assets/s", "peak MiB");
    for Measured { case, assets, seconds, assets_per_second, peak_mebibytes } in measured {
        let name = format!("{case:?}").to_lowercase();
        let peak = peak_mebibytes.map_or_else(|| "-".to_owned(), |peak| format!("{peak:.0}"));
        println!("{name:<8} {assets:>9} {seconds:>9.2} {assets_per_second:>12.0} {peak:>10}");
    }
    let of = |case| measured.iter().filter(move |measured| measured.case == case);
    let decode = of(Case::Decode).map(|case| case.assets_per_second).sum::<f64>() / of(Case::Decode).count() as f64;
    if let Some(media) = of(Case::Media).next() {
        println!("with media: {:.0} % of decoding alone", 100.0 * media.assets_per_second / decode);
    }
    let peaks: Vec<_> = of(Case::Text).filter_map(|case| case.peak_mebibytes).collect();
    if let [small, large] = peaks[..] {
        println!("memory at ten times the assets: {:+.0} %", 100.0 * (large / small - 1.0));
    }
}

async fn measure(case: Case, assets: usize) -> Result<Measured> {
    let folder = Folder::new()?;
    let seconds = match case {
        Case::Decode => {
            let pictures = write_pictures(folder.path())?;
            decode_alone(&pictures, assets)?
        }
        Case::Text | Case::Media => {
            let pictures = if case == Case::Media { write_pictures(folder.path())? } else { Vec::new() };
            write_topic(folder.path(), assets, &pictures)?;
            run(folder.path(), case, assets).await?
        }
    };
    Ok(Measured { case, assets, seconds, assets_per_second: assets as f64 / seconds, peak_mebibytes: peak_mebibytes() })
}

/// A folder that is gone when the measurement is over.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("assay-bench-{}", std::process::id()));
        std::fs::create_dir_all(path.join("topic"))?;
        Ok(Self(path.canonicalize()?))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// JPEGs of about 20 KiB.
fn write_pictures(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    (0..PICTURES)
        .map(|index| {
            let (phase, step) = (random.random_range(0..255u32), random.random_range(2..9u32));
            let picture = image::RgbImage::from_fn(320, 320, |x, y| {
                let wave = ((x * step) ^ (y * 3)) + phase;
                let noise = random.random_range(0..18u32);
                image::Rgb([wave, x + noise, y + wave / 2].map(|value| (value % 256) as u8))
            });
            let mut bytes = Vec::new();
            image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 40).encode_image(&picture)?;
            let path = folder.join(format!("{index}.jpg"));
            std::fs::write(&path, &bytes)?;
            Ok((format!("file://{}", path.display()), bytes))
        })
        .collect()
}

fn write_topic(folder: &Path, assets: usize, pictures: &[(String, Vec<u8>)]) -> Result<()> {
    use std::io::Write;
    let mut files = (0..PARTITIONS)
        .map(|partition| {
            Ok(std::io::BufWriter::new(std::fs::File::create(folder.join(format!("topic/{partition}.jsonl")))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let description =
        "A sturdy mug for tea and coffee, dishwasher safe, with a wide handle and a glossy glaze. ".repeat(4);
    for index in 0..assets {
        let mut message = json!({
            "id": format!("asset-{index:08}"),
            "title": format!("Stoneware mug number {index}"),
            "description": description,
            "attributes": { "brand": "Holm", "size": "350 ml", "condition": "new" },
            "candidate_categories": ["Home & Garden > Kitchen > Mugs", "Home & Garden > Kitchen > Bowls"],
            "locale": "en-GB",
            "price": { "amount": 12.5, "currency": "GBP" },
            "event_time": "2026-01-02T03:04:05Z",
        });
        if !pictures.is_empty() {
            message["media"] = json!([{ "url": pictures[index % pictures.len()].0, "role": "main" }]);
        }
        writeln!(files[index % PARTITIONS], "{message}")?;
    }
    Ok(())
}

async fn run(folder: &Path, case: Case, assets: usize) -> Result<f64> {
    let metrics = Arc::new(Metrics::new());
    let image = if case == Case::Media {
        "[[embeddings]]\ncolumn = \"image\"\nmodel = \"instant\"\ninput = \"image\"\n"
    } else {
        ""
    };
    let text = format!(
        "name = \"bench\"\nkind = \"product\"\ntopics = [\"bench\"]\n{image}\
         [[embeddings]]\ncolumn = \"text\"\nmodel = \"instant\"\ninput = \"text\"\ntemplate = \"{{title}}. {{description}}\"\n"
    );
    let job = JobSpec::parse(Path::new("bench.toml"), &text).map_err(crate::check::problems_error)?;
    let options = sink::Options { url: format!("file://{}/tables", folder.display()), ..sink::Options::default() };
    let results = results_schema(&job, |_| Some(DIMENSIONS))?;
    let sink = DeltaSink::new("bench", &options, results, rejections_schema(), metrics.clone())?;
    sink.open().await?;
    let topics = [("bench".to_owned(), folder.join("topic"))].into();
    let source = ReplaySource::new(ReplayOptions { topics }, &job.topics)?;
    let media = media::Options { allow: vec![format!("file://{}", folder.display())], ..media::Options::default() };
    let inference: Arc<dyn Inference> = Arc::new(InstantInference::new([(MODEL, DIMENSIONS)]));
    let progress = Arc::new(Progress::default());
    let parts = Parts {
        job: Arc::new(job),
        source: Arc::new(source),
        media: Arc::new(RemoteMedia::new(&media, metrics.clone())?),
        inference,
        sink: Arc::new(sink),
        metrics,
        progress: progress.clone(),
        tracer: Tracer::default(),
        options: pipeline::Options::default(),
        commit: options.commit.clone(),
        retry: options.retry,
        fetch_concurrency: media.concurrency,
        inference_window: 256,
        grace: Duration::from_secs(30),
    };
    let started = Instant::now();
    // As in `assay run`: on a thread of the runtime, not on the one that waits for it.
    tokio::spawn(pipeline::run(parts, Mode::Once, CancellationToken::new())).await??;
    let seconds = started.elapsed().as_secs_f64();
    let done = progress.snapshot();
    if done.annotated != assets as u64 {
        bail!("{} of {assets} assets were annotated, {} rejected", done.annotated, done.rejected);
    }
    Ok(seconds)
}

/// Decodes as many pictures as there are assets, on one thread per core.
fn decode_alone(pictures: &[(String, Vec<u8>)], assets: usize) -> Result<f64> {
    let threads = pipeline::Options::default().cpu_threads();
    let limits = DecodeLimits { pixels: 40_000_000, side: 16_384, allocation: 320_000_000 };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let worker = || {
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if index >= assets {
                    return Ok::<_, anyhow::Error>(());
                }
                std::hint::black_box(media::decode(&pictures[index % pictures.len()].1, &limits)?);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("decoding does not panic"))
    })?;
    Ok(started.elapsed().as_secs_f64())
}
