//! Rows times a packed matrix of 8-bit blocks, on the CPU.
//!
//! Inputs are rounded to 8 bits, too, with a scale for each block of 32 (symmetric, as Q8_0 has it), so that what is summed
//! up within a block are whole numbers. Up to eight rows share each look at the weights; threads share out rows where there
//! are many, else outputs. Invariant: a result has the same bits whatever the other rows are and however many.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Error, Result, Storage, Tensor};
use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::model::weights::{BLOCK_INPUTS as BLOCK, BLOCK_LINES as LINES, Packed, TILE_OUTPUTS as TILE};

/// Rows that are handed out together: rounded, they stay in the second cache.
const CHUNK: usize = 128;

/// Tiles of outputs that all rows of a share go through before the next tiles.
const TILES: usize = 4;

/// Weights, and multiplications, that make it worth waking another thread.
const WORTH_READING: usize = 1 << 17;
const WORTH_MULTIPLYING: usize = 1 << 20;

/// `input`, `[rows, inputs]` in f32, times the transposed `weight`, `[outputs, inputs]`.
pub fn product(input: &Tensor, weight: &Packed) -> Result<Tensor> {
    let (rows, inputs) = input.dims2()?;
    if inputs != weight.inputs {
        candle_core::bail!("rows of {inputs} numbers cannot be multiplied by a matrix of {} inputs", weight.inputs);
    }
    let input = input.contiguous()?;
    let (storage, layout) = input.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(Error::UnsupportedDTypeForOp(DType::U8, "packed product"));
    };
    let from = layout.start_offset();
    let out = multiply(&values[from..from + rows * inputs], weight, rows);
    Tensor::from_vec(out, (rows, weight.outputs), &Device::Cpu)
}

/// `[rows, outputs]`
fn multiply(input: &[f32], weight: &Packed, rows: usize) -> Vec<f32> {
    let Packed { outputs, inputs, .. } = *weight;
    let mut out = vec![0.0; rows * outputs];
    if out.is_empty() {
        return out;
    }
    let alone = outputs * inputs < WORTH_READING && rows * outputs * inputs < WORTH_MULTIPLYING;
    let threads = if alone { 1 } else { rayon::current_num_threads() };
    let parts = if alone { 1 } else { (4 * threads).div_ceil(rows.div_ceil(CHUNK)) };
    let width = outputs.div_ceil(parts).next_multiple_of(TILES * TILE);
    let chunks: Vec<_> = input.chunks(CHUNK * inputs).zip(out.chunks_mut(CHUNK * outputs)).collect();
    let mut rounded: Vec<(Rounded, &mut [f32])> = match chunks.len() {
        1 => chunks.into_iter().map(|(input, out)| (Rounded::new(input, inputs), out)).collect(),
        _ => chunks.into_par_iter().map(|(input, out)| (Rounded::new(input, inputs), out)).collect(),
    };
    let shares = rounded.iter_mut().flat_map(|(rows, out)| {
        let rows = &*rows;
        let parts = split(out, outputs, width).into_iter().enumerate();
        parts.map(move |(part, out)| Share { weight, rows, first_tile: part * width / TILE, out })
    });
    let shares: Vec<Share<'_>> = shares.collect();
    match alone {
        true => shares.into_iter().for_each(Share::run),
        false => shares.into_par_iter().for_each(Share::run),
    }
    out
}

/// Columns of `[rows, outputs]`, `width` at a time, row by row.
fn split(out: &mut [f32], outputs: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(width)).map(|_| Vec::new()).collect();
    for row in out.chunks_mut(outputs) {
        parts.iter_mut().zip(row.chunks_mut(width)).for_each(|(part, piece)| part.push(piece));
    }
    parts
}

/// Rows that share each look at the weights: the first one and how many, eight at a time, then four, two and one.
fn groups(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let count = [8, 4, 2, 1].into_iter().find(|count| next + count <= rows)?;
        next += count;
        Some((next - count, count))
    })
}

/// Rows rounded to 8 bits. What belongs to a block of inputs lies together for all rows of a group.
struct Rounded {
    rows: usize,
    blocks: usize,
    /// Four signed bytes each: of each group `[blocks, LINES, rows of the group]`.
    fours: Vec<i32>,
    /// Of each group `[blocks, rows of the group]`: what takes back that weights have 128 added to them.
    offsets: Vec<i32>,
    /// Of each group `[blocks, rows of the group]`.
    scales: Vec<f32>,
}

/// A group of rows, block by block.
struct Group<'a, const R: usize> {
    fours: &'a [[[i32; R]; LINES]],
    offsets: &'a [[i32; R]],
    scales: &'a [[f32; R]],
}

