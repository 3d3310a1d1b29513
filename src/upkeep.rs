//! `assay upkeep`: looks after the tables of the jobs, away from the commit path.

use anyhow::Result;

use crate::config::Config;
use crate::job::JobCatalog;
use crate::sink::{TableUpkeep, register_stores, upkeep};

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
        let report = upkeep(&config.tables, &name).await?;
        println!("{name}/results: {}", told(&report.results));
        println!("{name}/rejections: {}", told(&report.rejections));
    }
    Ok(())
}

fn told(table: &TableUpkeep) -> String {
    let Some(checkpoint) = table.checkpoint else { return "does not exist yet".to_owned() };
    format!(
        "{} files merged into {}, checkpoint at version {checkpoint}, {} data files and {} log files removed",
        table.files_merged, table.files_written, table.files_removed, table.log_files_removed
    )
}
