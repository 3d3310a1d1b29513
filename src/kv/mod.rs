//! The key-value cache of running sequences: blocks, who holds them, and where their numbers lie.

mod block;
mod store;

pub use block::{BLOCK, BlockId};
pub use store::{HostLayer, KvShape, KvStore};