impl Rounded {
    fn new(input: &[f32], inputs: usize) -> Self {
        let (rows, blocks) = (input.len() / inputs, inputs / BLOCK);
        let count = rows * blocks;
        let rounded =
            Self { rows, blocks, fours: vec![0; count * LINES], offsets: vec![0; count], scales: vec![0.0; count] };
        Arch::new().dispatch(Rounding { input, inputs, rounded })
    }

    /// The group that begins with row `first`.
    #[inline(always)]
    fn group<const R: usize>(&self, first: usize) -> Group<'_, R> {
        let range = first * self.blocks..(first + R) * self.blocks;
        let (fours, _) = self.fours[range.start * LINES..range.end * LINES].as_chunks::<R>();
        let (offsets, _) = self.offsets[range.clone()].as_chunks::<R>();
        let (scales, _) = self.scales[range].as_chunks::<R>();
        Group { fours: fours.as_chunks().0, offsets, scales }
    }
}

struct Rounding<'a> {
    input: &'a [f32],
    inputs: usize,
    rounded: Rounded,
}

impl WithSimd for Rounding<'_> {
    type Output = Rounded;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Rounded {
        let Self { input, inputs, mut rounded } = self;
        let blocks = rounded.blocks;
        for (first, count) in groups(rounded.rows) {
            for row in 0..count {
                let values = &input[(first + row) * inputs..(first + row + 1) * inputs];
                for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let (scale, numbers) = round(values);
                    let at = first * blocks + block * count;
                    rounded.scales[at + row] = scale;
                    let mut sum = 0;
                    for number in numbers {
                        sum += i32::from(number);
                    }
                    rounded.offsets[at + row] = -128 * sum;
                    let fours = &mut rounded.fours[at * LINES..(at + count) * LINES];
                    for (four, place) in numbers.as_chunks::<4>().0.iter().zip(fours.chunks_mut(count)) {
                        let [a, b, c, d] = *four;
                        place[row] = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
                    }
                }
            }
        }
        rounded
    }
}

/// A scale, and whole numbers between -127 and 127 that are the values when multiplied by it. A value that is not finite
/// makes the scale so, and with it all sums.
#[inline(always)]
fn round(values: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    // Adding 1.5 * 2^23 rounds to a whole number, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // Below this the inverse of the scale would be too large for a number.
    const SMALLEST: f32 = 1e-36;
    // Loops and no closures: what is not inlined would be compiled for the oldest processors.
    let mut largest = 0;
    for value in values {
        // Without its sign a number is the larger the larger its bits are, NaN the largest of all.
        largest = largest.max(value.abs().to_bits());
    }
    let largest = f32::from_bits(largest);
    let (values, inverse) = match largest.is_finite() && largest > SMALLEST {
        true => (*values, 127.0 / largest),
        false => ([0.0; BLOCK], 0.0),
    };
    let mut numbers = [0; BLOCK];
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = (value * inverse + ROUND).to_bits() as i8;
    }
    (largest / 127.0, numbers)
}

/// Some outputs of some rows.
struct Share<'a> {
    weight: &'a Packed,
    rows: &'a Rounded,
    first_tile: usize,
    /// Row by row, all of one width.
    out: Vec<&'a mut [f32]>,
}

