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
