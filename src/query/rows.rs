//! Answers as plain values, for callers that work with rows instead of printing them.
//!
//! It knows Arrow's types of text, numbers, times, bytes and maps; lists, structs and vectors are refused. Memory holds one
//! batch. Invariant: a row has as many values as the answer has columns.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::arrow::error::ArrowError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, TryStreamExt};

use super::error::QueryError;
use crate::domain::{Row, Value};

/// The rows of an answer, batch by batch. Times are microseconds since the Unix epoch.
///
/// # Errors
/// Those of the query, and [`QueryError::Encoding`] for a column of another type.
pub fn rows(batches: SendableRecordBatchStream) -> impl Stream<Item = Result<Vec<Row>, QueryError>> + Send {
    batches
        .map_err(QueryError::from)
        .and_then(|batch| async move { values(&batch).map_err(|error| QueryError::encoding("rows", error)) })
}

fn values(batch: &RecordBatch) -> Result<Vec<Row>, ArrowError> {
    let columns = batch.columns().iter().map(Column::of).collect::<Result<Vec<_>, _>>()?;
    Ok((0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row)).collect()).collect())
}

/// A column in one of the few types that are read here.
enum Column {
    Text(ArrayRef),
    Integer(ArrayRef),
    Bytes(ArrayRef),
    /// Keys and values as text.
    Map {
        map: ArrayRef,
        keys: ArrayRef,
        values: ArrayRef,
    },
}

impl Column {
    fn of(array: &ArrayRef) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt32 => {
                Self::Integer(cast(array, &DataType::Int64)?)
            }
            DataType::Timestamp(_, zone) => {
                let micros = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
                Self::Integer(cast(&micros, &DataType::Int64)?)
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                Self::Bytes(cast(array, &DataType::Binary)?)
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let keys = cast(map.keys(), &DataType::Utf8)?;
                let values = cast(map.values(), &DataType::Utf8)?;
                Self::Map { map: Arc::clone(array), keys, values }
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Struct(_) => {
                return Err(ArrowError::CastError(format!("{} is no plain value", array.data_type())));
            }
            _ => Self::Text(cast(array, &DataType::Utf8)?),
        })
    }

    fn value(&self, row: usize) -> Value {
        match self {
            Self::Text(array) => Value::text(text(array, row)),
            Self::Integer(array) if array.is_valid(row) => Value::Integer(array.as_primitive::<Int64Type>().value(row)),
            Self::Bytes(array) if array.is_valid(row) => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
            Self::Map { map, keys, values } if map.is_valid(row) => {
                let offsets = map.as_map().value_offsets();
                let entries = offsets[row] as usize..offsets[row + 1] as usize;
                let entry = |at| Some((text(keys, at)?, text(values, at)));
                Value::Map(entries.filter_map(entry).collect())
            }
            _ => Value::Null,
        }
    }
}

fn text(array: &ArrayRef, row: usize) -> Option<String> {
    array.is_valid(row).then(|| array.as_string::<i32>().value(row).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::QuerySession;

    async fn answer(sql: &str) -> Result<Vec<Row>, QueryError> {
        let session = QuerySession::open(&[], None).await.unwrap();
        let batches: Vec<_> = rows(session.run(sql).await?).try_collect().await?;
        Ok(batches.into_iter().flatten().collect())
    }

    #[tokio::test]
    async fn every_plain_type_becomes_a_value() {
        let sql = "SELECT 'a', 7, TIMESTAMP '1970-01-01T00:00:01Z', X'00ff', MAP {'k': 'v'}, \
                   CAST(NULL AS VARCHAR) AS n1, CAST(NULL AS BIGINT) AS n2, arrow_cast('b', 'Dictionary(Int32, Utf8)')";
        let expected = vec![
            Value::Text("a".into()),
            Value::Integer(7),
            Value::Integer(1_000_000),
            Value::Bytes(vec![0, 255]),
            Value::Map(vec![("k".into(), Some("v".into()))]),
            Value::Null,
            Value::Null,
            Value::Text("b".into()),
        ];
        assert_eq!(answer(sql).await.unwrap(), [expected]);
    }

    #[tokio::test]
    async fn a_list_is_refused() {
        assert!(matches!(answer("SELECT [1, 2]").await.unwrap_err(), QueryError::Encoding { .. }));
    }
}