impl Share<'_> {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    fn run(self) {
        if crate::model::weights::multiplies_bytes() {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { vnni::run(self) }
        } else {
            self.run_plainly();
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn run(self) {
        self.run_plainly();
    }

    fn tiles(&self) -> Range<usize> {
        let width = self.out.first().map_or(0, |out| out.len());
        self.first_tile..self.first_tile + width.div_ceil(TILE)
    }

    /// Puts what a tile of outputs has for a row in its place.
    #[inline(always)]
    fn put(&mut self, row: usize, tile: usize, sums: [f32; TILE]) {
        let out = &mut self.out[row][(tile - self.first_tile) * TILE..];
        match out.first_chunk_mut() {
            Some(out) => *out = sums,
            None => out.copy_from_slice(&sums[..out.len()]),
        }
    }

    /// What the vectors do, number by number.
    fn run_plainly(mut self) {
        for tile in self.tiles() {
            for (first, count) in groups(self.rows.rows) {
                match count {
                    8 => self.group::<8>(first, tile),
                    4 => self.group::<4>(first, tile),
                    2 => self.group::<2>(first, tile),
                    _ => self.group::<1>(first, tile),
                }
            }
        }
    }

    fn group<const R: usize>(&mut self, first: usize, tile: usize) {
        let Group { fours, offsets, scales } = self.rows.group::<R>(first);
        let blocks = tile * self.rows.blocks..(tile + 1) * self.rows.blocks;
        let weights = self.weight.lines[blocks.clone()].iter().zip(&self.weight.scales[blocks]);
        let mut sums = [[0.0_f32; TILE]; R];
        for (block, (lines, weight_scales)) in weights.enumerate() {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (output, sum) in sums.iter_mut().enumerate() {
                    let mut whole = offsets[block][row];
                    for (line, fours) in lines.iter().zip(&fours[block]) {
                        let numbers = fours[row].to_le_bytes().map(|byte| i32::from(byte as i8));
                        let bytes = line.0[4 * output..].iter().map(|byte| i32::from(*byte));
                        whole += numbers.iter().zip(bytes).map(|(number, byte)| number * byte).sum::<i32>();
                    }
                    let scale = f16::from_bits(weight_scales[output]).to_f32() * scales[block][row];
                    *sum = (whole as f32).mul_add(scale, *sum);
                }
            }
        }
        sums.into_iter().enumerate().for_each(|(row, sums)| self.put(first + row, tile, sums));
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{
        __m512, __m512i, _mm256_loadu_si256, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
        _mm512_load_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Group, Packed, Rounded, Share, TILE, TILES, groups};
    use crate::model::layers::lanes::fetch_line;
    use crate::model::weights::{PackedLine, PackedScales};

    /// How far ahead weights are asked for, in lines of the cache: what the processor does by itself leaves a fifth of the
    /// memory's speed unused.
    const AHEAD: usize = 64;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn run(mut share: Share<'_>) {
        let all = share.tiles();
        for first_tile in all.clone().step_by(TILES) {
            let tiles = first_tile..(first_tile + TILES).min(all.end);
            for (row, count) in groups(share.rows.rows) {
                // As many tiles side by side as keep the processor busy with so many rows.
                match count {
                    8 => some::<8, 1>(&mut share, row, tiles.clone()),
                    4 => some::<4, 2>(&mut share, row, tiles.clone()),
                    2 => some::<2, 4>(&mut share, row, tiles.clone()),
                    _ => some::<1, 4>(&mut share, row, tiles.clone()),
                }
            }
        }
    }

    /// `R` rows times some tiles, `T` of them side by side while there are so many.
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn some<const R: usize, const T: usize>(share: &mut Share<'_>, row: usize, mut tiles: std::ops::Range<usize>) {
        while !tiles.is_empty() {
            let first = tiles.start;
            if tiles.len() >= T {
                put(share, row, first, dots::<R, T>(share.weight, share.rows, row, first));
                tiles.start += T;
            } else {
                put(share, row, first, dots::<R, 1>(share.weight, share.rows, row, first));
                tiles.start += 1;
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn put<const R: usize, const T: usize>(share: &mut Share<'_>, row: usize, tile: usize, sums: [[__m512; T]; R]) {
        for (row, sums) in (row..).zip(sums) {
            (tile..).zip(sums).for_each(|(tile, sums)| share.put(row, tile, numbers(sums)));
        }
    }

    /// Products of `R` rows with `T` tiles of outputs. Each is summed in the same order whatever `R` and `T` are.
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dots<const R: usize, const T: usize>(
        weight: &Packed,
        rows: &Rounded,
        first_row: usize,
        first_tile: usize,
    ) -> [[__m512; T]; R] {
        let Group { fours, offsets, scales } = rows.group::<R>(first_row);
        let blocks = rows.blocks;
        let all = first_tile * blocks..(first_tile + T) * blocks;
        let (lines, weight_scales) = (&weight.lines[all.clone()], &weight.scales[all]);
        let mut sums = [[_mm512_setzero_ps(); T]; R];
        for (block, ((fours, offsets), scales)) in fours.iter().zip(offsets).zip(scales).enumerate() {
            // Looked up before all else: a check between the products would keep numbers from being read by them directly.
            let mut here = [(&lines[block], &weight_scales[block]); T];
            for (tile, here) in here.iter_mut().enumerate().skip(1) {
                *here = (&lines[tile * blocks + block], &weight_scales[tile * blocks + block]);
            }
            let mut wholes = [[_mm512_set1_epi32(0); T]; R];
            for (wholes, offset) in wholes.iter_mut().zip(offsets) {
                *wholes = [_mm512_set1_epi32(*offset); T];
            }
            for (line, fours) in fours.iter().enumerate() {
                for (tile, (lines, _)) in here.iter().enumerate() {
                    fetch_line(lines.as_ptr().wrapping_add(line + AHEAD));
                    let bytes = bytes(&lines[line]);
                    for (wholes, four) in wholes.iter_mut().zip(fours) {
                        wholes[tile] = _mm512_dpbusd_epi32(wholes[tile], bytes, _mm512_set1_epi32(*four));
                    }
                }
            }
            for (tile, (_, weight_scales)) in here.iter().enumerate() {
                let weight_scale = widened(weight_scales);
                for ((sums, wholes), scale) in sums.iter_mut().zip(&wholes).zip(scales) {
                    let scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(*scale));
                    sums[tile] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(wholes[tile]), scale, sums[tile]);
                }
            }
        }
        sums
    }

    #[inline]
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    fn bytes(line: &PackedLine) -> __m512i {
        // SAFETY: a line has 64 bytes and is aligned to as many.
        unsafe { _mm512_load_si512(std::ptr::from_ref(line).cast()) }
    }

    #[inline]
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    fn widened(scales: &PackedScales) -> __m512 {
        // SAFETY: they are 32 bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
    }

    #[inline]
    #[allow(unsafe_code)]
    #[target_feature(enable = "avx512f")]
    fn numbers(lanes: __m512) -> [f32; TILE] {
        let mut numbers = [0.0; TILE];
        // SAFETY: they are sixteen on both sides.
        unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), lanes) };
        numbers
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::model::fixture::random;

    fn quantised(outputs: usize, inputs: usize, seed: u64) -> QTensor {
        QTensor::quantize(&random(outputs, inputs, seed), GgmlDType::Q8_0).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<Vec<u32>> {
        let rows = tensor.to_vec2::<f32>().unwrap();
        rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
    }

    #[test]
    fn the_product_is_the_exact_one_but_for_rounding_the_input_whatever_the_sizes() {
        for (rows, inputs, outputs) in [(1, 32, 7), (3, 96, 33), (8, 768, 90), (15, 64, 160), (300, 64, 40)] {
            let (input, weight) = (random(rows, inputs, 1), quantised(outputs, inputs, 2));
            let expected = input.matmul(&weight.dequantize(&Device::Cpu).unwrap().t().unwrap()).unwrap();
            let found = product(&input, &Packed::new(&weight).unwrap()).unwrap();
            assert_eq!(found.dims(), [rows, outputs]);
            let distance = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            // Each input is off by half of its 127th at most, evenly spread: one in a million is off by five deviations.
            let most = 5.5 / 127.0 / 12_f32.sqrt() * (inputs as f32 / 3.0).sqrt();
            assert!(distance < most, "{rows} x {inputs} x {outputs}: {distance}, {most}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (input, weight) = (random(143, 96, 3), Packed::new(&quantised(200, 96, 4)).unwrap());
        let together = bits(&product(&input, &weight).unwrap());
        for (row, expected) in together.iter().enumerate() {
            assert_eq!(bits(&product(&input.narrow(0, row, 1).unwrap(), &weight).unwrap())[0], *expected);
        }
        for count in 2..16 {
            let some = bits(&product(&input.narrow(0, 20, count).unwrap(), &weight).unwrap());
            assert_eq!(some, together[20..20 + count], "{count} rows");
        }
    }

    #[test]
    fn vectors_and_plain_loops_give_the_same_bits() {
        let (inputs, outputs) = (64, 100);
        let weight = Packed::new(&quantised(outputs, inputs, 6)).unwrap();
        for rows in 1..=16 {
            let input = random(rows, inputs, 5);
            let values = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (rounded, mut out) = (Rounded::new(&values, inputs), vec![0.0; rows * outputs]);
            let parts = split(&mut out, outputs, outputs).remove(0);
            Share { weight: &weight, rows: &rounded, first_tile: 0, out: parts }.run_plainly();
            let plain = Tensor::from_vec(out, (rows, outputs), &Device::Cpu).unwrap();
            assert_eq!(bits(&product(&input, &weight).unwrap()), bits(&plain), "{rows} rows");
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_its_row_and_in_no_other() {
        let weight = Packed::new(&quantised(40, 64, 7)).unwrap();
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5_f32; 3 * 64];
            values[64 + 40] = odd;
            let input = Tensor::from_vec(values, (3, 64), &Device::Cpu).unwrap();
            let found = product(&input, &weight).unwrap().to_vec2::<f32>().unwrap();
            let finite = found.iter().map(|row| row.iter().filter(|value| value.is_finite()).count());
            assert_eq!(finite.collect::<Vec<_>>(), [40, 0, 40], "{odd}");
        }
    }

    #[test]
    fn rows_of_another_length_are_refused() {
        let weight = Packed::new(&quantised(40, 64, 7)).unwrap();
        let refusal = product(&random(2, 32, 1), &weight).unwrap_err().to_string();
        assert!(refusal.contains("32") && refusal.contains("64"), "{refusal}");
    }

    #[test]
    fn zeros_and_very_small_numbers_are_no_trouble() {
        let weight = Packed::new(&quantised(16, 32, 8)).unwrap();
        for value in [0.0_f32, 1e-42, -1e-38, 1e-30] {
            let input = Tensor::full(value, (1, 32), &Device::Cpu).unwrap();
            let found = product(&input, &weight).unwrap().abs().unwrap().max_all().unwrap();
            let found = found.to_scalar::<f32>().unwrap();
            assert!(found <= 33.0 * value.abs(), "{value}: {found}");
        }
    }
}
