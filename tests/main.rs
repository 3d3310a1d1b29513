//! The one integration binary: every further binary would link candle, Delta and DataFusion again.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod architecture;
mod chart;
mod command_line;
mod crash;
mod group;
mod line;
mod shipped_model;
mod stage;
mod status;
mod traces;
