//! A few rows times a float matrix on the CPU: what each step of writing spends its time on.
//!
//! Such a product is bound by reading the weights, so each is read once for all rows, 16-bit ones as they are. Plain
//! loops over sixteen numbers become vector instructions, chosen at run time; rows of weights are shared out among
//! threads. Invariant: a row's result has the same bits whatever the other rows are and however many.

use candle_core::{CpuStorage, DType, Device, Error, Result, Storage, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::lanes::{Stored, multiply_add};

/// More rows are better served by a product that cuts both sides into tiles.
const MOST_ROWS: usize = 16;

/// Rows of the input that share one pass over some rows of weights.
const ABREAST: usize = 4;

/// Rows of weights that share one pass over the input, where there are registers for all products.
const MANY: usize = 4;
const FEW: usize = 2;

/// Weights that make it worth waking another thread.
const WORTH_SHARING: usize = 1 << 15;

/// Whether [`product`] is the faster way for so many rows. In a build that is not optimised the library's product, which
/// always is, is faster for any number.
pub fn serves(rows: usize) -> bool {
    !cfg!(debug_assertions) && rows <= MOST_ROWS
}

/// `input`, `[rows, inputs]` in f32, times the transposed `weight`, `[outputs, inputs]` in f32, f16 or bf16.
pub fn product(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, inputs) = input.dims2()?;
    let outputs = weight.dim(0)?;
    let input = input.flatten_all()?.to_vec1::<f32>()?;
    // Rows may lie further apart than they are long.
    let weight = if weight.stride()[1] == 1 { weight.clone() } else { weight.contiguous()? };
    let (storage, layout) = weight.storage_and_layout();
    let (from, stride) = (layout.start_offset(), layout.stride()[0]);
    let range = from..from + outputs * stride;
    let sizes = Sizes { rows, inputs, stride };
    let turned = match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => multiply(&input, &values[range], sizes),
        Storage::Cpu(CpuStorage::F16(values)) => multiply(&input, &values[range], sizes),
        Storage::Cpu(CpuStorage::BF16(values)) => multiply(&input, &values[range], sizes),
        _ => return Err(Error::UnsupportedDTypeForOp(DType::U8, "skinny product")),
    };
    let turned = Tensor::from_vec(turned, (outputs, rows), &Device::Cpu)?;
    if rows == 1 { turned.reshape((1, outputs)) } else { turned.t()?.contiguous() }
}

/// `[outputs, rows]`
fn multiply<T: Stored>(input: &[f32], weight: &[T], sizes: Sizes) -> Vec<f32> {
    let Sizes { rows, inputs, stride } = sizes;
    let outputs = weight.len() / stride.max(1);
    let mut out = vec![0.0; outputs * rows];
    let arch = Arch::new();
    let share = outputs
        .div_ceil(rayon::current_num_threads() * 4)
        .next_multiple_of(MANY)
        .max(WORTH_SHARING.div_ceil(inputs.max(1)));
    let pieces = out.chunks_mut(share * rows).zip(weight.chunks(share * stride));
    if outputs <= share {
        pieces.for_each(|(out, weight)| run(arch, Piece { input, weight, sizes, out }));
    } else {
        let pieces: Vec<_> = pieces.collect();
        pieces.into_par_iter().for_each(|(out, weight)| run(arch, Piece { input, weight, sizes, out }));
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn run<T: Stored>(arch: Arch, piece: Piece<'_, T>) {
    use pulp::x86::V3;

    /// The instructions of AVX2 with the registers of AVX-512: twice as many of the same width.
    #[target_feature(enable = "avx,avx2,fma,avx512f,avx512vl")]
    fn with_many_registers<T: Stored>(simd: V3, piece: Piece<'_, T>) {
        piece.by::<V3, MANY>(simd);
    }

    let has_many = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    match V3::try_new() {
        // SAFETY: V3 has the first three features, and the others were just detected.
        Some(simd) if has_many => unsafe { with_many_registers(simd, piece) },
        _ => arch.dispatch(piece),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run<T: Stored>(arch: Arch, piece: Piece<'_, T>) {
    arch.dispatch(piece);
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Of the input.
    rows: usize,
    inputs: usize,
    /// From one row of weights to the next.
    stride: usize,
}

/// Some rows of the weight.
struct Piece<'a, T> {
    input: &'a [f32],
    /// `[outputs of the piece, stride]`
    weight: &'a [T],
    sizes: Sizes,
    /// `[outputs of the piece, rows]`
    out: &'a mut [f32],
}

impl<T: Stored> WithSimd for Piece<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 2 * ABREAST * MANY {
            self.by::<S, MANY>(simd);
        } else {
            self.by::<S, FEW>(simd);
        }
    }
}

impl<T: Stored> Piece<'_, T> {
    /// `W` rows of weights at a time, then the rest one by one.
    #[inline(always)]
    fn by<S: Simd, const W: usize>(self, simd: S) {
        let Self { input, weight, sizes, out } = self;
        let Sizes { rows, stride, .. } = sizes;
        let mut room = vec![0.0; if T::IS_WIDE { 0 } else { W * stride }];
        let mut groups = weight.chunks_exact(W * stride);
        let mut outs = out.chunks_exact_mut(W * rows);
        for (weights, out) in (&mut groups).zip(&mut outs) {
            some::<S, W>(simd, input, T::wide(weights, &mut room), sizes, out);
        }
        for (weights, out) in groups.remainder().chunks_exact(stride).zip(outs.into_remainder().chunks_exact_mut(rows))
        {
            some::<S, 1>(simd, input, T::wide(weights, &mut room), sizes, out);
        }
    }
}

