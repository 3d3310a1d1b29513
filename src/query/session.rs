//! A read-only SQL session over the tables of the jobs.
//!
//! It knows DataFusion and how jobs become schemas; it does not know configuration files or output formats. Object
//! stores other than local files must be registered with deltalake by the caller before the first statement.
//! Invariant: no statement changes a table, a file or the session itself.

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
use super::files::{self, NamedFile};
use super::functions;
use super::job_tables::JobTables;

const CATALOG: &str = "assay";

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
/// with the tables `results` and `rejections` and the view `latest`. Files that the caller names are in the schema `files`.
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

    /// Lets statements read a file as well, as `files.NAME`.
    ///
    /// # Errors
    /// [`QueryError::File`] when it is not there, or is no Parquet, CSV or JSON lines; a name that is taken.
    pub async fn read_also(&self, file: &NamedFile) -> Result<(), QueryError> {
        let table = files::open(&self.context, file).await?;
        self.jobs.files().register_table(file.name.clone(), table)?;
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use datafusion::arrow::util::pretty::pretty_format_batches;
    use futures::TryStreamExt;

    use super::*;
    use crate::query::Format;
    use crate::query::fixture::{append_rejection, append_results, job};
    use crate::query::print;

    async fn answer(session: &QuerySession, sql: &str) -> Result<String, QueryError> {
        let mut output = Vec::new();
        print::write(session.run(sql).await?, Format::Csv, &mut output).await?;
        Ok(String::from_utf8(output).unwrap())
    }

    async fn open(base: &Path, jobs: &[&str], default_job: Option<&str>) -> Result<QuerySession, QueryError> {
        let tables: Vec<_> = jobs.iter().map(|name| job(base, name)).collect();
        QuerySession::open(&tables, default_job).await
    }

    #[tokio::test]
    async fn latest_follows_event_time_then_offset_and_leaves_removed_assets_out() {
        let base = tempfile::tempdir().unwrap();
        let rows = [
            ("late", 0, Some(300), false),
            ("late", 1, Some(100), false),
            ("tie", 2, Some(100), false),
            ("tie", 3, Some(100), false),
            ("timeless", 4, Some(1), false),
            ("timeless", 5, None, false),
            ("never-timed", 6, None, false),
            ("never-timed", 7, None, false),
            ("removed", 8, Some(100), false),
            ("removed", 9, Some(200), true),
            ("again", 10, Some(100), true),
            ("old-tombstone", 11, Some(200), false),
        ];
        append_results(base.path(), "demo", &rows).await;
        append_results(base.path(), "demo", &[("again", 12, Some(200), false), ("old-tombstone", 13, Some(1), true)])
            .await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let latest = answer(&session, "SELECT asset_id, \"offset\" FROM latest ORDER BY asset_id").await.unwrap();
        let expected = "asset_id,offset\nagain,12\nlate,0\nnever-timed,7\nold-tombstone,11\ntie,3\ntimeless,4\n";
        assert_eq!(latest, expected);
    }

    #[tokio::test]
    async fn a_condition_on_latest_is_asked_of_last_rows_only() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, Some(1), false), ("a", 1, Some(2), false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let old = answer(&session, "SELECT asset_id FROM latest WHERE \"offset\" = 0").await.unwrap();
        assert_eq!(old, "asset_id\n");
        let all = answer(&session, "SELECT * FROM latest WHERE asset_id = 'a'").await.unwrap();
        assert!(
            all.starts_with("asset_id,topic,partition,offset,event_time,headers,deleted,image_embedding\na,"),
            "{all}"
        );
        assert_eq!(all.lines().count(), 2);
    }

    #[tokio::test]
    async fn embeddings_are_read_only_when_they_are_selected() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, Some(1), false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let plan = async |columns: &str| {
            let plan = session.context.sql(&format!("SELECT {columns} FROM latest")).await.unwrap();
            let plan = plan.create_physical_plan().await.unwrap();
            datafusion::physical_plan::displayable(plan.as_ref()).indent(true).to_string()
        };
        let narrow = plan("asset_id").await;
        assert!(narrow.contains("event_time") && !narrow.contains("image_embedding"), "{narrow}");
        assert!(!narrow.contains("headers"), "{narrow}");
        let wide = plan("asset_id, image_embedding").await;
        assert!(wide.contains("image_embedding"), "{wide}");
    }

    #[tokio::test]
    async fn a_job_is_a_schema_by_its_name_with_underscores_and_by_its_quoted_name() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "ad-copy", &[("ad", 0, Some(1), false)]).await;
        append_results(base.path(), "product-embedding", &[("product", 0, Some(1), false)]).await;
        append_rejection(base.path(), "ad-copy", "bad", "schema").await;
        let session = open(base.path(), &["ad-copy", "product-embedding"], Some("ad-copy")).await.unwrap();
        for (sql, expected) in [
            ("SELECT asset_id FROM results", "ad"),
            ("SELECT asset_id FROM rejections;", "bad"),
            ("SELECT asset_id FROM product_embedding.latest", "product"),
            ("SELECT asset_id FROM \"product-embedding\".results", "product"),
        ] {
            assert_eq!(answer(&session, sql).await.unwrap(), format!("asset_id\n{expected}\n"), "{sql}");
        }
        let both = "SELECT count(*) AS n FROM results a JOIN product_embedding.results b USING (\"offset\")";
        assert_eq!(answer(&session, both).await.unwrap(), "n\n1\n");
    }

    #[tokio::test]
    async fn without_a_default_job_a_bare_name_is_explained() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "b", &[("x", 0, None, false)]).await;
        let session = open(base.path(), &["a-1", "b"], None).await.unwrap();
        let error = answer(&session, "SELECT * FROM latest").await.unwrap_err();
        assert!(error.to_string().contains("for example a_1.latest"), "{error}");
        assert_eq!(answer(&session, "SELECT asset_id FROM b.latest").await.unwrap(), "asset_id\nx\n");
    }

    #[tokio::test]
    async fn a_table_that_was_never_written_says_so_and_is_found_once_it_is() {
        let base = tempfile::tempdir().unwrap();
        let session = open(base.path(), &["new-job"], None).await.unwrap();
        assert!(session.tables().await.iter().all(|name| !name.written));
        for table in ["results", "latest"] {
            let error = answer(&session, &format!("SELECT * FROM {table}")).await.unwrap_err();
            assert!(matches!(&error, QueryError::NothingWritten { job, .. } if job == "new-job"), "{error:?}");
        }
        append_results(base.path(), "new-job", &[("a", 0, None, false)]).await;
        assert_eq!(answer(&session, "SELECT asset_id FROM latest").await.unwrap(), "asset_id\na\n");
        append_results(base.path(), "new-job", &[("b", 1, None, false)]).await;
        assert_eq!(answer(&session, "SELECT count(*) AS n FROM results").await.unwrap(), "n\n2\n");
        let shown = answer(&session, "SHOW TABLES").await.unwrap();
        assert!(shown.contains("new_job,latest,VIEW") && !shown.contains("rejections"), "{shown}");
    }

    #[tokio::test]
    async fn statements_that_change_something_are_refused_and_questions_are_not() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, None, false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let file = base.path().join("out.csv");
        for sql in [
            "DROP TABLE results".to_owned(),
            "DELETE FROM results".to_owned(),
            "UPDATE results SET deleted = true".to_owned(),
            "INSERT INTO results SELECT * FROM results".to_owned(),
            "CREATE TABLE t AS SELECT 1".to_owned(),
            "CREATE VIEW v AS SELECT 1".to_owned(),
            format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{}'", file.display()),
            format!("COPY (SELECT 1) TO '{}'", file.display()),
            format!("EXPLAIN ANALYZE COPY (SELECT 1) TO '{}'", file.display()),
            "SET datafusion.execution.batch_size = 1".to_owned(),
            "RESET datafusion.execution.batch_size".to_owned(),
            "PREPARE p AS SELECT 1".to_owned(),
        ] {
            let error = answer(&session, &sql).await.unwrap_err();
            assert!(matches!(error, QueryError::Refused { .. }), "{sql}: {error:?}");
        }
        assert!(!file.exists());
        std::fs::write(&file, "a\n1\n").unwrap();
        let direct = answer(&session, &format!("SELECT * FROM '{}'", file.display())).await.unwrap_err();
        assert!(matches!(direct, QueryError::Statement { .. }), "{direct:?}");
        for sql in ["EXPLAIN SELECT * FROM latest", "DESCRIBE latest", "SHOW COLUMNS FROM results", "SHOW TABLES"] {
            assert!(answer(&session, sql).await.unwrap().lines().count() > 1, "{sql}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_only_when_it_was_named() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, None, false), ("b", 1, None, false)]).await;
        let file = |name: &str, text: &str| {
            let path = base.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let labels = file("labels [1].jsonl", "{\"id\": \"a\", \"truth\": \"mug\"}\n");
        let prices = file("prices.csv", "id,price\na,3.5\nb,4\n");
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let sql = "SELECT truth, price FROM latest JOIN files.labels l ON asset_id = l.id JOIN files.prices p ON asset_id = p.id";
        assert!(answer(&session, sql).await.is_err());
        for (name, path) in [("labels", &labels), ("prices", &prices)] {
            session.read_also(&NamedFile { name: name.to_owned(), path: path.clone() }).await.unwrap();
        }
        assert_eq!(answer(&session, sql).await.unwrap(), "truth,price\nmug,3.5\n");
        let shown = answer(&session, "SHOW TABLES").await.unwrap();
        assert!(shown.contains("files,labels"), "{shown}");
        for sql in ["INSERT INTO files.prices VALUES ('c', 1)", "DROP TABLE files.prices"] {
            assert!(matches!(answer(&session, sql).await, Err(QueryError::Refused { .. })), "{sql}");
        }
        let twice = session.read_also(&NamedFile { name: "labels".to_owned(), path: labels }).await.unwrap_err();
        assert!(twice.to_string().contains("labels"), "{twice}");
        for (path, part) in [
            (base.path().join("gone.csv"), "No such file"),
            (base.path().to_owned(), "no file"),
            (file("notes.txt", "x"), "must end in"),
            (file("broken.parquet", "PAR"), "cannot be read as a table"),
            (file("broken.jsonl", "{\"a\": "), "cannot be read as a table"),
            (file("empty.jsonl", ""), "no columns"),
        ] {
            let error = session.read_also(&NamedFile { name: "x".to_owned(), path: path.clone() }).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(part) && text.contains(path.to_str().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_named_file_has_a_plain_name_and_a_path() {
        let file: NamedFile = "labels=some=where.csv".parse().unwrap();
        assert_eq!((file.name.as_str(), file.path.to_str().unwrap()), ("labels", "some=where.csv"));
        for wrong in ["labels.csv", "=x.csv", "a-b=x.csv", "A=x.csv", "1a=x.csv", "a="] {
            assert!(wrong.parse::<NamedFile>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn unknown_columns_and_broken_sql_are_explained_without_a_stack_of_contexts() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, None, false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        for (sql, part) in [
            ("SELECT asset_idd FROM results", "Did you mean"),
            ("SELECT 1 FROM nothing", "nothing"),
            ("SELEC 1", "SELEC"),
        ] {
            let error = answer(&session, sql).await.unwrap_err();
            assert!(matches!(error, QueryError::Statement { .. }), "{sql}: {error:?}");
            assert!(error.to_string().contains(part) && error.to_string().lines().count() <= 2, "{sql}: {error}");
        }
    }

    #[tokio::test]
    async fn similarity_orders_rows_by_their_embedding() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("far", 0, None, false), ("near", 10_000, None, false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let sql = "SELECT asset_id FROM latest ORDER BY cosine_similarity(image_embedding, \
                   (SELECT image_embedding FROM results WHERE asset_id = 'near')) DESC";
        assert_eq!(answer(&session, sql).await.unwrap(), "asset_id\nnear\nfar\n");
    }

    #[tokio::test]
    async fn a_query_over_its_memory_limit_says_so() {
        let base = tempfile::tempdir().unwrap();
        let options = Options { memory: ByteSize::kib(64) };
        let session = QuerySession::open_with(&[job(base.path(), "demo")], None, &options).await.unwrap();
        let sql = "SELECT value, count(*) FROM generate_series(1, 1000000) GROUP BY value ORDER BY value DESC LIMIT 1";
        let error = match session.run(sql).await {
            Ok(batches) => batches.try_collect::<Vec<_>>().await.map_err(QueryError::from).unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, QueryError::Memory { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn jobs_that_cannot_be_told_apart_and_unknown_defaults_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let clash = open(base.path(), &["a-b", "a_b"], None).await.unwrap_err();
        assert!(matches!(clash, QueryError::NameClash { .. }), "{clash:?}");
        let unknown = open(base.path(), &["a", "b"], Some("c")).await.unwrap_err();
        assert_eq!(unknown.to_string(), "there is no job c; the jobs are: a, b");
    }

    #[tokio::test]
    async fn options_never_show_in_debug_output() {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, None, false)]).await;
        let session = open(base.path(), &["demo"], None).await.unwrap();
        let batches: Vec<_> = session.run("SHOW ALL").await.unwrap().try_collect().await.unwrap();
        let shown = pretty_format_batches(&batches).unwrap();
        let debugged = format!("{session:?} {:?} {shown}", job(base.path(), "demo"));
        assert!(!debugged.contains("hidden"), "{debugged}");
    }
}
