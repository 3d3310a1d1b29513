//! What can go wrong with a query, said to the person who wrote it.
//!
//! It knows DataFusion's errors and hides their nesting; it does not know exit codes.
//! Invariant: a message is one thought, without the chain of contexts it travelled through.

use std::io;

use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error(
        "{verb} is refused: only SELECT, EXPLAIN, SHOW and DESCRIBE are allowed, the tables are written by jobs alone"
    )]
    Refused { verb: String },
    #[error("job {job} has not written anything to its {table} table yet: start it with `assay run --job {job}`")]
    NothingWritten { job: String, table: String },
    #[error("there is no job {job}; the jobs are: {known}")]
    UnknownJob { job: String, known: String },
    #[error("jobs {first} and {second} would both be the schema {schema}: rename one of them")]
    NameClash { first: String, second: String, schema: String },
    #[error("there are several jobs, so {table} needs the job's name in front, for example {example}")]
    Ambiguous { table: String, example: String },
    #[error("table {table} of job {job} at {url} cannot be read: {detail}")]
    Table { job: String, table: String, url: String, detail: String },
    #[error("{path} cannot be read as a table: {detail}")]
    File { path: String, detail: String },
    /// The statement does not parse, or names something that is not there.
    #[error("{detail}")]
    Statement { detail: String },
    #[error("the query needs more than its memory limit; select fewer columns or rows, or raise the limit: {detail}")]
    Memory { detail: String },
    #[error("the query failed: {detail}")]
    Execution { detail: String },
    #[error("the answer cannot be written as {format}: {detail}")]
    Encoding { format: &'static str, detail: String },
    /// The kind of the inner error tells a closed pipe from a full disk.
    #[error("the answer cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("the prompt cannot be read: {detail}")]
    Prompt { detail: String },
}

impl From<QueryError> for DataFusionError {
    /// For the places where DataFusion calls this room; [`QueryError::from`] takes it out again.
    fn from(error: QueryError) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => Self::from(*inner),
            DataFusionError::Collection(mut errors) if !errors.is_empty() => Self::from(errors.swap_remove(0)),
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => match other.downcast::<DataFusionError>() {
                    Ok(nested) => Self::from(*nested),
                    Err(other) => Self::Execution { detail: other.to_string() },
                },
            },
            other => Self::from_root(other.find_root()),
        }
    }
}

impl QueryError {
    fn from_root(root: &DataFusionError) -> Self {
        let detail = first_part(&root.message());
        match root {
            DataFusionError::SQL(parser, _) => Self::Statement { detail: first_part(&parser.to_string()) },
            DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::NotImplemented(_) => {
                Self::Statement { detail }
            }
            DataFusionError::ResourcesExhausted(_) => Self::Memory { detail },
            DataFusionError::External(inner) => match inner.downcast_ref::<Self>() {
                Some(own) => Self::Execution { detail: own.to_string() },
                None => Self::Execution { detail },
            },
            _ => Self::Execution { detail },
        }
    }

    /// An error of an encoder: either of the place written to, or of a value that the format cannot hold.
    pub(super) fn encoding(format: &'static str, error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, source) => Self::Output(source),
            other => Self::Encoding { format, detail: other.to_string() },
        }
    }
}

/// The message without a back trace, which DataFusion appends when it was built with them.
fn first_part(message: &str) -> String {
    message.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_around_an_error_of_this_room_are_taken_off() {
        let inner = QueryError::NothingWritten { job: "ads".into(), table: "results".into() };
        let wrapped = DataFusionError::from(inner).context("planning").context("more planning");
        assert!(matches!(QueryError::from(wrapped), QueryError::NothingWritten { job, .. } if job == "ads"));
    }

    #[test]
    fn an_exhausted_memory_limit_says_what_to_do() {
        let error = QueryError::from(DataFusionError::ResourcesExhausted("1 KB left".into()).context("sort"));
        assert!(error.to_string().contains("raise the limit: 1 KB left"), "{error}");
    }
}
