//! Finds the rejections that a worker wrote before it died without committing their offsets.
//!
//! Only reads, and only when the rejections table is ahead of the results table.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::prelude::{SessionContext, col, lit};
use deltalake::DeltaTable;

use super::store::sink_error;
use super::table::Table;
use crate::domain::TopicPartition;
use crate::sink::api::SinkError;

/// The offsets of a partition's rejections behind `committed`, ascending.
pub(super) async fn written_rejections(
    table: &Table,
    partition: &TopicPartition,
    committed: Option<i64>,
) -> Result<Vec<i64>, SinkError> {
    let failed = |error| sink_error(&table.name, error);
    let session = SessionContext::new();
    let delta = DeltaTable::new(table.store.clone());
    delta.update_datafusion_session(&session.state()).map_err(|error| sink_error(&table.name, error))?;
    let provider = delta.table_provider().await.map_err(|error| sink_error(&table.name, error))?;
    let mut wanted = col("topic").eq(lit(&*partition.topic)).and(col("partition").eq(lit(partition.partition)));
    if let Some(committed) = committed {
        wanted = wanted.and(col("offset").gt(lit(committed)));
    }
    let rows = session.read_table(provider).and_then(|rows| rows.filter(wanted));
    let rows = rows.and_then(|rows| rows.select_columns(&["offset"])).map_err(failed)?;
    let mut offsets = Vec::new();
    for batch in rows.collect().await.map_err(failed)? {
        let column = cast(batch.column(0), &DataType::Int64).map_err(|error| sink_error(&table.name, error))?;
        offsets.extend(column.as_primitive::<Int64Type>().iter().flatten());
    }
    offsets.sort_unstable();
    offsets.dedup();
    Ok(offsets)
}
