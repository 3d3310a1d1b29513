//! One Delta table: created on first use, widened when columns are added, refused when it cannot be continued.
//!
//! Knows schemas and partition columns; knows no offsets. Invariant: structure changes only by adding nullable columns,
//! each change the very next version of the log, so two workers that start at once agree on one table.
//!
//! `delta.setTransactionRetentionDuration` is never set: it would let the table forget the offsets of idle partitions.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::SchemaRef;
use deltalake::BlindDeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{MetadataExt, StructField, StructType, new_metadata};
use deltalake::logstore::LogStoreRef;
use serde_json::{Value as Json, json};
use tokio::sync::Mutex;

use super::log::{Appended, BATCH_KEY, Log};
use super::store::sink_error;
use crate::domain::{ColumnType, TableSchema};
use crate::sink::api::SinkError;
use crate::sink::encode::arrow_schema;

/// Writer features of a foreign table that an append by this room respects.
const UNDERSTOOD_FEATURES: [&str; 2] = ["appendOnly", "invariants"];

/// Characters that Parquet readers refuse in column names of plain Delta tables.
const FORBIDDEN_IN_NAMES: &str = " ,;{}()\n\t=";

/// A table of one job.
pub(super) struct Table {
    /// Its URL, for messages.
    pub(super) name: String,
    /// `results` or `rejections`, as the label of metrics.
    pub(super) kind: &'static str,
    /// The columns that this process writes; the table may have more.
    pub(super) schema: TableSchema,
    pub(super) store: LogStoreRef,
    pub(super) log: Log,
    partition_by: Vec<String>,
    structure: Mutex<Option<Structure>>,
}

/// The shape of the table in its log: what files must look like.
#[derive(Clone)]
pub(super) struct Structure {
    pub(super) table: BlindDeltaTable,
    pub(super) schema: SchemaRef,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProtocolLine {
    min_writer_version: i32,
    writer_features: Option<Vec<String>>,
}

impl Table {
    /// Does not touch the store. The log store decides where the table lies; `instance` names the writer.
    pub(super) fn new(
        kind: &'static str,
        schema: TableSchema,
        partition_by: Vec<String>,
        store: LogStoreRef,
        instance: &str,
    ) -> Result<Self, SinkError> {
        let name = store.root_url().to_string();
        check_columns(&name, &schema)?;
        check_partition_columns(&name, &schema, &partition_by)?;
        let log = Log::new(&name, store.clone(), instance);
        Ok(Self { name, kind, schema, store, log, partition_by, structure: Mutex::new(None) })
    }

    /// The table's shape, at least as new as the given version of its log; creates and widens the table where needed.
    pub(super) async fn structure(&self, at_least: u64) -> Result<Structure, SinkError> {
        let mut guard = self.structure.lock().await;
        if let Some(structure) = guard.as_ref().filter(|structure| structure.table.version() >= at_least) {
            return Ok(structure.clone());
        }
        let structure = self.open().await?;
        *guard = Some(structure.clone());
        Ok(structure)
    }

    /// Creates the table, or adds the columns that it lacks, until log and schema agree.
    async fn open(&self) -> Result<Structure, SinkError> {
        let ours: StructType = arrow_schema(&self.schema).as_ref().try_into_kernel().map_err(|error| {
            SinkError::Configuration { table: self.name.clone(), detail: format!("schema: {error}") }
        })?;
        loop {
            // Asked of the log's folder: a local table whose folder is missing is a new table, though loading it fails.
            if !self.store.is_delta_table_location().await.map_err(|error| sink_error(&self.name, error))? {
                // When another worker was faster, its table is looked at like any other.
                if self.create(&ours).await? == Appended::Written {
                    tracing::info!(table = %self.name, "table created");
                }
                continue;
            }
            let found = BlindDeltaTable::try_new_with_log_store(self.store.clone()).await;
            let found = found.map_err(|error| sink_error(&self.name, error))?;
            self.check_layout(&found)?;
            match self.widened(&found.schema(), &ours)? {
                None => {
                    let schema = found.arrow_schema().map_err(|error| sink_error(&self.name, error))?;
                    return Ok(Structure { table: found, schema });
                }
                Some(schema) => {
                    if self.widen(&found, &schema).await? == Appended::Written {
                        tracing::info!(table = %self.name, "columns added to the table");
                    }
                }
            }
        }
    }

