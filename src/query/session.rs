//! A read-only SQL session over the tables of the jobs.
//!
//! It knows DataFusion and how jobs become schemas; it does not know configuration files or output formats. Object
//! stores other than local files must be registered with deltalake by the caller before the first statement.
//! Invariant: no statement changes a table, a file or the session itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytesize::ByteSize;
use datafusion::catalog::SchemaProvider;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder};
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use serde::{Deserialize, Serialize};

use super::catalog::{Jobs, LATEST, NO_DEFAULT, REJECTIONS, RESULTS, schema_name};
use super::error::QueryError;
use super::functions;

const CATALOG: &str = "assay";

/// Where the tables of one job lie.
#[derive(Clone)]
pub struct JobTables {
    pub job: String,
    /// The folder of the job's tables: `results` and `rejections` lie in it.
    pub url: String,
    /// Keys of object_store; they may hold secrets.
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for JobTables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JobTables").field("job", &self.job).field("url", &self.url).finish_non_exhaustive()
    }
}

/// What a session may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Memory for sorting, joining and grouping; what needs more goes to temporary files.
    pub memory: ByteSize,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: ByteSize::gib(1) }
    }
}

/// A table as it is named in SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    pub schema: String,
    pub table: &'static str,
    /// Whether it can be read; a table does not exist before its job has run.
    pub written: bool,
}

/// A session over the tables of jobs.
///
/// Each job is a schema, named like the job with underscores for hyphens (the name in double quotes works as well),
/// with the tables `results` and `rejections` and the view `latest`.
pub struct QuerySession {
    context: SessionContext,
    jobs: Arc<Jobs>,
}

impl fmt::Debug for QuerySession {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QuerySession").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

impl QuerySession {
    /// A session with default [`Options`]; see [`QuerySession::open_with`].
    ///
    /// # Errors
    /// [`QueryError::UnknownJob`] and [`QueryError::NameClash`].
    pub async fn open(tables: &[JobTables], default_job: Option<&str>) -> Result<Self, QueryError> {
        Self::open_with(tables, default_job, &Options::default()).await
    }

    /// A session in which bare table names are those of `default_job`, or of the only job.
    ///
    /// A table that cannot be read is no error until a statement names it.
    ///
    /// # Errors
    /// [`QueryError::UnknownJob`] when the default is none of the jobs, [`QueryError::NameClash`] when two jobs have one
    /// schema name.
    pub async fn open_with(
        tables: &[JobTables],
        default_job: Option<&str>,
        options: &Options,
    ) -> Result<Self, QueryError> {
        let default_schema = default_schema(tables, default_job)?;
        let jobs = Arc::new(Jobs::new(tables)?);
        futures::future::join_all(jobs.schemas().values().map(|schema| schema.look())).await;

        let memory = usize::try_from(options.memory.as_u64()).unwrap_or(usize::MAX);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(memory))).build_arc()?;
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, default_schema)
            // Partition columns are dictionaries; pushing their values into the other side of a join can panic.
            .set_usize("datafusion.optimizer.hash_join_inlist_pushdown_max_size", 0)
            .set_usize("datafusion.optimizer.hash_join_inlist_pushdown_max_distinct_values", 0);
        let state =
            SessionStateBuilder::new_with_default_features().with_config(config).with_runtime_env(runtime).build();
        let context = SessionContext::new_with_state(state);
        context.register_catalog(CATALOG, Arc::clone(&jobs) as _);
        context.register_udf(functions::cosine_similarity());
        Ok(Self { context, jobs })
    }

    /// Starts one statement; the answer streams while it is read.
    ///
    /// # Errors
    /// [`QueryError::Refused`] for anything but a question, and whatever makes it impossible to plan.
    pub async fn run(&self, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        let state = self.context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let statement = state.sql_to_statement(sql, &dialect)?;
        if !is_question(&statement) {
            return Err(QueryError::Refused { verb: verb(&statement) });
        }
        let plan = state.statement_to_plan(statement).await?;
        // A second look at the plan: a question may carry a change inside, such as SELECT INTO.
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        if read_only.verify_plan(&plan).is_err() {
            return Err(QueryError::Refused { verb: "a statement that changes something".to_owned() });
        }
        Ok(self.context.execute_logical_plan(plan).await?.execute_stream().await?)
    }

    /// All tables of all jobs, as they are now.
    pub async fn tables(&self) -> Vec<TableName> {
        let mut names = Vec::new();
        for (schema, tables) in self.jobs.schemas() {
            tables.look().await;
            let written = tables.table_names();
            for table in [LATEST, RESULTS, REJECTIONS] {
                let written = written.iter().any(|name| name == table);
                names.push(TableName { schema: schema.clone(), table, written });
            }
        }
        names
    }
}

fn default_schema(tables: &[JobTables], default_job: Option<&str>) -> Result<String, QueryError> {
    match (default_job, tables) {
        (Some(job), _) if tables.iter().any(|known| known.job == job) => Ok(schema_name(job)),
        (Some(job), _) => {
            let known = tables.iter().map(|known| known.job.as_str()).collect::<Vec<_>>().join(", ");
            Err(QueryError::UnknownJob { job: job.to_owned(), known })
        }
        (None, [only]) => Ok(schema_name(&only.job)),
        (None, _) => Ok(NO_DEFAULT.to_owned()),
    }
}

fn is_question(statement: &Statement) -> bool {
    match statement {
        Statement::Explain(explain) => is_question(&explain.statement),
        Statement::Statement(statement) => is_sql_question(statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}

fn is_sql_question(statement: &SqlStatement) -> bool {
    match statement {
        SqlStatement::Explain { statement, .. } => is_sql_question(statement),
        SqlStatement::Query(_)
        | SqlStatement::ExplainTable { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowVariable { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowSchemas { .. }
        | SqlStatement::ShowCreate { .. } => true,
        _ => false,
    }
}

/// The first word of a statement, which is what its author calls it.
fn verb(statement: &Statement) -> String {
    match statement {
        Statement::Explain(explain) => verb(&explain.statement),
        other => other.to_string().split_whitespace().next().unwrap_or_default().to_uppercase(),
    }
}