/// `W` rows of weights, `[W, stride]`, times all rows of the input. `out` is `[W, rows]`.
#[inline(always)]
fn some<S: Simd, const W: usize>(simd: S, input: &[f32], weights: &[f32], sizes: Sizes, out: &mut [f32]) {
    let Sizes { rows, inputs, stride } = sizes;
    let weights: [&[f32]; W] = std::array::from_fn(|one| &weights[one * stride..one * stride + inputs]);
    let mut row = 0;
    while row + ABREAST <= rows {
        let inputs: [&[f32]; ABREAST] =
            std::array::from_fn(|one| &input[(row + one) * inputs..(row + one + 1) * inputs]);
        let sums = dots::<S, W, ABREAST>(simd, inputs, weights);
        for (weight, sums) in sums.iter().enumerate() {
            out[weight * rows + row..weight * rows + row + ABREAST].copy_from_slice(sums);
        }
        row += ABREAST;
    }
    for row in row..rows {
        let sums = dots::<S, W, 1>(simd, [&input[row * inputs..(row + 1) * inputs]], weights);
        for (weight, sums) in sums.iter().enumerate() {
            out[weight * rows + row] = sums[0];
        }
    }
}

/// Products of `N` rows of the input with `W` rows of weights, all of one length. Each is summed in the same order
/// whatever `N` and `W` are.
#[inline(always)]
fn dots<S: Simd, const W: usize, const N: usize>(simd: S, inputs: [&[f32]; N], weights: [&[f32]; W]) -> [[f32; N]; W] {
    let inputs = inputs.map(S::as_simd_f32s);
    let weights = weights.map(S::as_simd_f32s);
    let mut lanes = [[simd.splat_f32s(0.0); N]; W];
    let length = weights[0].0.len();
    let heads: [&[S::f32s]; N] = std::array::from_fn(|one| &inputs[one].0[..length]);
    let rows: [&[S::f32s]; W] = std::array::from_fn(|one| &weights[one].0[..length]);
    for at in 0..length {
        for one in 0..N {
            let value = heads[one][at];
            for weight in 0..W {
                lanes[weight][one] = simd.mul_add_f32s(rows[weight][at], value, lanes[weight][one]);
            }
        }
    }
    let mut sums = [[0.0; N]; W];
    for (weight, sums) in sums.iter_mut().enumerate() {
        for (one, sum) in sums.iter_mut().enumerate() {
            *sum = simd.reduce_sum_f32s(lanes[weight][one]);
            for (weight, value) in weights[weight].1.iter().zip(inputs[one].1) {
                *sum = multiply_add::<S>(*weight, *value, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::random;

    #[test]
    fn the_product_equals_the_librarys_for_odd_sizes_and_every_format() {
        for (rows, inputs, outputs) in [(1, 48, 7), (3, 37, 33), (8, 768, 90), (16, 5, 3)] {
            let (input, weight) = (random(rows, inputs, 1), random(outputs, inputs, 2));
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let weight = weight.to_dtype(dtype).unwrap();
                let expected = input.matmul(&weight.to_dtype(DType::F32).unwrap().t().unwrap()).unwrap();
                let found = product(&input, &weight).unwrap();
                assert_eq!(found.dims(), [rows, outputs]);
                let distance = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
                assert!(distance.to_scalar::<f32>().unwrap() < 2e-5, "{rows} x {inputs} x {outputs}, {dtype:?}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (input, weight) = (random(7, 100, 3), random(50, 100, 4));
        let together = product(&input, &weight).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in together.iter().enumerate() {
            let alone = product(&input.narrow(0, row, 1).unwrap(), &weight).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap()[0], *expected);
        }
    }
}