    async fn create(&self, schema: &StructType) -> Result<Appended, SinkError> {
        let configuration: [(&str, &str); 0] = [];
        let metadata =
            new_metadata(schema, &self.partition_by, configuration).map_err(|error| sink_error(&self.name, error))?;
        let lines = [
            commit_info("CREATE TABLE", json!({}), None),
            json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}),
            json!({"metaData": metadata}),
        ];
        self.log.append(0, &lines).await
    }

    async fn widen(&self, found: &BlindDeltaTable, schema: &StructType) -> Result<Appended, SinkError> {
        let metadata = found.metadata().clone().with_schema(schema).map_err(|error| sink_error(&self.name, error))?;
        let lines = [commit_info("ADD COLUMNS", json!({}), None), json!({"metaData": metadata})];
        self.log.append(found.version() + 1, &lines).await
    }

    /// Partitioning and protocol cannot be changed by appending.
    fn check_layout(&self, found: &BlindDeltaTable) -> Result<(), SinkError> {
        let theirs = found.metadata().partition_columns();
        if theirs != self.partition_by.as_slice() {
            return Err(self.incompatible(format!(
                "it is partitioned by {theirs:?}, configured is {:?}; set tables.partition_by accordingly or use \
                 another table",
                self.partition_by
            )));
        }
        let protocol: ProtocolLine = serde_json::to_value(found.protocol())
            .and_then(serde_json::from_value)
            .map_err(|error| self.incompatible(format!("protocol: {error}")))?;
        let mut features = protocol.writer_features.unwrap_or_default();
        features.retain(|feature| !UNDERSTOOD_FEATURES.contains(&feature.as_str()));
        let version = protocol.min_writer_version;
        if !features.is_empty() || (3..7).contains(&version) {
            return Err(self.incompatible(format!(
                "it asks writers for protocol version {version} with {features:?}, which this version does not write"
            )));
        }
        Ok(())
    }

    /// The table's schema with our missing columns behind its own; none when nothing is missing.
    fn widened(&self, theirs: &StructType, ours: &StructType) -> Result<Option<StructType>, SinkError> {
        let mut fields: Vec<StructField> = theirs.fields().cloned().collect();
        let known = fields.len();
        for field in ours.fields() {
            let Some(found) = theirs.field(field.name()) else {
                fields.push(StructField::nullable(field.name(), field.data_type().clone()));
                continue;
            };
            if found.data_type() != field.data_type() {
                return Err(self.incompatible(format!(
                    "column {} is {} in the table and {} in the job; rename the column or use another table",
                    field.name(),
                    found.data_type(),
                    field.data_type()
                )));
            }
        }
        for found in theirs.fields().filter(|found| !found.is_nullable()) {
            if ours.field(found.name()).is_none_or(StructField::is_nullable) {
                let name = found.name();
                return Err(self.incompatible(format!("column {name} is required in the table, but not in the job")));
            }
        }
        if fields.len() == known {
            return Ok(None);
        }
        StructType::try_new(fields).map(Some).map_err(|error| self.incompatible(error.to_string()))
    }

    fn incompatible(&self, detail: String) -> SinkError {
        SinkError::Incompatible { table: self.name.clone(), detail }
    }
}

impl Structure {
    /// Orders a batch's columns as the table has them; columns that the batch lacks are null.
    pub(super) fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
        let columns: Vec<ArrayRef> = self
            .schema
            .fields()
            .iter()
            .map(|field| match batch.column_by_name(field.name()) {
                Some(column) => Arc::clone(column),
                None => new_null_array(field.data_type(), batch.num_rows()),
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }
}

/// The information line of a commit; a commit of rows names the batch that it came from.
pub(super) fn commit_info(operation: &str, parameters: Json, batch: Option<&str>) -> Json {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut info = json!({
        "timestamp": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        "operation": operation,
        "operationParameters": parameters,
        "engineInfo": concat!("assay/", env!("CARGO_PKG_VERSION")),
    });
    if let Some(batch) = batch {
        info["isBlindAppend"] = Json::Bool(true);
        info[BATCH_KEY] = Json::String(batch.to_owned());
    }
    json!({"commitInfo": info})
}

fn check_columns(table: &str, schema: &TableSchema) -> Result<(), SinkError> {
    let mut seen = std::collections::HashSet::new();
    for column in &schema.columns {
        let wrong = |detail: &str| {
            Err(SinkError::Configuration {
                table: table.to_owned(),
                detail: format!("column {:?} {detail}", column.name),
            })
        };
        if column.name.is_empty() || column.name.contains(|letter| FORBIDDEN_IN_NAMES.contains(letter)) {
            return wrong("has a name that tables cannot hold; use letters, digits and underscores");
        }
        if !seen.insert(column.name.to_lowercase()) {
            return wrong("occurs twice; names differ by more than case");
        }
    }
    Ok(())
}

fn check_partition_columns(table: &str, schema: &TableSchema, columns: &[String]) -> Result<(), SinkError> {
    for name in columns {
        let wrong = |detail: &str| {
            let detail = format!("tables.partition_by names {name}, {detail}");
            Err(SinkError::Configuration { table: table.to_owned(), detail })
        };
        let Some(position) = schema.position(name) else {
            return wrong("which is no column of this table");
        };
        if !matches!(
            schema.columns[position].kind,
            ColumnType::Boolean | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Text | ColumnType::Timestamp
        ) {
            return wrong("whose type cannot partition a table; use a boolean, integer, text or timestamp column");
        }
    }
    if !columns.is_empty() && columns.len() >= schema.columns.len() {
        let detail = "tables.partition_by names every column; at least one must remain".to_owned();
        return Err(SinkError::Configuration { table: table.to_owned(), detail });
    }
    Ok(())
}
