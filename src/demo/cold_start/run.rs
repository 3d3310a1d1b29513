//! The run: products are drawn, embedded by ordinary jobs, read by SQL, and ranked for users.
//!
//! Invariant: all systems see the same products, users and split, and the numbers are told as they are.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::ask;
use crate::domain::Content;
use crate::query::{QuerySession, objects};

use super::super::deployment::{Deployment, ShippedFile};
use super::super::market::{Extras, Interaction, Market, Seed, Split, Study, Test};
use super::evaluation::{Figures, Judged, User, judge, users};
use super::recommender::{Chance, ContentBased, Oracle, Popularity, Recommender};
use super::report::{Interactions, Products, Report, System, Users};
use super::vectors::Embeddings;

/// What `assay demo --cold-start` was asked to do.
#[derive(Debug, Clone)]
pub struct ColdStartOptions {
    /// Where everything of the run goes; must be new or empty.
    pub dir: PathBuf,
    pub products: usize,
    pub seed: u64,
}

/// The job of the separate encoders and what they are.
const FILES: [ShippedFile; 16] = [
    ("jobs/cold-start-encoders.toml", include_bytes!("../../../jobs/cold-start-encoders.toml")),
    ("models/demo-resnet/config.json", include_bytes!("../../../models/demo-resnet/config.json")),
    ("models/demo-resnet/model.safetensors", include_bytes!("../../../models/demo-resnet/model.safetensors")),
    (
        "models/demo-resnet/preprocessor_config.json",
        include_bytes!("../../../models/demo-resnet/preprocessor_config.json"),
    ),
    ("models/demo-bert/config.json", include_bytes!("../../../models/demo-bert/config.json")),
    ("models/demo-bert/model.safetensors", include_bytes!("../../../models/demo-bert/model.safetensors")),
    ("models/demo-bert/modules.json", include_bytes!("../../../models/demo-bert/modules.json")),
    ("models/demo-bert/1_Pooling/config.json", include_bytes!("../../../models/demo-bert/1_Pooling/config.json")),
    (
        "models/demo-bert/sentence_bert_config.json",
        include_bytes!("../../../models/demo-bert/sentence_bert_config.json"),
    ),
    ("models/demo-bert/tokenizer.json", include_bytes!("../../../models/demo-bert/tokenizer.json")),
    ("models/demo-bert/tokenizer_config.json", include_bytes!("../../../models/demo-bert/tokenizer_config.json")),
    ("models/demo-clip/config.json", include_bytes!("../../../models/demo-clip/config.json")),
    ("models/demo-clip/model.safetensors", include_bytes!("../../../models/demo-clip/model.safetensors")),
    ("models/demo-clip/preprocessor_config.json", include_bytes!("../../../models/demo-clip/preprocessor_config.json")),
    ("models/demo-clip/tokenizer.json", include_bytes!("../../../models/demo-clip/tokenizer.json")),
    ("models/demo-clip/tokenizer_config.json", include_bytes!("../../../models/demo-clip/tokenizer_config.json")),
];

/// The end of the configuration.
const MODELS: &str = "
# The separate encoders of cold-start-encoders.
[models.resnet]
path = \"models/demo-resnet\"

[models.bert]
path = \"models/demo-bert\"

[models.clip]
path = \"models/demo-clip\"
";

/// Runs the study.
///
/// # Errors
/// A folder that is not empty or cannot be written, whatever ends a worker, and a study too small to have users.
pub async fn cold_start(options: ColdStartOptions, shutdown: CancellationToken) -> Result<()> {
    let deployment = Deployment::new(&options.dir)?;
    let (seed, products) = (Seed::<Test>::new(options.seed)?, options.products);
    eprintln!("Drawing {products} products into {}", deployment.dir().display());
    let (market, written) = deployment.draw(Market::products(seed, products), Extras::default()).await?;
    deployment.write_files(&FILES, MODELS)?;
    let session = deployment.work_off(written.records, shutdown).await?;

    let ids: Vec<&str> = market.items.iter().map(|item| item.id.as_str()).collect();
    let embedded = Embedded::read(&session, &ids).await?;
    let report = study(&market, &embedded, options.seed)?;
    let path = deployment.dir().join("cold-start.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n").with_context(|| path.display().to_string())?;
    println!("\n{}", report.summary());
    for (question, sql) in report.tables() {
        println!("\n{question}\n");
        ask::print_table(&session, &sql).await?;
    }
    deployment.print_places(&[
        ("cold-start.json", "these numbers"),
        ("interactions/", "users, their past clicks, and the clicks held out"),
    ]);
    Ok(())
}

/// The embeddings of all systems.
struct Embedded {
    unified: Embeddings,
    resnet: Embeddings,
    bert: Embeddings,
    clip_image: Embeddings,
    clip_text: Embeddings,
}

