//! What the integration tests stand on: fakes at the four boundaries, a folder with everything of a run, and readers of
//! the tables it leaves.

pub mod deployment;
pub mod fakes;
pub mod tables;
pub mod worker;
