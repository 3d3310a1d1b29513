//! The jobs as schemas of a DataFusion catalog: `results` and `rejections` as Delta tables, `latest` as a view.
//!
//! It knows which columns make a row the last one of its asset; it does not know SQL text or printing.
//! Invariant: a table is opened at the newest version when a statement names it, and never written; what `latest`
//! shows of an asset is decided over all its rows, before rows of removed assets are left out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, TableType};
use datafusion::prelude::{Expr, ident, lit};
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use tokio::sync::Mutex;
use url::Url;

use super::error::QueryError;
use super::files::FILES;
use super::job_tables::JobTables;

pub(super) const RESULTS: &str = "results";
pub(super) const REJECTIONS: &str = "rejections";
pub(super) const LATEST: &str = "latest";
/// The schema that bare names belong to when no job is the default.
pub(super) const NO_DEFAULT: &str = "no_default_job";

/// All jobs. A job is found by its name with underscores and by its name as it is written.
#[derive(Debug)]
pub(super) struct Jobs {
    schemas: BTreeMap<String, Arc<JobSchema>>,
    files: Arc<MemorySchemaProvider>,
    without_default: Arc<NoDefaultJob>,
}

impl Jobs {
    pub(super) fn new(tables: &[JobTables]) -> Result<Self, QueryError> {
        let mut schemas: BTreeMap<String, Arc<JobSchema>> = BTreeMap::new();
        for job in tables {
            let schema = schema_name(&job.job);
            if schema == FILES {
                let (first, second) = (job.job.clone(), "the files of --with".to_owned());
                return Err(QueryError::NameClash { first, second, schema });
            }
            if let Some(other) = schemas.get(&schema) {
                let (first, second) = (other.results.job.clone(), job.job.clone());
                return Err(QueryError::NameClash { first, second, schema });
            }
            schemas.insert(schema, Arc::new(JobSchema::new(job)));
        }
        let example = schemas.keys().next().cloned().unwrap_or_else(|| "job".to_owned());
        Ok(Self { schemas, files: Arc::default(), without_default: Arc::new(NoDefaultJob { example }) })
    }

    /// The tables that are files.
    pub(super) fn files(&self) -> &MemorySchemaProvider {
        &self.files
    }

    /// Each job's schema name with its tables.
    pub(super) fn schemas(&self) -> &BTreeMap<String, Arc<JobSchema>> {
        &self.schemas
    }
}

/// What a job is called in SQL without quotes.
pub(super) fn schema_name(job: &str) -> String {
    job.replace('-', "_")
}

impl CatalogProvider for Jobs {
    fn schema_names(&self) -> Vec<String> {
        let files = (!self.files.table_names().is_empty()).then(|| FILES.to_owned());
        self.schemas.keys().cloned().chain(files).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == NO_DEFAULT {
            return Some(Arc::clone(&self.without_default) as Arc<dyn SchemaProvider>);
        }
        if name == FILES {
            return Some(Arc::clone(&self.files) as Arc<dyn SchemaProvider>);
        }
        let by_name = || self.schemas.values().find(|schema| schema.results.job == name);
        let schema = self.schemas.get(name).or_else(by_name)?;
        Some(Arc::clone(schema) as Arc<dyn SchemaProvider>)
    }
}

/// The tables of one job.
#[derive(Debug)]
pub(super) struct JobSchema {
    results: JobTable,
    rejections: JobTable,
}

impl JobSchema {
    fn new(job: &JobTables) -> Self {
        Self { results: JobTable::new(job, RESULTS), rejections: JobTable::new(job, REJECTIONS) }
    }

    /// Looks which tables exist, so that lists of tables name them.
    pub(super) async fn look(&self) {
        for table in [&self.results, &self.rejections] {
            if let Err(error) = table.open().await
                && !matches!(error, QueryError::NothingWritten { .. })
            {
                tracing::debug!(job = table.job, table = table.name, error = %error, "table is not listed");
            }
        }
    }
}

