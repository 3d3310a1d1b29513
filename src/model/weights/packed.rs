//! Matrices of 8-bit blocks as the CPU's product of bytes reads them.
//!
//! Instructions that multiply unsigned by signed bytes and add four neighbours (AVX-512 VNNI) want sixteen outputs side by
//! side, four inputs of each. A matrix that is laid out so is held instead of its blocks, not beside them. This file
//! knows the layout and the processors that have a use for it; the product is a layer's.

use candle_core::Result;
use candle_core::quantized::{GgmlDType, QTensor};

use crate::heap::prefer_large_pages;

/// Outputs of a tile.
pub const TILE_OUTPUTS: usize = 16;

/// Inputs that share a scale.
pub const BLOCK_INPUTS: usize = 32;

/// Lines of a tile's block.
pub const BLOCK_LINES: usize = BLOCK_INPUTS / 4;

/// Bytes of a stored block: its scale in f16, then its signed numbers.
const STORED: usize = 2 + BLOCK_INPUTS;

/// Four inputs of each output of a tile, 128 added to each; it begins where a line of the cache does.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct PackedLine(pub [u8; 4 * TILE_OUTPUTS]);

/// The scale of a block for each output of a tile, bits of an f16.
pub type PackedScales = [u16; TILE_OUTPUTS];

/// A matrix, `[outputs, inputs]`; outputs that the last tile lacks are zeros.
#[derive(Debug, Clone)]
pub struct Packed {
    pub outputs: usize,
    pub inputs: usize,
    /// `[tiles, blocks of inputs]`
    pub lines: Vec<[PackedLine; BLOCK_LINES]>,
    /// `[tiles, blocks of inputs]`
    pub scales: Vec<PackedScales>,
}

/// Whether matrices of these blocks are held packed on this machine's CPU.
pub fn packs(blocks: GgmlDType) -> bool {
    blocks == GgmlDType::Q8_0 && multiplies_bytes()
}

/// Memory of a packed matrix.
pub fn packed_bytes(outputs: usize, inputs: usize) -> usize {
    outputs.next_multiple_of(TILE_OUTPUTS) * inputs / BLOCK_INPUTS * STORED
}

/// Whether the processor has what the product of packed matrices is compiled for.
#[cfg(target_arch = "x86_64")]
pub fn multiplies_bytes() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_bytes() -> bool {
    false
}

impl Packed {
    /// From a matrix on the CPU, `[outputs, inputs]` in Q8_0.
    pub fn new(matrix: &QTensor) -> Result<Self> {
        let (outputs, inputs) = matrix.shape().dims2()?;
        let data = matrix.data()?;
        let (stored, _) = data.as_chunks::<STORED>();
        let blocks = inputs / BLOCK_INPUTS;
        let count = outputs.div_ceil(TILE_OUTPUTS) * blocks;
        let (mut lines, mut scales) = (Vec::with_capacity(count), Vec::with_capacity(count));
        prefer_large_pages(&mut lines);
        for tile in stored.chunks(TILE_OUTPUTS * blocks) {
            for block in 0..blocks {
                // The byte that stands for zero.
                let mut packed = [[0x80_u8; 4 * TILE_OUTPUTS]; BLOCK_LINES];
                let mut of_tile = [0; TILE_OUTPUTS];
                for (output, row) in tile.chunks(blocks).enumerate() {
                    let [low, high, numbers @ ..] = &row[block];
                    of_tile[output] = u16::from_le_bytes([*low, *high]);
                    for (four, line) in numbers.chunks(4).zip(&mut packed) {
                        let place = &mut line[4 * output..4 * output + 4];
                        // Of a signed number, turning the highest bit adds 128.
                        place.iter_mut().zip(four).for_each(|(packed, number)| *packed = number ^ 0x80);
                    }
                }
                lines.push(packed.map(PackedLine));
                scales.push(of_tile);
            }
        }
        Ok(Self { outputs, inputs, lines, scales })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn every_number_lies_at_its_output_and_input_and_what_is_missing_is_zero() {
        let (outputs, inputs) = (19, 64);
        let values: Vec<f32> = (0..outputs * inputs).map(|at| (at * 31 % 255) as f32 - 127.0).collect();
        let blocks =
            QTensor::quantize(&Tensor::from_vec(values, (outputs, inputs), &Device::Cpu).unwrap(), GgmlDType::Q8_0)
                .unwrap();
        let exact = blocks.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let packed = Packed::new(&blocks).unwrap();
        assert_eq!(packed.lines.len(), 2 * 2);
        for output in 0..2 * TILE_OUTPUTS {
            for input in 0..inputs {
                let at = output / TILE_OUTPUTS * 2 + input / BLOCK_INPUTS;
                let line = packed.lines[at][input % BLOCK_INPUTS / 4];
                let number = f32::from(line.0[output % TILE_OUTPUTS * 4 + input % 4]) - 128.0;
                let scale = half::f16::from_bits(packed.scales[at][output % TILE_OUTPUTS]).to_f32();
                let expected = exact.get(output).map_or(0.0, |row| row[input]);
                assert_eq!(number * scale, expected, "output {output}, input {input}");
            }
        }
        let held = size_of_val(packed.lines.as_slice()) + size_of_val(packed.scales.as_slice());
        assert_eq!(held, packed_bytes(outputs, inputs));
    }
}
