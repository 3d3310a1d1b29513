//! A generated catalogue to train and judge models with: facts that stand in pictures, in texts, or in both.
//!
//! This room draws and writes files; it knows no model, no job and no broker. Training, validation and test share no random
//! stream and no brand, and the types of their seeds keep them apart.

mod advert;
mod brand;
mod facts;
mod generate;
mod interactions;
mod item;
mod lettering;
mod photo;
mod split;
mod surface;
#[cfg(test)]
mod tests;
mod typos;
mod wording;

pub use generate::{Extras, Market, MarketFiles};
pub use interactions::{Interaction, Study, Taste};
pub use item::{MarketItem, MarketTruth};
pub use photo::Photo;
pub use split::{Seed, SeedTooLarge, Shop, Split, Test, Training, Validation};
