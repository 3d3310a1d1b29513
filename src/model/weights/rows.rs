//! Stored numbers to held numbers, piece by piece, so that no tensor is in memory twice.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::mapped::{Layout, MappedFile, Stored};

/// Rows that are quantised at once hold about so many numbers.
const QUANTISED_AT_ONCE: usize = 1 << 20;

/// A stored tensor, where it is and how its numbers lie there.
pub type Found<'a> = (&'a MappedFile, &'a Stored, Layout);

/// Reads elements `range` of a tensor as f32; blocks are read whole.
pub fn floats(found: Found<'_>, range: Range<usize>) -> Vec<f32> {
    let mut values = Vec::with_capacity(range.len());
    each(found, range, |value| values.push(value));
    values
}

/// Reads elements `range` as a tensor of `shape`, held as `held`.
pub fn tensor(found: Found<'_>, range: Range<usize>, shape: &[usize], held: DType, device: &Device) -> Result<Tensor> {
    match held {
        DType::F16 => {
            let mut values = Vec::with_capacity(range.len());
            each(found, range, |value| values.push(f16::from_f32(value)));
            Tensor::from_vec(values, shape, device)
        }
        DType::BF16 => {
            let mut values = Vec::with_capacity(range.len());
            each(found, range, |value| values.push(bf16::from_f32(value)));
            Tensor::from_vec(values, shape, device)
        }
        _ => Tensor::from_vec(floats(found, range), shape, device),
    }
}

/// A 16-bit number to f32 is exact, and back gives the same number, so every format goes through f32.
fn each((file, stored, layout): Found<'_>, range: Range<usize>, mut take: impl FnMut(f32)) {
    match layout {
        Layout::Blocks(blocks) => {
            let length = blocks.block_size();
            let range = range.start / length..range.end.div_ceil(length);
            file.read(stored, range, blocks.type_size(), |bytes| {
                widened(bytes, blocks).into_iter().for_each(&mut take)
            });
        }
        Layout::Floats(DType::F32) => file.read(stored, range, 4, |bytes| {
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().for_each(|word| take(f32::from_le_bytes(*word)));
        }),
        Layout::Floats(DType::F16) => file.read(stored, range, 2, |bytes| {
            let (words, _) = bytes.as_chunks::<2>();
            words.iter().for_each(|word| take(f16::from_le_bytes(*word).to_f32()));
        }),
        Layout::Floats(_) => file.read(stored, range, 2, |bytes| {
            let (words, _) = bytes.as_chunks::<2>();
            words.iter().for_each(|word| take(bf16::from_le_bytes(*word).to_f32()));
        }),
    }
}

/// The numbers of whole blocks.
fn widened(bytes: &[u8], blocks: GgmlDType) -> Vec<f32> {
    let count = bytes.len() / blocks.type_size() * blocks.block_size();
    let values = QStorage::from_data(bytes.into(), &Device::Cpu, blocks)
        .and_then(|storage| QTensor::new(storage, count))
        .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.to_vec1());
    values.expect("blocks are whole, their format is one that can be widened, and the CPU has no other way to fail")
}

/// Takes over matrices that are stored as the same blocks, one below the other, as they are.
pub fn kept(
    parts: &[Found<'_>],
    (outputs, inputs): (usize, usize),
    blocks: GgmlDType,
    device: &Device,
) -> Result<QTensor> {
    let mut bytes = Vec::with_capacity(outputs * inputs / blocks.block_size() * blocks.type_size());
    for (file, stored, _) in parts {
        let count = stored.shape.iter().product::<usize>() / blocks.block_size();
        file.read(stored, 0..count, blocks.type_size(), |piece| bytes.extend_from_slice(piece));
    }
    QTensor::new(QStorage::from_data(bytes.into(), device, blocks)?, (outputs, inputs))
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
