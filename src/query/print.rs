//! Answers as text for people, as JSON and CSV for scripts, and as Parquet.
//!
//! It knows Arrow batches and bytes; it does not know where the bytes go. Everything but the table streams: memory
//! holds one batch (Parquet: one row group). Invariant: each format is complete and valid also without any row.

use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{EncoderOptions, JsonFormat, WriterBuilder as JsonBuilder, make_encoder};
use datafusion::arrow::util::display::FormatOptions;
use datafusion::arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::error::QueryError;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned columns for people; long lists of numbers are shortened. Buffers the whole answer.
    #[default]
    Table,
    /// One array of objects, one object per line; nulls are written.
    Json,
    /// A header and one line per row; lists, structs and maps as JSON text.
    Csv,
    Parquet,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            other => Err(format!("{other} is no format; the formats are table, json, csv and parquet")),
        }
    }
}

/// Writes an answer and returns its number of rows. Parquet is binary: the caller keeps it off a terminal.
///
/// # Errors
/// [`QueryError::Output`] when `output` fails (a closed pipe too), [`QueryError::Encoding`] when the format cannot hold
/// a type, and any error of the query itself. What was written before stays written.
pub async fn write(
    batches: SendableRecordBatchStream,
    format: Format,
    output: &mut (dyn Write + Send),
) -> Result<u64, QueryError> {
    let rows = match format {
        Format::Table => write_table(batches, output).await,
        Format::Json => write_json(batches, output).await,
        Format::Csv => write_csv(batches, output).await,
        Format::Parquet => write_parquet(batches, output).await,
    }?;
    output.flush()?;
    Ok(rows)
}

async fn write_table(
    mut batches: SendableRecordBatchStream,
    output: &mut (dyn Write + Send),
) -> Result<u64, QueryError> {
    let failed = |error| QueryError::encoding("table", error);
    // The header is there even when no batch is.
    let mut short = vec![shorten(&RecordBatch::new_empty(batches.schema())).map_err(failed)?];
    while let Some(batch) = batches.try_next().await? {
        short.push(shorten(&batch).map_err(failed)?);
    }
    let text = pretty_format_batches_with_options(&short, &FormatOptions::default()).map_err(failed)?;
    writeln!(output, "{text}")?;
    Ok(count(&short))
}

async fn write_json(
    mut batches: SendableRecordBatchStream,
    output: &mut (dyn Write + Send),
) -> Result<u64, QueryError> {
    let failed = |error| QueryError::encoding("json", error);
    let mut writer = JsonBuilder::new().with_explicit_nulls(true).build::<_, ObjectPerLine>(output);
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    Ok(rows)
}

async fn write_csv(mut batches: SendableRecordBatchStream, output: &mut (dyn Write + Send)) -> Result<u64, QueryError> {
    let failed = |error| QueryError::encoding("csv", error);
    let mut writer = csv::WriterBuilder::new().with_header(true).build(output);
    let mut rows = 0;
    writer.write(&flatten(&RecordBatch::new_empty(batches.schema())).map_err(failed)?).map_err(failed)?;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(&flatten(&batch).map_err(failed)?).map_err(failed)?;
    }
    Ok(rows)
}

async fn write_parquet(
    mut batches: SendableRecordBatchStream,
    output: &mut (dyn Write + Send),
) -> Result<u64, QueryError> {
    let failed = |error: ParquetError| match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => QueryError::Output(*source),
            Err(other) => QueryError::Encoding { format: "parquet", detail: other.to_string() },
        },
        other => QueryError::Encoding { format: "parquet", detail: other.to_string() },
    };
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(output, batches.schema(), Some(properties)).map_err(failed)?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
        writer.write(&batch).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(rows)
}

fn count(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}

/// `[`, objects on lines of their own, `]`: one document for jq, lines for everything that reads lines.
#[derive(Debug, Default)]
struct ObjectPerLine;

impl JsonFormat for ObjectPerLine {
    fn start_stream<W: Write>(&self, writer: &mut W) -> Result<(), ArrowError> {
        Ok(writer.write_all(b"[")?)
    }

    fn start_row<W: Write>(&self, writer: &mut W, is_first_row: bool) -> Result<(), ArrowError> {
        Ok(writer.write_all(if is_first_row { b"\n" } else { b",\n" })?)
    }

    fn end_stream<W: Write>(&self, writer: &mut W) -> Result<(), ArrowError> {
        Ok(writer.write_all(b"\n]\n")?)
    }
}

/// Replaces each column for which `replace` has an answer by text.
fn with_text(
    batch: &RecordBatch,
    replace: impl Fn(&FieldRef, &ArrayRef) -> Result<Option<StringArray>, ArrowError>,
) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if let Some(text) = replace(field, column)? {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(text) as ArrayRef);
        } else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let options = datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options)
}

/// Nested columns as JSON text, because a CSV cell is text.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = EncoderOptions::default();
    with_text(batch, |field, column| {
        if !field.data_type().is_nested() {
            return Ok(None);
        }
        let mut encoder = make_encoder(field, column, &options)?;
        let mut texts = StringBuilder::new();
        let mut bytes = Vec::new();
        for row in 0..column.len() {
            if encoder.is_null(row) {
                texts.append_null();
                continue;
            }
            bytes.clear();
            encoder.encode(row, &mut bytes);
            texts.append_value(String::from_utf8_lossy(&bytes));
        }
        Ok(Some(texts.finish()))
    })
}

