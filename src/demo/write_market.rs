//! `assay demo --catalogue`: writes a generated catalogue and nothing else.
//!
//! It turns the word for a split into its type; from here on splits cannot be mixed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::market::{Extras, Market, Seed, Split, Test, Training, Validation};

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct MarketOptions {
    /// Must be new or empty.
    pub dir: PathBuf,
    pub items: usize,
    pub seed: u64,
    pub split: SplitName,
    /// Write where the thing is seen in each picture, too.
    pub masks: bool,
}

/// The word for a [`Split`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitName {
    #[value(alias = "train")]
    Training,
    Validation,
    Test,
}

/// Writes the catalogue and says what it has written on standard output.
///
/// # Errors
/// A seed that is too large, a folder that is not empty, or whatever the file system says.
pub fn write_market(options: &MarketOptions) -> Result<()> {
    match options.split {
        SplitName::Training => write::<Training>(options),
        SplitName::Validation => write::<Validation>(options),
        SplitName::Test => write::<Test>(options),
    }
}

fn write<S: Split>(options: &MarketOptions) -> Result<()> {
    let started = Instant::now();
    let dir = super::deployment::make_empty(&options.dir)?;
    let market = Market::<S>::generate(Seed::new(options.seed)?, options.items);
    let written = market
        .write(&dir, Extras { masks: options.masks, faults: false })
        .with_context(|| dir.display().to_string())?;
    println!(
        "{} assets of the {} split with {} pictures in {} ({:.1} s)",
        market.items.len(),
        S::NAME,
        written.pictures,
        dir.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}
