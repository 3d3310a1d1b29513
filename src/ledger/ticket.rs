//! The receipt for one record under one assignment.
//!
//! A ticket is only good while its partition has the same epoch.

use std::fmt;

use crate::domain::{Epoch, TopicPartition};

/// Identifies one open entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub partition: TopicPartition,
    pub epoch: Epoch,
    pub offset: i64,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} (epoch {})", self.partition, self.offset, self.epoch.0)
    }
}
