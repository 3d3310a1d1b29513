//! Writes rows as Parquet files of a table and describes them for its log.
//!
//! Knows files, not versions: a file counts only once a commit names it, and what is never named is vacuumed later.
//! Encoding and compression run off the asynchronous threads.

use deltalake::kernel::Add;
use deltalake::writer::{DeltaWriter, RecordBatchWriter};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tokio::runtime::Handle;

use super::store::sink_error;
use super::table::{Structure, Table};
use crate::domain::{ColumnType, Row, TableSchema};
use crate::sink::api::SinkError;
use crate::sink::encode::record_batch;

/// Rows turned into Arrow at once, between two chances for other tasks to run.
const ROWS_PER_STEP: usize = 2048;

/// Large enough to compress well, small enough for readers that skip by statistics.
const ROWS_PER_GROUP: usize = 64 * 1024;

/// Writes the rows, one file per value of the partition columns. No rows, no file.
pub(super) async fn write_files(table: &Table, structure: &Structure, rows: &[&Row]) -> Result<Vec<Add>, SinkError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut batches = Vec::with_capacity(rows.len().div_ceil(ROWS_PER_STEP));
    for step in rows.chunks(ROWS_PER_STEP) {
        let batch = record_batch(&table.schema, step)?;
        let batch = structure
            .conform(&batch)
            .map_err(|error| SinkError::Incompatible { table: table.name.clone(), detail: error.to_string() })?;
        batches.push(batch);
        tokio::task::yield_now().await;
    }
    let blank = structure.table.clone();
    let properties = parquet_properties(&table.schema);
    let runtime = Handle::current();
    let written = tokio::task::spawn_blocking(move || {
        runtime.block_on(async move {
            let mut writer = RecordBatchWriter::for_blind_appends(&blank)?.with_writer_properties(properties);
            for batch in batches {
                writer.write(batch).await?;
            }
            writer.flush().await
        })
    });
    match written.await {
        Ok(files) => files.map_err(|error| sink_error(&table.name, error)),
        Err(panic) => {
            Err(SinkError::Encoding { column: "(any)".to_owned(), detail: format!("writing Parquet: {panic}") })
        }
    }
}

/// Zstandard throughout. Vectors have neither useful minima nor repeating values, so they get no statistics and no
/// dictionary.
pub(super) fn parquet_properties(schema: &TableSchema) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
        .set_created_by(concat!("assay ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in &schema.columns {
        if let ColumnType::Embedding { .. } = column.kind {
            let leaf = ColumnPath::new(vec![column.name.clone(), "list".to_owned(), "element".to_owned()]);
            properties = properties
                .set_column_statistics_enabled(leaf.clone(), EnabledStatistics::None)
                .set_column_dictionary_enabled(leaf, false);
        }
    }
    properties.build()
}
