//! The key-value cache of running sequences: blocks, who holds them, and where their numbers lie.

mod block;
mod pool;
mod prefix;
mod store;

pub use block::{BLOCK, BlockId};
pub use pool::BlockPool;
pub use prefix::{PictureRows, PrefixKey};
pub use store::{HostArrays, HostLayer, KvShape, KvStore, Place};
