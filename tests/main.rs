//! The one integration binary: every further binary would link candle, Delta and DataFusion again.

mod architecture;
mod command_line;
mod crash;
mod group;
mod line;
mod stage;
