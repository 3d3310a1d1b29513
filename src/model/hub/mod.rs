//! Models that are named by where they are published: `hf://org/name`, fetched once and kept in the hub's own cache.

mod address;
mod download;
mod error;
mod locate;
mod options;
#[cfg(test)]
mod server;
mod snapshot;
mod wanted;

pub use address::HubAddress;
pub use error::HubError;
pub use locate::locate;
pub use options::HubOptions;
