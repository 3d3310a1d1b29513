//! `assay demo`: the whole way of an asset on one machine, in one process.
//!
//! A catalogue is drawn, enqueued on an in-process broker, worked off by an ordinary worker, and asked in SQL. What it leaves is an
//! ordinary deployment: configuration, jobs, model, topics as JSON lines and tables, which every other verb can use, and a
//! page that shows each asset.

use std::path::PathBuf;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use crate::ask;

use super::deployment::{Deployment, ShippedFile};
use super::gallery::{self, About};
use super::market::{Extras, Market, Seed, Shop};

/// What `assay demo` was asked to do.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where everything of the run goes; must be new or empty.
    pub dir: PathBuf,
    pub assets: usize,
    pub seed: u64,
}

/// The second job of the demo.
const FILES: [ShippedFile; 2] = [
    ("jobs/ad-annotation.toml", include_bytes!("../../jobs/ad-annotation.toml")),
    ("jobs/ad-annotation.output.json", include_bytes!("../../jobs/ad-annotation.output.json")),
];

/// The questions that the demo asks at its end.
const QUESTIONS: [(&str, &str); 5] = [
    (
        "What became of the messages?",
        "SELECT kind, outcome, count(*) AS messages FROM (\
         SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END AS outcome FROM product_annotation.results \
         UNION ALL SELECT kind, CASE WHEN deleted THEN 'removed' ELSE 'annotated' END FROM ad_annotation.results \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM product_annotation.rejections \
         UNION ALL SELECT kind, 'rejected: ' || reason FROM ad_annotation.rejections) \
         GROUP BY kind, outcome ORDER BY kind DESC, outcome",
    ),
    (
        "What is in the shop?",
        "SELECT category, count(*) AS products, count(DISTINCT brand) AS brands FROM product_annotation.latest \
         GROUP BY category ORDER BY products DESC, category LIMIT 6",
    ),
    (
        "Which brands are sold second-hand?",
        "SELECT brand, count(*) AS products, \
         round(100.0 * avg(CASE WHEN condition = 'second_hand' THEN 1.0 ELSE 0.0 END)) AS second_hand_percent \
         FROM product_annotation.latest WHERE brand IS NOT NULL GROUP BY brand \
         HAVING count(*) > 1 ORDER BY products DESC, brand LIMIT 6",
    ),
    (
        "Which products are most like the first one, whatever their texts say?",
        "WITH one AS (SELECT asset_id, embedding, colour || ' ' || pattern || ' ' || split_part(category, ' > ', 3) AS what \
         FROM product_annotation.latest ORDER BY asset_id LIMIT 1) \
         SELECT one.what AS product, other.colour || ' ' || other.pattern || ' ' || split_part(other.category, ' > ', 3) AS like_it, \
         other.headers['title'] AS title, round(cosine_similarity(other.embedding, one.embedding), 3) AS similarity \
         FROM product_annotation.latest AS other CROSS JOIN one WHERE other.asset_id <> one.asset_id \
         ORDER BY similarity DESC, other.asset_id LIMIT 5",
    ),
    (
        "Which ads must a reviewer see?",
        "SELECT asset_id, product, array_to_string(policy_flags, ', ') AS flags, call_to_action FROM ad_annotation.latest \
         WHERE cardinality(policy_flags) > 0 ORDER BY asset_id LIMIT 5",
    ),
];

/// Runs the demo.
///
/// # Errors
/// A folder that is not empty or cannot be written, or whatever ends a worker.
pub async fn run(options: DemoOptions, shutdown: CancellationToken) -> Result<()> {
    let deployment = Deployment::new(&options.dir)?;
    let (seed, assets) = (Seed::<Shop>::new(options.seed)?, options.assets);
    eprintln!("Drawing {assets} products and ads into {}", deployment.dir().display());
    let extras = Extras { faults: true, ..Extras::default() };
    let (_, written) = deployment.draw(Market::generate(seed, assets), extras).await?;
    deployment.write_files(&FILES, "")?;
    let session = deployment.work_off(written.records, shutdown).await?;
    for (question, sql) in QUESTIONS {
        println!("\n{question}\n");
        ask::print_table(&session, sql).await?;
    }
    let about = About { seed: options.seed, seconds: deployment.seconds() };
    gallery::write(&session, deployment.dir(), about).await?;
    let page = "each asset with its picture, answer and neighbours: open it in a browser";
    deployment.print_places(&[("gallery.html", page)]);
    Ok(())
}
