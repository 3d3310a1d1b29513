//! Which offsets of which partitions are open, settled and released. Pure: no clock, no I/O.
