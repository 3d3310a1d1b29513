//! Turns the logical shape of a table into Arrow: schemas, and rows into columns.
//!
//! Knows nothing of Delta, files or offsets. A batch is built column by column; a row that does not fit its schema is
//! refused with the name of the column, and then nothing of the batch is built.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray, MapArray,
    RecordBatch, RecordBatchOptions, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use super::api::SinkError;
use crate::domain::{Column, ColumnType, Row, TableSchema, Value};

/// The Arrow schema of a table. Names of nested fields are those that Delta readers expect.
pub(super) fn arrow_schema(schema: &TableSchema) -> SchemaRef {
    Arc::new(Schema::new(fields(&schema.columns)))
}

/// Rows as one record batch of [`arrow_schema`].
///
/// # Errors
/// [`SinkError::Encoding`] for a row of another length, a value of another type, or a null in a required column.
pub(super) fn record_batch<R: Borrow<Row>>(schema: &TableSchema, rows: &[R]) -> Result<RecordBatch, SinkError> {
    let width = schema.columns.len();
    if let Some(row) = rows.iter().map(Borrow::borrow).find(|row| row.len() != width) {
        let at = row.len().min(width.saturating_sub(1));
        let column = schema.columns.get(at).map_or_else(String::new, |column| column.name.clone());
        return Err(mismatch(&column, format!("the row has {} values, the table has {width} columns", row.len())));
    }
    let mut arrays = Vec::with_capacity(width);
    for (index, column) in schema.columns.iter().enumerate() {
        let cells: Vec<&Value> = rows.iter().map(|row| &row.borrow()[index]).collect();
        refuse_nulls(column, &column.name, &cells)?;
        arrays.push(array(&column.kind, &column.name, &cells)?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(arrow_schema(schema), arrays, &options)
        .map_err(|error| mismatch("*", error.to_string()))
}

fn fields(columns: &[Column]) -> Fields {
    columns.iter().map(|column| Field::new(&column.name, data_type(&column.kind), !column.required)).collect()
}

fn data_type(kind: &ColumnType) -> DataType {
    match kind {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Int32 => DataType::Int32,
        ColumnType::Int64 => DataType::Int64,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Text => DataType::Utf8,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::Bytes => DataType::Binary,
        ColumnType::Embedding { .. } => DataType::List(element(DataType::Float32)),
        ColumnType::List(item) => DataType::List(element(data_type(item))),
        ColumnType::Struct(columns) => DataType::Struct(fields(columns)),
        ColumnType::Map => DataType::Map(map_entries(), false),
    }
}

fn element(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", kind, true))
}

fn map_fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)])
}

fn map_entries() -> Arc<Field> {
    Arc::new(Field::new("key_value", DataType::Struct(map_fields()), false))
}

/// One column from its cells; `path` names it in errors, with dots for nested fields.
fn array(kind: &ColumnType, path: &str, cells: &[&Value]) -> Result<ArrayRef, SinkError> {
    Ok(match kind {
        ColumnType::Boolean => Arc::new(BooleanArray::from(scalars(kind, path, cells, |cell| match cell {
            Value::Boolean(value) => Some(*value),
            _ => None,
        })?)),
        ColumnType::Int32 => Arc::new(Int32Array::from(scalars(kind, path, cells, |cell| match cell {
            Value::Integer(value) => i32::try_from(*value).ok(),
            _ => None,
        })?)),
        ColumnType::Int64 => Arc::new(Int64Array::from(scalars(kind, path, cells, integer)?)),
        ColumnType::Timestamp => {
            Arc::new(TimestampMicrosecondArray::from(scalars(kind, path, cells, integer)?).with_timezone("UTC"))
        }
        ColumnType::Float64 => Arc::new(Float64Array::from(scalars(kind, path, cells, |cell| match cell {
            Value::Float(value) => Some(*value),
            _ => None,
        })?)),
        ColumnType::Text => Arc::new(StringArray::from(scalars(kind, path, cells, |cell| match cell {
            Value::Text(value) => Some(value.as_str()),
            _ => None,
        })?)),
        ColumnType::Bytes => Arc::new(BinaryArray::from(scalars(kind, path, cells, |cell| match cell {
            Value::Bytes(value) => Some(value.as_slice()),
            _ => None,
        })?)),
        ColumnType::Embedding { dimensions } => embeddings(*dimensions, path, cells)?,
        ColumnType::List(item) => lists(item, path, cells)?,
        ColumnType::Struct(columns) => structs(columns, path, cells)?,
        ColumnType::Map => maps(path, cells)?,
    })
}

