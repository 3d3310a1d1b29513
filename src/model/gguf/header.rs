//! The metadata of a GGUF file, read by key.
//!
//! Invariant: every error names the file and the key.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;

use crate::model::api::ModelError;
use crate::model::weights::Metadata;

/// Metadata and where it is from.
pub struct Header {
    file: PathBuf,
    values: Metadata,
}

impl Header {
    pub fn new(file: &Path, values: Metadata) -> Self {
        Self { file: file.to_owned(), values }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.read(key, "a text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.read(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub fn number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.read(key, "a whole number", whole)
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.read(key, "a number", |value| match value {
            // The shortest decimal that is this f32 is what was meant: 1e-5, not 9.99999974e-6.
            Value::F32(float) => float.to_string().parse().ok(),
            Value::F64(float) => Some(*float),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        fn text(value: &Value) -> Option<&str> {
            match value {
                Value::String(text) => Some(text.as_str()),
                _ => None,
            }
        }
        self.read(key, "a list of texts", |value| list(value)?.iter().map(text).collect())
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        self.read(key, "a list of whole numbers", |value| list(value)?.iter().map(whole).collect())
    }

    /// What a key must hold.
    pub fn needed<T>(&self, key: &str, value: Result<Option<T>, ModelError>) -> Result<T, ModelError> {
        value?.ok_or_else(|| self.malformed(key, "is missing"))
    }

    pub fn malformed(&self, key: &str, detail: &str) -> ModelError {
        ModelError::malformed(&self.file, format!("{key} {detail}"))
    }

    pub fn unsupported(&self, key: &str, value: impl std::fmt::Display, advice: &str) -> ModelError {
        ModelError::unsupported(&self.file, key, value, advice)
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let found = read(value);
        found.map(Some).ok_or_else(|| self.malformed(key, &format!("is {:?}; it must be {kind}", value.value_type())))
    }
}

fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// Writers differ in the width and sign of numbers.
fn whole(value: &Value) -> Option<usize> {
    let signed = |number: i64| usize::try_from(number).ok();
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::U32(number) => usize::try_from(number).ok(),
        Value::U64(number) => usize::try_from(number).ok(),
        Value::I8(number) => signed(number.into()),
        Value::I16(number) => signed(number.into()),
        Value::I32(number) => signed(number.into()),
        Value::I64(number) => signed(number),
        _ => None,
    }
}
