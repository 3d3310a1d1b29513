//! Attention on the CPU, straight from the cache's blocks.
//!
//! Works a few rows of one group of heads at a time through the blocks that they see, with the running softmax of Milakov
//! and Gimelshein, 2018, so no score outlives its block. Plain loops over a block's sixteen keys become vector
//! instructions, chosen at run time. Invariants: a row's arithmetic does not depend on the rows beside it, bit for bit;
//! slots that a row must not see are not even multiplied by zero.

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::plan::{AttentionPlan, Segment};
use crate::kv::{BLOCK, BlockId, HostLayer, KvShape};
use crate::model::layers::lanes::multiply_add;

/// Rows that share each block's keys while these are near.
const TILE_ROWS: usize = 8;

/// Queries whose scores are worked out side by side.
const ABREAST: usize = 4;

/// Below this many multiplications other threads are not worth waking.
const WORTH_SHARING: usize = 1 << 18;

/// See [`super::attend`].
pub fn attend(
    queries: &Tensor,
    cached: &HostLayer,
    shape: KvShape,
    plan: &AttentionPlan<'_>,
    segments: &[Segment],
) -> Result<Tensor> {
    let (heads, rows, width) = queries.dims3()?;
    let group = heads / shape.kv_heads;
    let values = queries.flatten_all()?.to_vec1::<f32>()?;
    let layer = Layer { queries: &values, rows, group, width, cached, kv_heads: shape.kv_heads };
    let mut out = vec![0.0; heads * rows * width];
    let mut tiles = Vec::new();
    let mut work = 0;
    for (head, mut rest) in out.chunks_mut((rows * group * width).max(1)).enumerate() {
        for segment in segments {
            for offset in (0..segment.rows.len()).step_by(TILE_ROWS) {
                let count = TILE_ROWS.min(segment.rows.len() - offset);
                let (out, later) = rest.split_at_mut(count * group * width);
                rest = later;
                let position = segment.position + offset;
                work += count * group * width * (position + count - segment.first_key);
                let first_row = segment.rows.start + offset;
                let blocks = plan.tables[segment.sequence];
                let first_key = segment.first_key;
                tiles.push(Tile { layer: &layer, head, first_row, count, position, first_key, blocks, out });
            }
        }
    }
    let arch = Arch::new();
    if work < WORTH_SHARING {
        tiles.into_iter().for_each(|tile| arch.dispatch(tile));
    } else {
        tiles.into_par_iter().for_each(|tile| arch.dispatch(tile));
    }
    let out = Tensor::from_vec(out, (shape.kv_heads, rows, group * width), &Device::Cpu)?;
    out.transpose(0, 1)?.contiguous()?.reshape((rows, heads * width))
}

/// What all tiles of a layer share.
struct Layer<'a> {
    /// `[heads, rows, width]`
    queries: &'a [f32],
    rows: usize,
    group: usize,
    width: usize,
    cached: &'a HostLayer,
    kv_heads: usize,
}

/// Some rows of one segment, for the heads that share one head of keys.
struct Tile<'a> {
    layer: &'a Layer<'a>,
    /// Of keys and values.
    head: usize,
    first_row: usize,
    count: usize,
    /// Of the first row.
    position: usize,
    first_key: usize,
    blocks: &'a [BlockId],
    /// `[count, group, width]`
    out: &'a mut [f32],
}

/// A query's running softmax.
#[derive(Clone, Copy)]
struct Running {
    highest: f32,
    sum: f32,
}

impl WithSimd for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { layer, head, first_row, count, position, first_key, blocks, out } = self;
        let (group, width) = (layer.group, layer.width);
        let queries = scaled_queries(layer, head, first_row, count);
        let mut running = vec![Running { highest: f32::NEG_INFINITY, sum: 0.0 }; count * group];
        let block_len = width * BLOCK;
        let seen = first_key / BLOCK..(position + count).div_ceil(BLOCK);
        for (block, id) in seen.clone().zip(&blocks[seen]) {
            let at = (id.0 as usize * layer.kv_heads + head) * block_len;
            let (keys, values) = (&layer.cached.keys[at..at + block_len], &layer.cached.values[at..at + block_len]);
            let low = first_key.saturating_sub(block * BLOCK);
            // Rows before this block's first key see none of it.
            let first_query = (block * BLOCK).saturating_sub(position) * group;
            for query in (first_query..count * group).step_by(ABREAST) {
                let abreast = ABREAST.min(count * group - query);
                let mut scores = [[0.0; BLOCK]; ABREAST];
                if abreast == ABREAST {
                    score::<S, ABREAST>(&queries[query * width..], keys, width, &mut scores);
                } else {
                    for (one, scores) in scores.iter_mut().enumerate().take(abreast) {
                        let scores = std::array::from_mut(scores);
                        score::<S, 1>(&queries[(query + one) * width..], keys, width, scores);
                    }
                }
                for (one, scores) in scores.iter_mut().enumerate().take(abreast) {
                    let row = (query + one) / group;
                    let high = BLOCK.min(position + row + 1 - block * BLOCK);
                    let out = &mut out[(query + one) * width..(query + one + 1) * width];
                    let shrink = weigh::<S>(scores, low, high, &mut running[query + one]);
                    mix::<S>(&scores[low..high], &values[low * width..high * width], shrink, out);
                }
            }
        }
        for (query, running) in running.iter().enumerate() {
            let part = 1.0 / running.sum;
            out[query * width..(query + 1) * width].iter_mut().for_each(|value| *value *= part);
        }
    }
}