fn integer(cell: &Value) -> Option<i64> {
    match cell {
        Value::Integer(value) => Some(*value),
        _ => None,
    }
}

/// Null stays null; what `read` does not take is a mismatch.
fn scalars<'a, T>(
    kind: &ColumnType,
    path: &str,
    cells: &[&'a Value],
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Vec<Option<T>>, SinkError> {
    cells
        .iter()
        .map(|cell| match cell {
            Value::Null => Ok(None),
            cell => read(cell).map(Some).ok_or_else(|| wrong(kind, path, cell)),
        })
        .collect()
}

fn embeddings(dimensions: usize, path: &str, cells: &[&Value]) -> Result<ArrayRef, SinkError> {
    let mut values = Vec::with_capacity(cells.len() * dimensions);
    let mut lengths = Vec::with_capacity(cells.len());
    for cell in cells {
        match cell {
            Value::Null => lengths.push(0),
            Value::Embedding(vector) if vector.len() == dimensions => {
                values.extend_from_slice(vector);
                lengths.push(dimensions);
            }
            Value::Embedding(vector) => {
                let detail = format!("the vector has {} dimensions, the column has {dimensions}", vector.len());
                return Err(mismatch(path, detail));
            }
            cell => return Err(wrong(&ColumnType::Embedding { dimensions }, path, cell)),
        }
    }
    let values: ArrayRef = Arc::new(Float32Array::from(values));
    list_array(element(DataType::Float32), &lengths, values, cells, path)
}

fn lists(item: &ColumnType, path: &str, cells: &[&Value]) -> Result<ArrayRef, SinkError> {
    let mut children: Vec<&Value> = Vec::new();
    let mut lengths = Vec::with_capacity(cells.len());
    for cell in cells {
        match cell {
            Value::Null => lengths.push(0),
            Value::List(values) => {
                children.extend(values);
                lengths.push(values.len());
            }
            cell => return Err(wrong(&ColumnType::List(Box::new(item.clone())), path, cell)),
        }
    }
    let values = array(item, &format!("{path}.element"), &children)?;
    list_array(element(data_type(item)), &lengths, values, cells, path)
}

fn list_array(
    field: Arc<Field>,
    lengths: &[usize],
    values: ArrayRef,
    cells: &[&Value],
    path: &str,
) -> Result<ArrayRef, SinkError> {
    let offsets = offsets(lengths, path)?;
    let list = ListArray::try_new(field, offsets, values, validity(cells));
    Ok(Arc::new(list.map_err(|error| mismatch(path, error.to_string()))?))
}

/// Offsets are 32 bits wide, so one batch holds at most 2^31 - 1 elements per list column.
fn offsets(lengths: &[usize], path: &str) -> Result<OffsetBuffer<i32>, SinkError> {
    let total: usize = lengths.iter().sum();
    if i32::try_from(total).is_err() {
        let detail = format!("one commit holds {total} elements, at most {} fit; lower commit.bytes", i32::MAX);
        return Err(mismatch(path, detail));
    }
    Ok(OffsetBuffer::from_lengths(lengths.iter().copied()))
}

fn structs(columns: &[Column], path: &str, cells: &[&Value]) -> Result<ArrayRef, SinkError> {
    let mut arrays = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let path = format!("{path}.{}", column.name);
        let mut children: Vec<&Value> = Vec::with_capacity(cells.len());
        for cell in cells {
            match cell {
                Value::Null => children.push(&Value::Null),
                Value::Struct(values) if values.len() == columns.len() => {
                    refuse_nulls(column, &path, &[&values[index]])?;
                    children.push(&values[index]);
                }
                cell => return Err(wrong(&ColumnType::Struct(columns.to_vec()), &path, cell)),
            }
        }
        arrays.push(array(&column.kind, &path, &children)?);
    }
    let array = StructArray::try_new(fields(columns), arrays, validity(cells));
    Ok(Arc::new(array.map_err(|error| mismatch(path, error.to_string()))?))
}

