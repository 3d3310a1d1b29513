//! The words of the job: assets, where they came from, what became of them, and the shape of a table.
//!
//! This room knows nothing of Kafka, tensors, files or clocks. Everything here is plain data that any
//! other room may hold.

mod asset;
mod origin;
mod outcome;
mod table;

pub use asset::{Ad, Asset, AssetKind, Content, MediaReference, Price, Product};
pub use origin::{Epoch, Origin, TopicPartition};
pub use outcome::{Annotation, Blame, Outcome, Rejection, Stage};
pub use table::{Column, ColumnType, Row, TableSchema, Value};
