//! Models: weights, tokenizers and forward passes. This room knows tokens and pixels, not products.

mod api;
mod clip;
mod config;
mod device;
#[cfg(test)]
mod fixture;
mod image_processor;
mod layers;
#[cfg(test)]
mod parity;
mod registry;
mod resize;
mod siglip;
mod tokenizer;
mod weights;

pub use api::{Encoder, ModelError, Picture, Pixels, Processor, TokenIds};
pub use device::open_device;
pub use registry::{Loaded, load};
pub use weights::Precision;
