//! SQL over the tables of the jobs: a read-only DataFusion session, its vector functions, printing and the prompt.

mod catalog;
mod error;
mod files;
#[cfg(test)]
mod fixture;
mod functions;
mod job_tables;
mod objects;
mod print;
mod prompt;
mod rows;
mod session;

pub use error::QueryError;
pub use files::NamedFile;
pub use functions::cosine_similarity;
pub use job_tables::JobTables;
pub use objects::{Object, objects, read_parquet};
pub use print::{Format, write};
pub use prompt::{Screen, run as prompt};
pub use rows::rows;
pub use session::{Options, QuerySession, TableName};
