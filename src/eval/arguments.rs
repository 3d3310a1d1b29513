//! The flags of `assay eval`, and the order in which it does its work.
//!
//! It knows which runs are compared; it computes nothing itself.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::answers::{self, Answers};
use super::changes::Changes;
use super::judge::Judge;
use super::labels::{self, Label};
use super::report::{Mark, Report, marks};
use crate::config::Config;
use crate::job::{JobCatalog, JobSpec};

/// What to evaluate, against which labels, compared with what.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// The job whose answers are judged.
    #[arg(long, value_name = "NAME")]
    job: String,
    /// What is true: JSON lines, such as labels.jsonl of a demo folder, or a .parquet file.
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// The field of the labels with the asset's id; without it asset_id or id, and in a Parquet file without either the
    /// number of the row.
    #[arg(long, value_name = "FIELD")]
    id: Option<String>,
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
    /// Say what this run changed of that of another job: another model or prompt.
    #[arg(long, value_name = "NAME")]
    against: Option<String>,
    /// Where the other run lies: a configuration with other tables. Without --against, the job of the same name there.
    #[arg(long, value_name = "FILE")]
    against_config: Option<PathBuf>,
    /// Show this many changed answers.
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EvalFormat {
    Table,
    Json,
}

/// One side of a comparison.
struct Side {
    spec: JobSpec,
    tables: String,
    answers: Answers,
    judge: Judge,
}

/// Judges the answers of a job and tells the figures on standard output.
///
/// # Errors
/// Labels or jobs that are wrong, with file and line, and tables that cannot be read.
pub async fn run(config: &Config, args: EvalArgs) -> Result<()> {
    if args.against.as_ref() == Some(&args.job) && args.against_config.is_none() {
        bail!("--against names the job itself; name another, or other tables by --against-config");
    }
    let labels = labels::read(&args.labels, args.id.as_deref()).map_err(crate::check::problems_error)?;
    let side = Side::open(config, &args.job).await?;
    let baseline = match (&args.against, &args.against_config) {
        (None, None) => None,
        (job, file) => {
            let job = job.as_ref().unwrap_or(&args.job);
            let other = file.as_ref().map(|file| Config::load(Some(file))).transpose();
            let other = other.map_err(crate::check::problems_error)?;
            Some(Side::open(other.as_ref().unwrap_or(config), job).await?)
        }
    };
    if let Some(other) = baseline.as_ref().map(|baseline| &baseline.spec).filter(|other| other.kind != side.spec.kind) {
        bail!(
            "{} is about {}s and {} about {}s; they cannot be compared",
            args.job,
            side.spec.kind,
            other.name,
            other.kind
        );
    }
    let (report, marks) = side.judge(&labels);
    let changes = baseline.as_ref().map(|baseline| {
        let (old_report, old_marks) = baseline.judge(&labels);
        Changes::of((&report, &marks), (old_report, &old_marks), args.examples)
    });
    tell(&report, changes.as_ref(), args.format)
}

impl Side {
    async fn open(config: &Config, job: &str) -> Result<Self> {
        let catalog = JobCatalog::load(&config.jobs).map_err(crate::check::problems_error)?;
        let spec = catalog.get(job)?.clone();
        let Some(annotate) = &spec.annotate else {
            bail!("job {job} has no [annotate] section, so it has no answers to judge")
        };
        let session = crate::ask::open(config, Some(job)).await?;
        let answers = answers::read(&session, annotate).await.with_context(|| format!("job {job}"))?;
        let judge = Judge::new(&annotate.columns);
        let tables = config.job_tables(job).url;
        Ok(Self { spec, tables, answers, judge })
    }

    /// The figures over the labels of the job's kind.
    fn judge<'a>(&'a self, labels: &'a [Label]) -> (Report, Vec<Mark<'a>>) {
        let is_mine = |label: &&Label| label.kind.as_deref().is_none_or(|kind| kind == self.spec.kind.as_str());
        let mine: Vec<&Label> = labels.iter().filter(is_mine).collect();
        let labelled = mine.iter().filter(|label| self.answers.rows.contains_key(&label.id)).count();
        let marks = marks(&mine, &self.answers, &self.judge);
        let unlabelled = self.answers.rows.len() - labelled;
        let report = Report::of((&self.spec.name, &self.tables), &marks, unlabelled, labels.len() - mine.len());
        (report, marks)
    }
}

fn tell(report: &Report, changes: Option<&Changes>, format: EvalFormat) -> Result<()> {
    let mut output = std::io::stdout().lock();
    match (format, changes) {
        (EvalFormat::Table, None) => write!(output, "{report}")?,
        (EvalFormat::Table, Some(changes)) => write!(output, "{report}\n{changes}")?,
        (EvalFormat::Json, changes) => {
            let mut told = json!(report);
            if let Some(changes) = changes {
                told["against"] = json!(changes);
            }
            writeln!(output, "{}", serde_json::to_string_pretty(&told)?)?;
        }
    }
    Ok(output.flush()?)
}
