//! Qwen2.5-VL: a decoder with three-axis positions, and a vision tower that looks through windows.

mod family;
mod text_config;
mod vision;
mod vision_config;

pub use family::load;