/// Lists of floats as `[0.0123, -0.0456, … 64 values]`, because an embedding would fill the screen.
fn shorten(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    with_text(batch, |field, column| {
        let item = match field.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => item,
            _ => return Ok(None),
        };
        if !item.data_type().is_floating() {
            return Ok(None);
        }
        let wide = DataType::LargeList(Arc::new(Field::new_list_field(DataType::Float64, true)));
        let lists = cast(column, &wide)?;
        let texts = lists.as_list::<i64>().iter().map(|list| list.map(|list| short_list(&list)));
        Ok(Some(texts.collect()))
    })
}

const SHOWN: usize = 2;

fn short_list(list: &ArrayRef) -> String {
    let numbers = list.as_primitive::<Float64Type>();
    let shown = if numbers.len() <= 2 * SHOWN { numbers.len() } else { SHOWN };
    let mut parts: Vec<String> = (numbers.iter().take(shown))
        .map(|number| number.map_or_else(|| "null".to_owned(), |number| format!("{number:.4}")))
        .collect();
    if shown < numbers.len() {
        parts.push(format!("… {} values", numbers.len()));
    }
    format!("[{}]", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::query::QuerySession;
    use crate::query::fixture::{append_results, job};

    async fn printed(sql: &str, format: Format) -> Vec<u8> {
        let base = tempfile::tempdir().unwrap();
        append_results(base.path(), "demo", &[("a", 0, Some(1_000_000), false), ("b,c", 1, None, true)]).await;
        let session = QuerySession::open(&[job(base.path(), "demo")], None).await.unwrap();
        let mut output = Vec::new();
        write(session.run(sql).await.unwrap(), format, &mut output).await.unwrap();
        output
    }

    async fn text(sql: &str, format: Format) -> String {
        String::from_utf8(printed(sql, format).await).unwrap()
    }

    const ROWS: &str = "SELECT asset_id, event_time, headers, deleted FROM results ORDER BY asset_id";

    #[tokio::test]
    async fn a_table_shortens_embeddings() {
        let table =
            text("SELECT asset_id, image_embedding AS v, [1.5, 2.0] AS w FROM results ORDER BY 1", Format::Table);
        let expected = "\
+----------+------------------------------+------------------+
| asset_id | v                            | w                |
+----------+------------------------------+------------------+
| a        | [1.0000, 1.0000, … 64 values] | [1.5000, 2.0000] |
| b,c      | [2.0000, 1.0000, … 64 values] | [1.5000, 2.0000] |
+----------+------------------------------+------------------+
";
        let squeezed = |text: &str| text.replace(['-', ' '], "");
        assert_eq!(squeezed(&table.await), squeezed(expected));
    }

    #[tokio::test]
    async fn json_is_one_array_of_objects_on_lines_of_their_own() {
        let expected = r#"[
{"asset_id":"a","event_time":"1970-01-01T00:00:01Z","headers":{"trace":"a\"b"},"deleted":false},
{"asset_id":"b,c","event_time":null,"headers":{"trace":"a\"b"},"deleted":true}
]
"#;
        assert_eq!(text(ROWS, Format::Json).await, expected);
    }

    #[tokio::test]
    async fn csv_quotes_cells_and_writes_nested_values_as_json() {
        let expected = r#"asset_id,event_time,headers,deleted
a,1970-01-01T00:00:01Z,"{""trace"":""a\""b""}",false
"b,c",,"{""trace"":""a\""b""}",true
"#;
        assert_eq!(text(ROWS, Format::Csv).await, expected);
        let lists = text("SELECT [1, NULL, 3] AS list, NULL AS nothing", Format::Csv).await;
        assert_eq!(lists, "list,nothing\n\"[1,null,3]\",\n");
    }

    #[tokio::test]
    async fn parquet_is_read_back_with_its_types() {
        let bytes = printed("SELECT asset_id, image_embedding FROM results ORDER BY 1", Format::Parquet).await;
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
        assert_eq!(count(&batches), 2);
        let wide = DataType::new_list(DataType::Float64, true);
        let embedding = cast(batches[0].column(1), &wide).unwrap().as_list::<i32>().value(1);
        assert_eq!((embedding.len(), embedding.as_primitive::<Float64Type>().value(0)), (64, 2.0));
    }

    #[tokio::test]
    async fn an_answer_without_rows_is_complete_in_each_format() {
        let none = "SELECT asset_id, headers FROM results WHERE false";
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text(none, Format::Json).await).unwrap(),
            serde_json::json!([])
        );
        assert_eq!(text(none, Format::Csv).await, "asset_id,headers\n");
        assert!(text(none, Format::Table).await.contains("| asset_id | headers |"));
        let parquet = Bytes::from(printed(none, Format::Parquet).await);
        assert_eq!(ParquetRecordBatchReaderBuilder::try_new(parquet).unwrap().schema().fields().len(), 2);
    }

    #[tokio::test]
    async fn a_closed_pipe_keeps_its_kind_in_each_format() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let base = tempfile::tempdir().unwrap();
        let session = QuerySession::open(&[job(base.path(), "demo")], None).await.unwrap();
        for format in [Format::Table, Format::Json, Format::Csv, Format::Parquet] {
            let batches = session.run("SELECT 1 AS one").await.unwrap();
            let error = write(batches, format, &mut Closed).await.unwrap_err();
            let closed = matches!(&error, QueryError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe);
            assert!(closed, "{format:?}: {error:?}");
        }
    }
}
