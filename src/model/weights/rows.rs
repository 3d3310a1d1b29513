//! Stored numbers to held numbers, piece by piece, so that no tensor is in memory twice.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};

use super::drawn;
use super::mapped::{Layout, MappedFile, Stored};

/// Rows that are converted at once hold about so many numbers: what is large and short-lived leaves holes in the heap.
const AT_ONCE: usize = 1 << 17;

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
        _ if file.is_drawn => {
            range.for_each(|index| take(drawn::number(stored.start + index, stored.shape.len() == 1)))
        }
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
    let mut bytes = Vec::with_capacity(outputs * inputs / blocks.block_size() * blocks.type_size());
    for range in pieces(outputs, inputs) {
        let size = (range.len(), inputs);
        let piece = Tensor::from_vec(rows(range), size, &Device::Cpu)?;
        bytes.extend_from_slice(&QTensor::quantize(&piece, blocks)?.data()?);
    }
    QTensor::new(QStorage::from_data(bytes.into(), device, blocks)?, (outputs, inputs))
}

/// A matrix of floats of rows that `rows` hands out for a range of rows.
pub fn dense(
    (outputs, inputs): (usize, usize),
    held: DType,
    device: &Device,
    rows: impl Fn(Range<usize>) -> Vec<f32>,
) -> Result<Tensor> {
    fn all<T>(size: (usize, usize), rows: impl Fn(Range<usize>) -> Vec<f32>, narrow: fn(f32) -> T) -> Vec<T> {
        let mut values = Vec::with_capacity(size.0 * size.1);
        pieces(size.0, size.1).for_each(|range| values.extend(rows(range).into_iter().map(narrow)));
        values
    }
    let size = (outputs, inputs);
    match held {
        DType::F16 => Tensor::from_vec(all(size, rows, f16::from_f32), size, device),
        DType::BF16 => Tensor::from_vec(all(size, rows, bf16::from_f32), size, device),
        _ => Tensor::from_vec(all(size, rows, |value| value), size, device),
    }
}

/// Ranges of rows that are converted at once.
fn pieces(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let at_once = (AT_ONCE / width.max(1)).max(1);
    (0..rows).step_by(at_once).map(move |first| first..rows.min(first + at_once))
}
