//! `assay status`: where each job stands, from Kafka and the tables alone, so that it answers when every worker is down.
//!
//! Read `run`, then `gather` (what is asked of whom), then `report` (what is told).

mod gather;
mod report;
mod run;

pub use report::JobStatus;
pub use run::{StatusOptions, run};