fn maps(path: &str, cells: &[&Value]) -> Result<ArrayRef, SinkError> {
    let mut keys: Vec<&str> = Vec::new();
    let mut values: Vec<Option<&str>> = Vec::new();
    let mut lengths = Vec::with_capacity(cells.len());
    for cell in cells {
        let before = keys.len();
        match cell {
            Value::Null => {}
            Value::Map(entries) => {
                let last: HashMap<&str, usize> =
                    entries.iter().enumerate().map(|(index, (key, _))| (key.as_str(), index)).collect();
                for (index, (key, value)) in entries.iter().enumerate() {
                    if last[key.as_str()] == index {
                        keys.push(key);
                        values.push(value.as_deref());
                    }
                }
            }
            cell => return Err(wrong(&ColumnType::Map, path, cell)),
        }
        lengths.push(keys.len() - before);
    }
    let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(keys)), Arc::new(StringArray::from(values))];
    let failed = |error: arrow::error::ArrowError| mismatch(path, error.to_string());
    let offsets = offsets(&lengths, path)?;
    let entries = StructArray::try_new(map_fields(), columns, None).map_err(failed)?;
    let map = MapArray::try_new(map_entries(), offsets, entries, validity(cells), false);
    Ok(Arc::new(map.map_err(failed)?))
}

fn validity(cells: &[&Value]) -> Option<NullBuffer> {
    cells
        .iter()
        .any(|cell| **cell == Value::Null)
        .then(|| cells.iter().map(|cell| !matches!(cell, Value::Null)).collect())
}

fn refuse_nulls(column: &Column, path: &str, cells: &[&Value]) -> Result<(), SinkError> {
    if column.required && cells.iter().any(|cell| matches!(cell, Value::Null)) {
        return Err(mismatch(path, "the column is required, the row has null".to_owned()));
    }
    Ok(())
}

fn wrong(kind: &ColumnType, path: &str, cell: &Value) -> SinkError {
    let found = match cell {
        Value::Null => "null".to_owned(),
        Value::Boolean(_) => "a boolean".to_owned(),
        Value::Integer(value) => format!("the integer {value}"),
        Value::Float(_) => "a float".to_owned(),
        Value::Text(_) => "text".to_owned(),
        Value::Bytes(_) => "bytes".to_owned(),
        Value::Embedding(vector) => format!("a vector of {} dimensions", vector.len()),
        Value::List(values) => format!("a list of {}", values.len()),
        Value::Struct(values) => format!("a struct of {} values", values.len()),
        Value::Map(_) => "a map".to_owned(),
    };
    mismatch(path, format!("the column is {}, the row has {found}", data_type(kind)))
}

