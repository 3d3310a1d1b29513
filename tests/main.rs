//! The one integration binary: every further binary would link candle, Delta and DataFusion again.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod annotate;
mod architecture;
mod brokers;
mod chaos;
mod chart;
mod command_line;
mod crash;
mod crash_points;
mod dead_letters;
mod evaluation;
mod group;
mod hostile;
mod line;
mod scaling;
mod security;
mod services;
mod shipped_model;
mod stage;
mod status;
mod stores;
mod traces;
