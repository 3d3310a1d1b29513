//! Qwen3-VL: a decoder with three-axis positions, and a vision tower that also feeds its first layers.

mod family;
mod text_config;
mod vision;
mod vision_config;

pub use family::load;
