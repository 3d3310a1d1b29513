//! Pictures to the inputs of generators' vision towers.

mod patches;
mod tiles;

pub use patches::Patches;
pub use tiles::Tiles;
