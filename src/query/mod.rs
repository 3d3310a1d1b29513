//! SQL over the tables of the jobs: a read-only DataFusion session, its vector functions, printing and the prompt.

mod catalog;
mod error;
#[cfg(test)]
mod fixture;
mod functions;
mod job_tables;
mod print;
mod prompt;
mod rows;
mod session;

pub use error::QueryError;
pub use functions::cosine_similarity;
pub use job_tables::JobTables;
pub use print::{Format, write};
pub use prompt::{Screen, run as prompt};
pub use rows::rows;
pub use session::{Options, QuerySession, TableName};
