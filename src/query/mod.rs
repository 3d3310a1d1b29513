//! SQL over the tables of the jobs: a read-only DataFusion session, its vector functions, printing and the prompt.

mod catalog;
mod error;
#[cfg(test)]
mod fixture;
pub mod functions;
pub mod print;
pub mod prompt;
mod session;

pub use error::QueryError;
pub use print::Format;
pub use session::{JobTables, Options, QuerySession, TableName};
