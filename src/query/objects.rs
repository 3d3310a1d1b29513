//! Rows as JSON objects, nested values included: those of an answer, and those of a Parquet file outside of the tables.
//!
//! It knows Arrow and Parquet and keeps both to itself. Memory holds all rows. Invariant: every object has every column
//! that was read, null or not.

use std::fs::File;
use std::path::Path;

use datafusion::arrow::array::{RecordBatch, RecordBatchReader};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::WriterBuilder;
use datafusion::arrow::json::writer::LineDelimited;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::error::QueryError;

/// A row by the names of its columns.
pub type Object = Map<String, Value>;

/// All rows of an answer.
///
/// # Errors
/// Those of the query, and [`QueryError::Encoding`] for a type that JSON cannot hold.
pub async fn objects(mut batches: SendableRecordBatchStream) -> Result<Vec<Object>, QueryError> {
    let mut objects = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        objects.extend(of_batch(&batch).map_err(|error| QueryError::encoding("json", error))?);
    }
    Ok(objects)
}

/// The plain columns of a Parquet file (texts, numbers, times, true and false) that are `wanted` by their name; nested and
/// binary ones are not read.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn read_parquet(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Object>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())?;
    let fields = builder.schema().fields().iter().enumerate();
    let columns: Vec<usize> = fields
        .filter(|(_, field)| is_plain(field.data_type()) && wanted(field.name()))
        .map(|(column, _)| column)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    let reader = builder.with_projection(mask).build().map_err(|error| error.to_string())?;
    if reader.schema().fields().is_empty() {
        return Err("it has no column of texts or numbers".to_owned());
    }
    let mut objects = Vec::new();
    for batch in reader {
        let batch = batch.and_then(|batch| of_batch(&batch));
        objects.extend(batch.map_err(|error| error.to_string())?);
    }
    Ok(objects)
}

fn is_plain(kind: &DataType) -> bool {
    let is_binary =
        matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_));
    !is_binary && !kind.is_nested()
}

fn of_batch(batch: &RecordBatch) -> Result<Vec<Object>, ArrowError> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = writer.into_inner();
    let lines = serde_json::Deserializer::from_slice(&text).into_iter::<Object>();
    lines.map(|line| line.map_err(|error| ArrowError::JsonError(error.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::query::{Format, QuerySession, write};

    const SQL: &str = "SELECT 'a' AS asset_id, true AS ground_truth_is_secondhand, [1, 2] AS list, 1.5 AS price, \
                       CAST(NULL AS VARCHAR) AS brand, X'00ff' AS picture";

    async fn session() -> QuerySession {
        QuerySession::open(&[], None).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_becomes_objects_with_lists_and_nulls() {
        let objects = objects(session().await.run(SQL).await.unwrap()).await.unwrap();
        let object = Value::Object(objects[0].clone());
        assert_eq!((&object["list"], &object["brand"], &object["price"]), (&json!([1, 2]), &Value::Null, &json!(1.5)));
    }

    #[tokio::test]
    async fn a_parquet_file_gives_its_plain_columns_that_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("labels.parquet");
        let mut output = File::create(&file).unwrap();
        write(session().await.run(SQL).await.unwrap(), Format::Parquet, &mut output).await.unwrap();
        let rows = read_parquet(&file, &|name| name != "price").unwrap();
        let expected = json!({"asset_id": "a", "ground_truth_is_secondhand": true, "brand": null});
        assert_eq!(rows.into_iter().map(Value::Object).collect::<Vec<_>>(), [expected]);
        assert!(read_parquet(&file, &|name| name == "list").unwrap_err().contains("no column"));
        std::fs::write(&file, "PAR").unwrap();
        assert!(read_parquet(&file, &|_| true).is_err());
    }
}