impl Embedded {
    async fn read(session: &QuerySession, products: &[&str]) -> Result<Self> {
        let read = async |job: &str, column: &str| -> Result<Embeddings> {
            let sql = format!("SELECT asset_id, {column} AS vector FROM {job}.latest");
            let rows = objects(session.run(&sql).await?).await?;
            let vectors =
                rows.iter().filter_map(|row| Some((row["asset_id"].as_str()?.to_owned(), vector(&row["vector"]))));
            Embeddings::new(vectors.collect(), products).with_context(|| format!("{job}.latest, column {column}"))
        };
        Ok(Self {
            unified: read("product_annotation", "embedding").await?,
            resnet: read("cold_start_encoders", "resnet_embedding").await?,
            bert: read("cold_start_encoders", "bert_embedding").await?,
            clip_image: read("cold_start_encoders", "clip_image_embedding").await?,
            clip_text: read("cold_start_encoders", "clip_text_embedding").await?,
        })
    }
}

/// Empty where there is none.
fn vector(value: &Value) -> Vec<f32> {
    value.as_array().into_iter().flatten().map(|value| value.as_f64().unwrap_or(0.0) as f32).collect()
}

/// Lets every system rank the same cold products for the same users.
fn study<S: Split>(market: &Market<S>, embedded: &Embedded, seed: u64) -> Result<Report> {
    let study = market.study();
    let users = users(&study);
    let cold: Vec<&str> = market.items.iter().filter(|item| item.is_cold).map(|item| item.id.as_str()).collect();
    let mut systems = content_systems(embedded, &users, &cold);
    systems.extend(other_systems(market, &study, seed, &users, &cold));
    let first = systems.first().map(|(_, _, judged)| judged.clone()).context("there are systems")?;
    let line = |(system, dimensions, judged): Ranked| {
        Some(System {
            system,
            dimensions,
            among_all_cold: Figures::of(&judged.among_all, &first.among_all)?,
            among_shown: Figures::of(&judged.among_shown, &first.among_shown)?,
        })
    };
    let systems: Option<Vec<System>> = systems.into_iter().map(line).collect();
    Ok(Report {
        split: S::NAME,
        seed,
        products: Products { warm: market.items.len() - cold.len(), cold: cold.len() },
        users: Users { all: study.tastes.len(), judged: users.len() },
        past: counted(&study.past),
        held_out: counted(&study.held_out),
        systems: systems.context("no user has clicked on a cold product; take more with --assets")?,
    })
}

/// A system, the dimensions of its embedding, and what its rankings are worth.
type Ranked = (&'static str, Option<usize>, Judged);

fn content_systems(embedded: &Embedded, users: &[User<'_>], cold: &[&str]) -> Vec<Ranked> {
    let Embedded { unified, resnet, bert, clip_image, clip_text } = embedded;
    // Both pairs are fused alike, so that the encoders alone make the difference.
    let (separate, clip) = (resnet.concatenated(bert), clip_image.concatenated(clip_text));
    let systems = [
        ("unified: Llama 4", unified),
        ("separate: ResNet + BERT", &separate),
        ("ResNet alone", resnet),
        ("BERT alone", bert),
        ("CLIP: picture + text", &clip),
        ("CLIP picture alone", clip_image),
        ("CLIP text alone", clip_text),
    ];
    let ranked = |(name, embeddings): (&'static str, &Embeddings)| {
        (name, Some(embeddings.dimensions()), judge(&ContentBased { embeddings }, users, cold))
    };
    systems.into_iter().map(ranked).collect()
}

fn other_systems<S: Split>(
    market: &Market<S>,
    study: &Study,
    seed: u64,
    users: &[User<'_>],
    cold: &[&str],
) -> Vec<Ranked> {
    let categories: HashMap<&str, &[String]> = market
        .items
        .iter()
        .filter_map(|item| match &item.content {
            Content::Product(product) => Some((item.id.as_str(), &product.candidate_categories[..])),
            Content::Ad(_) => None,
        })
        .collect();
    let popularity = Popularity::new(&categories, &study.past);
    let oracle = Oracle {
        tastes: study.tastes.iter().map(|taste| (taste.user.as_str(), taste)).collect(),
        truths: market.truths().map(|truth| (truth.id.as_str(), truth)).collect(),
    };
    let systems: [(&str, &dyn Recommender); 3] =
        [("popularity", &popularity), ("chance", &Chance { seed }), ("oracle: true tastes", &oracle)];
    systems.into_iter().map(|(name, recommender)| (name, None, judge(recommender, users, cold))).collect()
}

fn counted(interactions: &[Interaction]) -> Interactions {
    let clicked = interactions.iter().filter(|one| one.clicked).count();
    Interactions { shown: interactions.len(), clicked }
}
