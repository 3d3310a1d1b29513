//! Causal attention over the paged cache: what a step's rows may see, and the ways to compute it.

mod arranged;
mod device;
mod gathered;
mod host;
mod paged;
mod plan;
mod tiles;

pub use arranged::{Arrangement, arrange};
pub use device::DevicePlan;
pub use paged::attend;
pub use plan::AttentionPlan;
