//! Llama 4: a mixture-of-experts decoder with chunked attention, and the vision tower that sees for it.

mod eyes;
mod family;
mod text_config;
mod vision;
mod vision_config;

pub use family::{load, load_text};
