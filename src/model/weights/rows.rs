//! Stored numbers to held numbers, piece by piece, so that no tensor is in memory twice.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::mapped::{MappedFile, Stored};

/// Rows that are quantised at once hold about so many numbers.
const QUANTISED_AT_ONCE: usize = 1 << 20;

/// Reads elements `range` of a tensor as f32.
pub fn floats(file: &MappedFile, stored: &Stored, dtype: DType, range: Range<usize>) -> Vec<f32> {
    let mut values = Vec::with_capacity(range.len());
    each(file, stored, dtype, range, |value| values.push(value));
    values
}

/// Reads elements `range` as a tensor of `shape`, held as `held`.
pub fn tensor(
    (file, stored, dtype): (&MappedFile, &Stored, DType),
    range: Range<usize>,
    shape: &[usize],
    held: DType,
    device: &Device,
) -> Result<Tensor> {
    match held {
        DType::F16 => {
            let mut values = Vec::with_capacity(range.len());
            each(file, stored, dtype, range, |value| values.push(f16::from_f32(value)));
            Tensor::from_vec(values, shape, device)
        }
        DType::BF16 => {
            let mut values = Vec::with_capacity(range.len());
            each(file, stored, dtype, range, |value| values.push(bf16::from_f32(value)));
            Tensor::from_vec(values, shape, device)
        }
        _ => Tensor::from_vec(floats(file, stored, dtype, range), shape, device),
    }
}

/// A 16-bit number to f32 is exact, and back gives the same number, so every format goes through f32.
fn each(file: &MappedFile, stored: &Stored, dtype: DType, range: Range<usize>, mut take: impl FnMut(f32)) {
    match dtype {
        DType::F32 => file.read(stored, range, 4, |bytes| {
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().for_each(|word| take(f32::from_le_bytes(*word)));
        }),
        DType::F16 => file.read(stored, range, 2, |bytes| {
            let (words, _) = bytes.as_chunks::<2>();
            words.iter().for_each(|word| take(f16::from_le_bytes(*word).to_f32()));
        }),
        _ => file.read(stored, range, 2, |bytes| {
            let (words, _) = bytes.as_chunks::<2>();
            words.iter().for_each(|word| take(bf16::from_le_bytes(*word).to_f32()));
        }),
    }
}

/// Quantises rows of `inputs` numbers, which `rows` hands out for a range of rows.
pub fn quantised(
    (outputs, inputs): (usize, usize),
    blocks: GgmlDType,
    device: &Device,
    rows: impl Fn(Range<usize>) -> Vec<f32>,
) -> Result<QTensor> {
    let at_once = (QUANTISED_AT_ONCE / inputs.max(1)).max(1);
    let mut bytes = Vec::with_capacity(outputs * inputs / blocks.block_size() * blocks.type_size());
    for first in (0..outputs).step_by(at_once) {
        let last = outputs.min(first + at_once);
        let piece = Tensor::from_vec(rows(first..last), (last - first, inputs), &Device::Cpu)?;
        bytes.extend_from_slice(&QTensor::quantize(&piece, blocks)?.data()?);
    }
    QTensor::new(QStorage::from_data(bytes.into(), device, blocks)?, (outputs, inputs))
}
