//! The text decoder that the generating families share.

mod forward;
mod generator;
mod layer;
mod options;
mod section;

pub use forward::Decoder;
pub use generator::{DecoderGenerator, Tower};
pub use options::{Biases, DecoderOptions, FeedForwardOptions, LayerOptions, QkNorm, Temperature};
pub use section::{FamilyDefaults, TextSection};
