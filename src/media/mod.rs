//! Media: reading referenced pictures from object stores, and decoding them within limits.
//!
//! `options` names what may be read; `allow` decides about each reference; `remote` reads through `bucket`, `web` or
//! `folder`; `image` turns bytes into pixels.

mod address;
mod allow;
mod api;
mod body;
mod bucket;
mod container;
mod failure;
mod folder;
mod image;
mod options;
mod remote;
mod web;

pub use allow::{AllowList, BucketScheme, EntryError, Location};
pub use api::{DecodeLimits, Media, MediaError, MediaStore, Picture};
pub use body::content_hash;
pub use image::decode;
pub use options::{Options, OptionsError};
pub use remote::RemoteMedia;