#[async_trait]
impl SchemaProvider for JobSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.results.exists.load(Ordering::Relaxed) {
            names.extend([LATEST.to_owned(), RESULTS.to_owned()]);
        }
        if self.rejections.exists.load(Ordering::Relaxed) {
            names.push(REJECTIONS.to_owned());
        }
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match name {
            RESULTS => self.results.provider().await.map(Some),
            REJECTIONS => self.rejections.provider().await.map(Some),
            LATEST => {
                let plan = latest(self.results.provider().await?)?;
                Ok(Some(Arc::new(ViewTable::new(plan, None))))
            }
            _ => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(match name {
            RESULTS | REJECTIONS => Some(TableType::Base),
            LATEST => Some(TableType::View),
            _ => None,
        })
    }

    fn table_exist(&self, name: &str) -> bool {
        matches!(name, RESULTS | REJECTIONS | LATEST)
    }
}

/// Answers for bare table names when it is not clear whose they are.
#[derive(Debug)]
struct NoDefaultJob {
    example: String,
}

#[async_trait]
impl SchemaProvider for NoDefaultJob {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if !self.table_exist(name) {
            return Ok(None);
        }
        let example = format!("{}.{name}", self.example);
        Err(QueryError::Ambiguous { table: name.to_owned(), example }.into())
    }

    fn table_exist(&self, name: &str) -> bool {
        matches!(name, RESULTS | REJECTIONS | LATEST)
    }
}

/// One Delta table; it is kept after the first use, so that the next statement reads only the newer part of its log.
struct JobTable {
    job: String,
    name: &'static str,
    url: String,
    options: BTreeMap<String, String>,
    exists: AtomicBool,
    opened: Mutex<Option<DeltaTable>>,
}

impl fmt::Debug for JobTable {
    /// Without the options, which may hold secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JobTable").field("job", &self.job).field("name", &self.name).finish_non_exhaustive()
    }
}

impl JobTable {
    fn new(job: &JobTables, name: &'static str) -> Self {
        Self {
            job: job.job.clone(),
            name,
            url: format!("{}/{name}", job.url.trim_end_matches('/')),
            options: job.options.clone(),
            exists: AtomicBool::new(false),
            opened: Mutex::new(None),
        }
    }

    async fn provider(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        self.open().await?.table_provider().await
    }

    async fn open(&self) -> Result<DeltaTable, QueryError> {
        let mut opened = self.opened.lock().await;
        // Taken out while it is read: after an error, or when the caller gives up, the next use starts afresh.
        let table = match opened.take() {
            Some(mut table) => table.update_state().await.map(|()| table),
            None => self.load().await,
        };
        let table = table.map_err(|error| self.explain(&error))?;
        self.exists.store(true, Ordering::Relaxed);
        *opened = Some(table.clone());
        Ok(table)
    }

    async fn load(&self) -> Result<DeltaTable, DeltaTableError> {
        let url = Url::parse(&self.url).map_err(|error| DeltaTableError::InvalidTableLocation(error.to_string()))?;
        // The local store reports a missing folder as an error of its own kind.
        if let Ok(path) = url.to_file_path()
            && !Path::new(&path).exists()
        {
            return Err(DeltaTableError::NotATable(self.url.clone()));
        }
        let options = self.options.clone().into_iter().collect();
        DeltaTableBuilder::from_url(url)?.with_storage_options(options).load().await
    }

    fn explain(&self, error: &DeltaTableError) -> QueryError {
        let (job, table) = (self.job.clone(), self.name.to_owned());
        match error {
            DeltaTableError::NotATable(_) => QueryError::NothingWritten { job, table },
            other => QueryError::Table { job, table, url: self.url.clone(), detail: other.to_string() },
        }
    }
}

/// The last row of each asset, without assets whose last row removes them.
///
/// Last is by event time (a row without one counts as oldest), then by offset; topic and partition break the ties that
/// are left, so that the answer does not depend on the order of files.
fn latest(results: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
    let columns: Vec<Expr> = results.schema().fields().iter().map(|field| ident(field.name())).collect();
    let newest_first = |name: &str| ident(name).sort(false, false);
    let age = row_number()
        .partition_by(vec![ident("asset_id")])
        .order_by(["event_time", "offset", "topic", "partition"].map(newest_first).to_vec())
        .build()?;
    let aged = LogicalPlanBuilder::scan(RESULTS, provider_as_source(results), None)?.window([age])?;
    // A window adds its column behind those of its input, under a name that only the planner knows.
    let age_column = aged.schema().columns().pop().map(Expr::Column).expect("a window adds a column");
    aged.filter(age_column.eq(lit(1_u64)).and(ident("deleted").is_not_true()))?.project(columns)?.build()
}
