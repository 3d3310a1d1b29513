//! Media: reading referenced pictures from object stores, and decoding them within limits.

mod api;

pub use api::{DecodeLimits, Media, MediaError, MediaStore, Picture};
