//! Tests only: models against a kit of goldens of the reference implementation.
//!
//! `ASSAY_PARITY_KIT` names another kit in the same format; every case that its manifest lists is run.

mod compare;
mod driver;
mod files;
mod generators;
mod towers;

pub use driver::Driver;
pub use files::Kit;
