//! Which offsets of which partitions are open, settled, released and committed.
//!
//! Pure bookkeeping: no clock, no I/O, no Kafka. It answers one question: what may be written now, so that a table
//! never misses and never repeats an offset?

mod book;
mod partition;
mod ticket;

pub use book::{Ledger, Release, Settling};
pub use ticket::Ticket;