fn mismatch(column: &str, detail: String) -> SinkError {
    SinkError::Encoding { column: column.to_owned(), detail }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float32Type, Int32Type, Int64Type, TimestampMicrosecondType};

    use super::*;

    fn every_type() -> TableSchema {
        let inner = vec![Column::required("a", ColumnType::Int64), Column::optional("b", ColumnType::Text)];
        TableSchema {
            columns: vec![
                Column::required("boolean", ColumnType::Boolean),
                Column::optional("int32", ColumnType::Int32),
                Column::optional("int64", ColumnType::Int64),
                Column::optional("float64", ColumnType::Float64),
                Column::optional("text", ColumnType::Text),
                Column::optional("time", ColumnType::Timestamp),
                Column::optional("bytes", ColumnType::Bytes),
                Column::optional("embedding", ColumnType::Embedding { dimensions: 2 }),
                Column::optional("list", ColumnType::List(Box::new(ColumnType::Text))),
                Column::optional("struct", ColumnType::Struct(inner)),
                Column::optional("map", ColumnType::Map),
            ],
        }
    }

    fn full_row() -> Row {
        vec![
            Value::Boolean(true),
            Value::Integer(-7),
            Value::Integer(1 << 40),
            Value::Float(0.5),
            Value::Text("Tasse".to_owned()),
            Value::Integer(1_700_000_000_000_000),
            Value::Bytes(vec![0, 255]),
            Value::Embedding(vec![0.25, -1.0]),
            Value::List(vec![Value::Text("x".to_owned()), Value::Null]),
            Value::Struct(vec![Value::Integer(3), Value::Null]),
            Value::Map(vec![
                ("k".to_owned(), Some("old".to_owned())),
                ("n".to_owned(), None),
                ("k".to_owned(), Some("new".to_owned())),
            ]),
        ]
    }

    fn null_row() -> Row {
        let mut row = vec![Value::Null; 11];
        row[0] = Value::Boolean(false);
        row
    }

    #[test]
    fn every_column_type_keeps_its_value_and_its_null() {
        let batch = record_batch(&every_type(), &[full_row(), null_row()]).unwrap();
        assert_eq!(batch.num_rows(), 2);
        assert!(batch.column(0).as_boolean().value(0));
        assert_eq!(batch.column(1).as_primitive::<Int32Type>().value(0), -7);
        assert_eq!(batch.column(2).as_primitive::<Int64Type>().value(0), 1 << 40);
        assert_eq!(batch.column(4).as_string::<i32>().value(0), "Tasse");
        assert_eq!(batch.column(5).as_primitive::<TimestampMicrosecondType>().value(0), 1_700_000_000_000_000);
        assert_eq!(batch.column(6).as_binary::<i32>().value(0), [0, 255]);
        let vector = batch.column(7).as_list::<i32>().value(0);
        assert_eq!(vector.as_primitive::<Float32Type>().values(), &[0.25, -1.0]);
        let list = batch.column(8).as_list::<i32>().value(0);
        assert_eq!((list.len(), list.is_null(1)), (2, true));
        assert_eq!(batch.column(9).as_struct().column(0).as_primitive::<Int64Type>().value(0), 3);
        let map = batch.column(10).as_map().value(0);
        let keys: Vec<_> = map.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(keys, ["n", "k"]);
        assert_eq!(map.column(1).as_string::<i32>().value(1), "new");
        for column in &batch.columns()[1..] {
            assert!(column.is_null(1));
        }
    }

    #[test]
    fn a_value_of_another_type_names_its_column() {
        let schema = every_type();
        for (index, bad, name) in [
            (1, Value::Integer(1 << 40), "int32"),
            (4, Value::Integer(1), "text"),
            (7, Value::Embedding(vec![1.0]), "embedding"),
            (8, Value::List(vec![Value::Integer(1)]), "list.element"),
            (9, Value::Struct(vec![Value::Null, Value::Null]), "struct.a"),
            (10, Value::Text("x".to_owned()), "map"),
            (0, Value::Null, "boolean"),
        ] {
            let mut row = full_row();
            row[index] = bad;
            match record_batch(&schema, &[full_row(), row]) {
                Err(SinkError::Encoding { column, .. }) => assert_eq!(column, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_row_of_another_length_is_refused() {
        let mut row = full_row();
        row.pop();
        let error = record_batch(&every_type(), &[row]).unwrap_err();
        assert!(matches!(&error, SinkError::Encoding { column, .. } if column == "map"), "{error}");
    }
}
