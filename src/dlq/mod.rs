//! `assay dlq`: the dead letters of the jobs, which are their rejections that nothing has cured since. They are listed, shown,
//! and sent again.
//!
//! Read `letters` (what a dead letter is), then `retry`.

mod arguments;
mod letters;
mod list;
mod retry;
mod tables;

pub use arguments::{DlqVerb, run};
pub use letters::{ATTEMPT, FIRST_ORIGIN};
