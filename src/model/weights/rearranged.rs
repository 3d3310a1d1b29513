//! What the CPU's kernels keep of a matrix of blocks beside the blocks themselves.
//!
//! candle's x86 kernels read weights from a copy that is rearranged for their vector registers, made at the first product
//! and kept. It is worth several times the speed, and it counts as memory. This file knows when there is one and how large
//! it is (`quantized/repack_x86.rs` of candle-core 0.11); AMX makes a further one of Q4K, which is not counted. Matrices
//! that are held packed do not go through those kernels.

use candle_core::quantized::GgmlDType;

/// Outputs of a tile, and inputs of a block of the kernels.
const TILE: usize = 16;
const INPUTS: usize = 256;

/// Bytes of the copy that is kept of a matrix of `outputs` rows of `inputs` weights; 0 without one.
pub fn copy_bytes(blocks: GgmlDType, outputs: usize, inputs: usize) -> usize {
    let is_kept = outputs.is_multiple_of(TILE) && inputs.is_multiple_of(INPUTS);
    match blocks {
        GgmlDType::Q8_0 if is_kept && multiplies_short() => outputs * inputs / 32 * 34,
        // Four bits become a nibble and the scales of each block of 32 are spread out.
        GgmlDType::Q4K if is_kept && is_wide() => outputs * inputs / 4 * 3,
        _ => 0,
    }
}

#[cfg(target_arch = "x86_64")]
fn multiplies_short() -> bool {
    is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2")
}

#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_short() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn is_wide() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_does_not_fill_tiles_has_no_copy() {
        assert_eq!(copy_bytes(GgmlDType::Q8_0, 15, 256), 0);
        assert_eq!(copy_bytes(GgmlDType::Q4K, 16, 128), 0);
        assert_eq!(copy_bytes(GgmlDType::Q6K, 16, 256), 0);
    }
}
