//! Real servers for tests: Kafka brokers and object stores, started by the scripts of this folder.
//!
//! A server ends with the process of the tests, also when that is killed: the scripts watch it. Where a tool or a download
//! is missing, the run says so on standard error and the test is left out; `ASSAY_SERVICES=required` makes it fail.

pub mod kafka;
pub mod object_store;
mod script;

pub use script::say;
