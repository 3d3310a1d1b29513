//! A catalogue of invented products and advertisements with drawn pictures, for `assay demo` and for training its model.
//!
//! This room knows nothing of Kafka, tables or models; it writes files. The same seed gives the same catalogue, and an
//! asset does not depend on how many others there are.

mod cold_start;
mod deployment;
mod faults;
mod files;
mod gallery;
mod market;
mod record;
mod run;
mod silhouette;
mod taxonomy;
mod write_market;

pub use cold_start::{ColdStartOptions, cold_start};
pub use market::{
    Extras, Interaction, Market, MarketFiles, MarketItem, MarketTruth, Photo, Seed, SeedTooLarge, Shop, Split, Study,
    Taste, Test, Training, Validation,
};
pub use run::{DemoOptions, run};
pub use taxonomy::{Category, categories};
pub use write_market::{MarketOptions, SplitName, write_market};
