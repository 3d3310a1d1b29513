//! Tables as Delta logs on any object store, each commit a compare-and-set on the offsets it contains.

mod commit;
mod guard;
mod head;
mod log;
mod resume;
mod sink;
mod store;
mod table;
mod upkeep;
mod writer;

#[cfg(test)]
mod tests;

pub use head::{TableHead, results_head};
pub use sink::DeltaSink;
pub use store::register_stores;
pub use upkeep::{TableUpkeep, UpkeepReport, upkeep};
