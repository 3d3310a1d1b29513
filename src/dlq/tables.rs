//! Opens the tables of one job for the verbs on dead letters.

use anyhow::Result;

use crate::config::Config;
use crate::job::JobCatalog;
use crate::query::QuerySession;
use crate::sink::register_stores;

/// The jobs that are meant: the named ones, or all.
pub(super) fn jobs(config: &Config, names: &[String]) -> Result<Vec<String>> {
    let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
    if names.is_empty() {
        return Ok(catalog.jobs().map(|job| job.name.clone()).collect());
    }
    names.iter().map(|name| Ok(catalog.get(name)?.name.clone())).collect()
}

/// A session in which `results` and `rejections` are those of the job.
pub(super) async fn open(config: &Config, job: &str) -> Result<QuerySession> {
    register_stores();
    Ok(QuerySession::open(&[config.job_tables(job)], Some(job)).await?)
}
