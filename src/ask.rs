//! `assay query`: opens the tables of the configured jobs and answers in the format that was asked for.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::job::JobCatalog;
use crate::query::{Format, NamedFile, QueryError, QuerySession, Screen, prompt, write};
use crate::sink::register_stores;

/// What `assay query` was asked to do.
#[derive(Debug, Clone)]
pub struct QueryOptions {
    /// None: ask at a prompt.
    pub sql: Option<String>,
    pub format: Format,
    pub output: Option<PathBuf>,
    /// Files that the query may read beside the tables.
    pub files: Vec<NamedFile>,
}

/// Answers one query, or those typed at the prompt.
pub async fn run(config: &Config, job: Option<&str>, options: QueryOptions) -> Result<()> {
    let session = open(config, job).await?;
    for file in &options.files {
        session.read_also(file).await?;
    }
    let Some(sql) = &options.sql else { return talk(&session, &options).await };
    match &options.output {
        Some(path) => {
            // Planned first: a query that is wrong must not empty a file.
            let answer = session.run(sql).await?;
            let file = File::create(path).with_context(|| path.display().to_string())?;
            write(answer, options.format, &mut BufWriter::new(file)).await?;
            Ok(())
        }
        None if options.format == Format::Parquet && std::io::stdout().is_terminal() => {
            bail!("a Parquet file is not for a terminal; add --output FILE")
        }
        None => {
            let answer = session.run(sql).await?;
            match write(answer, options.format, &mut BufWriter::new(std::io::stdout())).await {
                // Whoever reads has seen enough, as `head` does.
                Err(QueryError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
                result => Ok(result.map(drop)?),
            }
        }
    }
}

async fn talk(session: &QuerySession, options: &QueryOptions) -> Result<()> {
    if options.output.is_some() || options.format == Format::Parquet {
        bail!("--output and --format parquet need a query; at the prompt there is none yet");
    }
    let screen = Screen { answers: &mut std::io::stdout(), messages: &mut std::io::stderr() };
    Ok(prompt(session, history_file(), options.format, screen).await?)
}

/// Prints the answer of one query as a table on standard output.
pub async fn print_table(session: &QuerySession, sql: &str) -> Result<()> {
    Ok(write(session.run(sql).await?, Format::Table, &mut BufWriter::new(std::io::stdout())).await.map(drop)?)
}

/// Whether a person looks at standard error.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A session over the tables of all jobs; bare names are those of `job`, or of the only one.
pub async fn open(config: &Config, job: Option<&str>) -> Result<QuerySession> {
    register_stores();
    let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
    if let Some(name) = job {
        catalog.get(name)?;
    }
    let tables: Vec<_> = catalog.jobs().map(|job| config.job_tables(&job.name)).collect();
    Ok(QuerySession::open(&tables, job).await?)
}

fn history_file() -> Option<PathBuf> {
    let folder = crate::config::data_folder()?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("query-history"))
}
