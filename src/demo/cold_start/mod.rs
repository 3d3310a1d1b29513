//! `assay demo --cold-start`: how well products that nobody has clicked on are found for users, by several embeddings.
//!
//! One recommender and one split serve all of them. This room trains nothing; it reads what ordinary jobs have written.

mod evaluation;
mod metrics;
mod recommender;
mod report;
mod run;
mod vectors;

pub use run::{ColdStartOptions, cold_start};