/// The tile's queries, `[count, group, width]`, times `1 / sqrt(width)`.
#[inline(always)]
fn scaled_queries(layer: &Layer<'_>, head: usize, first_row: usize, count: usize) -> Vec<f32> {
    let Layer { queries, rows, group, width, .. } = *layer;
    let scale = (width as f64).powf(-0.5) as f32;
    let mut scaled = Vec::with_capacity(count * group * width);
    for row in first_row..first_row + count {
        for member in 0..group {
            let from = ((head * group + member) * rows + row) * width;
            scaled.extend(queries[from..from + width].iter().map(|value| value * scale));
        }
    }
    scaled
}

/// Products of `N` queries with the keys of a block, `[width, BLOCK]`.
#[inline(always)]
fn score<S: Simd, const N: usize>(queries: &[f32], keys: &[f32], width: usize, scores: &mut [[f32; BLOCK]; N]) {
    let mut sums = [[0.0; BLOCK]; N];
    for (component, keys) in keys.chunks_exact(BLOCK).enumerate() {
        for (one, sums) in sums.iter_mut().enumerate() {
            let query = queries[one * width + component];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = multiply_add::<S>(query, *key, *sum);
            }
        }
    }
    *scores = sums;
}

/// Turns the visible scores into weights below the running highest one; returns what earlier sums shrink by.
#[inline(always)]
fn weigh<S: Simd>(scores: &mut [f32; BLOCK], low: usize, high: usize, running: &mut Running) -> f32 {
    let highest = scores[low..high].iter().fold(running.highest, |highest, score| highest.max(*score));
    let shrink = exponential::<S>(running.highest - highest);
    for score in scores.iter_mut() {
        *score = exponential::<S>(*score - highest);
    }
    running.sum = running.sum * shrink + scores[low..high].iter().sum::<f32>();
    running.highest = highest;
    shrink
}

/// Adds the weighted values, `[weights, width]`, to what was mixed so far.
#[inline(always)]
fn mix<S: Simd>(weights: &[f32], values: &[f32], shrink: f32, out: &mut [f32]) {
    let width = out.len();
    let mut chunks = out.chunks_exact_mut(BLOCK);
    let mut from = 0;
    for chunk in &mut chunks {
        let mut sums = [0.0; BLOCK];
        sums.iter_mut().zip(chunk.iter()).for_each(|(sum, old)| *sum = old * shrink);
        for (weight, row) in weights.iter().zip(values.chunks_exact(width)) {
            for (sum, value) in sums.iter_mut().zip(&row[from..from + BLOCK]) {
                *sum = multiply_add::<S>(*weight, *value, *sum);
            }
        }
        chunk.copy_from_slice(&sums);
        from += BLOCK;
    }
    for (offset, sum) in chunks.into_remainder().iter_mut().enumerate() {
        *sum *= shrink;
        for (weight, row) in weights.iter().zip(values.chunks_exact(width)) {
            *sum = multiply_add::<S>(*weight, row[from + offset], *sum);
        }
    }
}

/// `e^x` for `x <= 0`, within two units in the last place; 0 below -87. The polynomial is that of Cephes' `expf`
/// (Moshier), on `x - n ln 2`, which lies within half of ln 2; branches would keep it from being vectorised.
#[inline(always)]
fn exponential<S: Simd>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // A comparison with NaN is false, so NaN stays.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let whole = multiply_add::<S>(clamped, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let rest = multiply_add::<S>(whole, -0.693_359_4, clamped);
    let rest = multiply_add::<S>(whole, 2.121_944_4e-4, rest);
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        sum = multiply_add::<S>(sum, rest, coefficient);
    }
    let value = multiply_add::<S>(sum, rest * rest, rest) + 1.0;
    let power = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    if x < LOWEST { 0.0 } else { value * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials<'a>(&'a [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
            self.0.iter().map(|x| exponential::<S>(*x)).collect()
        }
    }

    #[test]
    fn the_exponential_is_near_the_exact_one_and_keeps_nan() {
        let inputs: Vec<f32> = (0..=8700).map(|step| -step as f32 / 100.0).collect();
        for (x, found) in inputs.iter().zip(Arch::new().dispatch(Exponentials(&inputs))) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(found) - exact).abs() <= 2.5e-7 * exact, "e^{x} = {found}");
        }
        let odd = Arch::new().dispatch(Exponentials(&[-100.0, f32::NEG_INFINITY, f32::NAN, 0.0]));
        assert_eq!((odd[0], odd[1], odd[3]), (0.0, 0.0, 1.0));
        assert!(odd[2].is_nan());
    }
}
