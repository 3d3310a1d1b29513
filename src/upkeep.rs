//! `assay upkeep`: looks after the tables of the jobs, away from the commit path.

use anyhow::Result;

use crate::config::Config;
use crate::job::JobCatalog;
use crate::sink::{register_stores, upkeep};

/// Compacts, checkpoints and vacuums; prints a line for each table on standard output.
pub async fn run(config: &Config, jobs: &[String]) -> Result<()> {
    register_stores();
    let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
    let names: Vec<String> = if jobs.is_empty() {
        catalog.jobs().map(|job| job.name.clone()).collect()
    } else {
        for name in jobs {
            catalog.get(name)?;
        }
        jobs.to_vec()
    };
    for name in names {
        println!("{name}: {}", upkeep(&config.tables, &name).await?);
    }
    Ok(())
}
