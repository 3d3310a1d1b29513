//! Asks about all jobs and tells it, once or again and again.
//!
//! It knows no question; it decides only how often and in which form. Invariant: a problem with one job does not keep the
//! others from being told.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;

use super::gather::gather;
use super::report::JobStatus;
use crate::config::Config;
use crate::job::{JobCatalog, JobSpec};
use crate::sink::register_stores;

/// What `assay status` was asked to do.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// Names of the jobs; empty means all.
    pub jobs: Vec<String>,
    /// One line of JSON instead of text.
    pub json: bool,
    /// Ask again after this long, until told to stop.
    pub watch: Option<Duration>,
}

/// Asks and tells, once or again and again, on standard output.
///
/// # Errors
/// Wrong configuration or jobs; asked once, also a source or tables that do not answer, after what is known was told.
pub async fn run(config: &Config, options: StatusOptions, stop: CancellationToken) -> Result<()> {
    register_stores();
    let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
    let jobs: Vec<JobSpec> = if options.jobs.is_empty() {
        catalog.jobs().cloned().collect()
    } else {
        options.jobs.iter().map(|name| catalog.get(name).cloned()).collect::<Result<_, _>>()?
    };
    loop {
        let asking = futures::future::join_all(jobs.iter().map(|job| gather(config, job)));
        let Some(statuses) = stop.run_until_cancelled(asking).await else { return Ok(()) };
        tell(&statuses, &options)?;
        let Some(pause) = options.watch else {
            let problems: usize = statuses.iter().map(|status| status.problems.len()).sum();
            if problems > 0 {
                bail!("not everything could be read; see the problems above");
            }
            return Ok(());
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
}

fn tell(statuses: &[JobStatus], options: &StatusOptions) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string(statuses)?)?;
        return output.flush();
    }
    if options.watch.is_some() && std::io::stdout().is_terminal() {
        // Clears the screen and goes to its upper left corner.
        write!(output, "\x1b[2J\x1b[H")?;
    }
    for (index, status) in statuses.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n" };
        write!(output, "{gap}{status}")?;
    }
    output.flush()
}
