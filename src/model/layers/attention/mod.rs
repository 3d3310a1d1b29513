//! Causal attention over the paged cache: what a step's rows may see, and the two ways to compute it.

mod gathered;
mod host;
mod paged;
mod plan;

pub use paged::attend;
pub use plan::AttentionPlan;
