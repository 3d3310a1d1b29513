//! The logical shape of a table: named, typed columns and rows of values.
//!
//! The sink turns these into Arrow; nobody else needs to know how they are stored. A [`Row`] has exactly one
//! [`Value`] per column of its [`TableSchema`], in the same order.

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnType {
    Boolean,
    Int32,
    Int64,
    Float64,
    Text,
    /// Microseconds since the Unix epoch, UTC.
    Timestamp,
    Bytes,
    /// List of 32-bit floats of a fixed length, as an embedding needs it.
    Embedding {
        dimensions: usize,
    },
    List(Box<ColumnType>),
    Struct(Vec<Column>),
    /// Text to text.
    Map,
}

/// A named column. Every column may be null unless `required`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub kind: ColumnType,
    pub required: bool,
}

impl Column {
    pub fn required(name: impl Into<String>, kind: ColumnType) -> Self {
        Self { name: name.into(), kind, required: true }
    }

    pub fn optional(name: impl Into<String>, kind: ColumnType) -> Self {
        Self { name: name.into(), kind, required: false }
    }
}

/// The columns of a table, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableSchema {
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// The position of a column by name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// One cell. Which variants fit is decided by the column's [`ColumnType`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Boolean(bool),
    /// For `Int32`, `Int64` and `Timestamp` columns.
    Integer(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Embedding(Vec<f32>),
    List(Vec<Value>),
    /// One value for each field of the struct column, in its order.
    Struct(Vec<Value>),
    /// In insertion order; later entries of the same key win.
    Map(Vec<(String, Option<String>)>),
}

impl Value {
    /// Text or null.
    pub fn text(value: Option<impl Into<String>>) -> Self {
        value.map_or(Self::Null, |text| Self::Text(text.into()))
    }

    /// Integer or null.
    pub fn integer(value: Option<i64>) -> Self {
        value.map_or(Self::Null, Self::Integer)
    }

    /// Roughly how many bytes the cell holds, for commit thresholds.
    pub fn size(&self) -> usize {
        match self {
            Self::Null | Self::Boolean(_) => 1,
            Self::Integer(_) | Self::Float(_) => 8,
            Self::Text(text) => text.len() + 4,
            Self::Bytes(bytes) => bytes.len() + 4,
            Self::Embedding(vector) => vector.len() * 4 + 4,
            Self::List(values) | Self::Struct(values) => values.iter().map(Self::size).sum::<usize>() + 4,
            Self::Map(entries) => {
                entries.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len) + 8).sum()
            }
        }
    }
}

/// One row: as many values as the table has columns.
pub type Row = Vec<Value>;
