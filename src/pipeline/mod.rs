//! The assembly line: one stage, one file.
