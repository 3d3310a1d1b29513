//! The columns of a job's two tables.
//!
//! It knows what a row says, not how it is stored. Invariant: schemas/results.schema.json and
//! schemas/rejections.schema.json describe exactly these columns, in this order; a test compares them.

use super::columns::{cost_of_results, origin_of_results};
use super::spec::JobSpec;
use crate::domain::{Column, ColumnType, TableSchema};

/// A job names a model whose number of dimensions nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job {job:?} embeds {column:?} with model {model:?}, which is not loaded; list it under [models.{model}]")]
pub struct UnknownModel {
    pub job: String,
    pub column: String,
    pub model: String,
}

/// The results table: where a row came from, then what inference said (annotations, embeddings), then what it cost.
/// `dimensions` gives the length of a model's embeddings by the model's name.
pub fn results_schema(job: &JobSpec, dimensions: impl Fn(&str) -> Option<usize>) -> Result<TableSchema, UnknownModel> {
    let mut columns = origin_of_results();
    columns.extend(job.annotate.iter().flat_map(|annotate| annotate.columns.clone()));
    for embedding in &job.embeddings {
        let dimensions = dimensions(&embedding.model).ok_or_else(|| UnknownModel {
            job: job.name.clone(),
            column: embedding.column.clone(),
            model: embedding.model.to_string(),
        })?;
        columns.push(Column::optional(&embedding.column, ColumnType::Embedding { dimensions }));
    }
    columns.extend(cost_of_results());
    Ok(TableSchema { columns })
}

/// The rejections table: where a record came from, why it has no row of results, and the record itself.
pub fn rejections_schema() -> TableSchema {
    let columns = vec![
        Column::optional("asset_id", ColumnType::Text),
        Column::optional("kind", ColumnType::Text),
        Column::required("topic", ColumnType::Text),
        Column::required("partition", ColumnType::Int32),
        Column::required("offset", ColumnType::Int64),
        Column::optional("key", ColumnType::Text),
        Column::optional("message_time", ColumnType::Timestamp),
        Column::required("processed_time", ColumnType::Timestamp),
        Column::optional("headers", ColumnType::Map),
        Column::required("job", ColumnType::Text),
        Column::required("job_fingerprint", ColumnType::Text),
        Column::optional("models", ColumnType::Map),
        Column::required("stage", ColumnType::Text),
        Column::required("reason", ColumnType::Text),
        Column::required("detail", ColumnType::Text),
        Column::required("blame", ColumnType::Text),
        Column::required("attempts", ColumnType::Int32),
        Column::optional("raw", ColumnType::Bytes),
    ];
    TableSchema { columns }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::super::columns::fixed_result_columns;
    use super::*;

    const JOB: &str = r#"
        name = "j"
        kind = "ad"
        topics = ["ads"]
        [[embeddings]]
        column = "picture"
        model = "demo"
        input = "image"
        [[embeddings]]
        column = "words"
        model = "other"
        input = "text"
        template = "{headline}"
    "#;

    fn described(text: &str) -> Vec<(String, String, bool)> {
        let schema: Value = serde_json::from_str(text).unwrap();
        jsonschema::draft202012::meta::validate(&schema).unwrap();
        let required: Vec<&str> =
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let properties = schema["properties"].as_object().unwrap();
        assert!(required.iter().all(|name| properties.contains_key(*name)));
        properties
            .iter()
            .map(|(name, property)| {
                assert!(!property["description"].as_str().unwrap().is_empty(), "{name}");
                let nullable = property["type"].as_array().is_some_and(|kinds| kinds.contains(&"null".into()));
                assert_ne!(nullable, required.contains(&name.as_str()), "{name}");
                assert_eq!(json_type(property["column"].as_str().unwrap()), first_type(property), "{name}");
                (name.clone(), property["column"].as_str().unwrap().to_owned(), !nullable)
            })
            .collect()
    }

    fn first_type(property: &Value) -> &str {
        property["type"].as_str().unwrap_or_else(|| property["type"][0].as_str().unwrap())
    }

    fn json_type(column: &str) -> &str {
        match column {
            "int32" | "int64" => "integer",
            "float64" => "number",
            "boolean" => "boolean",
            "map" => "object",
            "list<text>" => "array",
            _ => "string",
        }
    }

    fn word(kind: &ColumnType) -> String {
        match kind {
            ColumnType::Boolean => "boolean".into(),
            ColumnType::Int32 => "int32".into(),
            ColumnType::Int64 => "int64".into(),
            ColumnType::Float64 => "float64".into(),
            ColumnType::Text => "text".into(),
            ColumnType::Timestamp => "timestamp".into(),
            ColumnType::Bytes => "bytes".into(),
            ColumnType::Map => "map".into(),
            ColumnType::List(items) => format!("list<{}>", word(items)),
            other => panic!("{other:?} is no type of a fixed column"),
        }
    }

    fn in_code(columns: &[Column]) -> Vec<(String, String, bool)> {
        columns.iter().map(|column| (column.name.clone(), word(&column.kind), column.required)).collect()
    }

    #[test]
    fn the_described_results_are_the_columns_of_the_code() {
        assert_eq!(described(include_str!("../../schemas/results.schema.json")), in_code(&fixed_result_columns()));
    }

    #[test]
    fn the_described_rejections_are_the_columns_of_the_code() {
        assert_eq!(
            described(include_str!("../../schemas/rejections.schema.json")),
            in_code(&rejections_schema().columns)
        );
    }

    #[test]
    fn the_columns_of_the_job_stand_between_the_media_and_the_cost() {
        let job = JobSpec::parse(Path::new("j.toml"), JOB).unwrap();
        let dimensions = |model: &str| Some(if model == "demo" { 64 } else { 128 });
        let schema = results_schema(&job, dimensions).unwrap();
        let start = schema.position("media_hashes").unwrap() + 1;
        let expected = [
            Column::optional("picture", ColumnType::Embedding { dimensions: 64 }),
            Column::optional("words", ColumnType::Embedding { dimensions: 128 }),
        ];
        assert_eq!(schema.columns[start..start + 2], expected);
        assert_eq!(schema.columns[start + 2].name, "prompt_tokens");
        assert_eq!(schema.columns.len(), fixed_result_columns().len() + 2);
    }

    #[test]
    fn a_model_of_unknown_dimensions_is_an_error_that_names_it() {
        let job = JobSpec::parse(Path::new("j.toml"), JOB).unwrap();
        let error = results_schema(&job, |model| (model == "demo").then_some(64)).unwrap_err();
        assert_eq!((error.model.as_str(), error.column.as_str()), ("other", "words"));
    }
}
