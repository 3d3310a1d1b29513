//! Worker processes against real servers while everything around them fails, by a plan that a seed decides.
//!
//! `plan` says what happens when; `fleet` are the workers; `weather` is what stands between them and the store; `figures` is what is measured; `verdict` compares
//! the tables with what was sent; `trial` runs the whole. `small` holds single mishaps: a full disk, a clock that jumps.

mod figures;
mod fleet;
pub mod plan;
mod small;
mod trial;
mod verdict;
pub mod weather;

pub use trial::put_picture;
