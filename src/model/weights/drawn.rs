//! Numbers for a weight file that holds none: shapes of a real model for measuring, without its gigabytes.
//!
//! Such a file says so in its metadata, and its data is a hole. Vectors become ones, everything else is drawn evenly with a
//! standard deviation of 0.02; on a GPU the device draws. Zeros would not do: products of zeros are faster.

use candle_core::{DType, Device, Result, Tensor};

/// The entry of a safetensors file's metadata that marks it.
pub const KEY: &str = "values";
pub const VALUE: &str = "drawn";

/// Numbers lie within this of zero.
const REACH: f32 = 0.034_641;

/// The number at place `index` of its file; the same each time.
pub fn number(index: usize, is_vector: bool) -> f32 {
    if is_vector {
        return 1.0;
    }
    // The finaliser of SplitMix64 (Steele et al., 2014).
    let mut bits = (index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = (bits >> 40) as f32 / (1 << 24) as f32;
    (2.0 * part - 1.0) * REACH
}

/// A tensor that the device draws itself.
pub fn tensor(shape: &[usize], held: DType, device: &Device) -> Result<Tensor> {
    match shape {
        [_] => Tensor::ones(shape, held, device),
        _ => Tensor::rand(-REACH, REACH, shape, device)?.to_dtype(held),
    }
}
