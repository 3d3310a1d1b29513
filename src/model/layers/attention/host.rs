//! Attention on the CPU, straight from the cache's blocks.
//!
//! Works a few rows of one sequence at a time through the blocks that they see, all heads of a block one after the other, as
//! they lie in memory, with the running softmax of Milakov and Gimelshein, 2018, so no score outlives its block. Plain loops over a block's sixteen keys become vector
//! instructions, chosen at run time. Invariants: a row's arithmetic does not depend on the rows beside it, bit for bit;
//! slots that a row must not see are not even multiplied by zero.

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::plan::{AttentionPlan, Segment};
use crate::kv::{BLOCK, BlockId, HostArrays, HostLayer, KvShape};
use crate::model::layers::lanes::{Stored, exponential, halved, multiply_add};

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
    match cached {
        HostLayer::Single(arrays) => attend_to(queries, arrays, shape, plan, segments),
        HostLayer::Half(arrays) => attend_to(queries, arrays, shape, plan, segments),
    }
}

fn attend_to<T: Stored>(
    queries: &Tensor,
    cached: &HostArrays<T>,
    shape: KvShape,
    plan: &AttentionPlan<'_>,
    segments: &[Segment],
) -> Result<Tensor> {
    let (heads, rows, width) = queries.dims3()?;
    let group = heads / shape.kv_heads;
    let values = queries.flatten_all()?.to_vec1::<f32>()?;
    let layer = Layer { queries: &values, rows, group, width, cached, kv_heads: shape.kv_heads };
    let stretches: Vec<Stretch<'_>> = segments.iter().flat_map(|segment| Stretch::of(segment, plan)).collect();
    let keys: usize = stretches.iter().map(|stretch| stretch.count * stretch.keys()).sum();
    let is_shared = keys * heads * width >= WORTH_SHARING;
    // Heads of a block lie together in memory, so they are seen together, unless threads would be left without work.
    let wanted = if is_shared { 4 * rayon::current_num_threads() } else { 1 };
    let parts = wanted.div_ceil(stretches.len().max(1)).min(shape.kv_heads);
    let heads_each = shape.kv_heads.div_ceil(parts);

    let mut out = vec![0.0; rows * heads * width];
    let mut rest = out.chunks_exact_mut(heads * width);
    let mut tiles = Vec::new();
    for stretch in &stretches {
        let mut parts: Vec<Vec<&mut [f32]>> = (0..shape.kv_heads).step_by(heads_each).map(|_| Vec::new()).collect();
        for row in rest.by_ref().take(stretch.count) {
            let pieces = row.chunks_mut(heads_each * group * width);
            parts.iter_mut().zip(pieces).for_each(|(part, piece)| part.push(piece));
        }
        let each = parts.into_iter().enumerate();
        tiles.extend(each.map(|(part, out)| Tile { layer: &layer, stretch, first_head: part * heads_each, out }));
    }
    let arch = Arch::new();
    match is_shared {
        true => tiles.into_par_iter().for_each(|tile| arch.dispatch(tile)),
        false => tiles.into_iter().for_each(|tile| arch.dispatch(tile)),
    }
    Tensor::from_vec(out, (rows, heads * width), &Device::Cpu)
}

/// What all tiles of a layer share.
struct Layer<'a, T> {
    /// `[heads, rows, width]`
    queries: &'a [f32],
    rows: usize,
    group: usize,
    width: usize,
    cached: &'a HostArrays<T>,
    kv_heads: usize,
}

/// Some rows of one segment.
struct Stretch<'a> {
    first_row: usize,
    count: usize,
    /// Of the first row.
    position: usize,
    first_key: usize,
    blocks: &'a [BlockId],
}

impl<'a> Stretch<'a> {
    fn of(segment: &'a Segment, plan: &AttentionPlan<'a>) -> impl Iterator<Item = Self> {
        let blocks = plan.tables[segment.sequence];
        (0..segment.rows.len()).step_by(TILE_ROWS).map(move |offset| Self {
            first_row: segment.rows.start + offset,
            count: TILE_ROWS.min(segment.rows.len() - offset),
            position: segment.position + offset,
            first_key: segment.first_key,
            blocks,
        })
    }

    /// How many keys its last row sees.
    fn keys(&self) -> usize {
        self.position + self.count - self.first_key
    }
}

/// A stretch, for some heads of keys and the heads of queries that share each of them.
struct Tile<'a, T> {
    layer: &'a Layer<'a, T>,
    stretch: &'a Stretch<'a>,
    /// Of keys and values.
    first_head: usize,
    /// Row by row, `[heads, group, width]`.
    out: Vec<&'a mut [f32]>,
}

/// A query's running softmax.
#[derive(Clone, Copy)]
struct Running {
    highest: f32,
    sum: f32,
}

impl<T: Stored> WithSimd for Tile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { layer, stretch, first_head, out } = self;
        let Stretch { first_row, count, position, first_key, blocks } = *stretch;
        let (group, width) = (layer.group, layer.width);
        let of_head = count * group;
        let heads = out.first().map_or(0, |row| row.len()) / (group * width).max(1);
        let mut queries = Vec::with_capacity(heads * of_head * width);
        (first_head..first_head + heads).for_each(|head| scale_queries(layer, head, first_row, count, &mut queries));
        let mut running = vec![Running { highest: f32::NEG_INFINITY, sum: 0.0 }; heads * of_head];
        let mut mixed = vec![0.0; heads * of_head * width];
        let block_len = width * BLOCK;
        let room = || vec![0.0; if T::IS_WIDE { 0 } else { block_len }];
        let mut room = (room(), room());
        let seen = first_key / BLOCK..(position + count).div_ceil(BLOCK);
        for (block, id) in seen.clone().zip(&blocks[seen]) {
            let low = first_key.saturating_sub(block * BLOCK);
            // Rows before this block's first key see none of it.
            let first_query = (block * BLOCK).saturating_sub(position) * group;
            for head in 0..heads {
                let at = (id.0 as usize * layer.kv_heads + first_head + head) * block_len;
                let seen = Seen {
                    keys: T::wide(&layer.cached.keys[at..at + block_len], &mut room.0),
                    values: T::wide(&layer.cached.values[at..at + block_len], &mut room.1),
                    low,
                };
                let end = (head + 1) * of_head;
                for query in (head * of_head + first_query..end).step_by(ABREAST) {
                    let high = |one: usize| {
                        let row = (query + one - head * of_head) / group;
                        BLOCK.min(position + row + 1 - block * BLOCK)
                    };
                    let (queries, mixed) = (&queries[query * width..], &mut mixed[query * width..]);
                    let running = &mut running[query..end.min(query + ABREAST)];
                    match running.len() {
                        1 => see::<S, 1>(queries, &seen, high, running, mixed),
                        2 => see::<S, 2>(queries, &seen, high, running, mixed),
                        3 => see::<S, 3>(queries, &seen, high, running, mixed),
                        _ => see::<S, ABREAST>(queries, &seen, high, running, mixed),
                    }
                }
            }
        }
        for (row, out) in out.into_iter().enumerate() {
            for (head, out) in out.chunks_exact_mut(group * width).enumerate() {
                for (member, out) in out.chunks_exact_mut(width).enumerate() {
                    let query = head * of_head + row * group + member;
                    let part = 1.0 / running[query].sum;
                    let mixed = &mixed[query * width..(query + 1) * width];
                    out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed * part);
                }
            }
        }
    }
}

/// Adds the stretch's queries of one head of keys, `[count, group, width]`, times `1 / sqrt(width)`.
#[inline(always)]
fn scale_queries<T>(layer: &Layer<'_, T>, head: usize, first_row: usize, count: usize, scaled: &mut Vec<f32>) {
    let Layer { queries, rows, group, width, .. } = *layer;
    let scale = (width as f64).powf(-0.5) as f32;
    for row in first_row..first_row + count {
        for member in 0..group {
            let from = ((head * group + member) * rows + row) * width;
            scaled.extend(queries[from..from + width].iter().map(|value| value * scale));
        }
    }
}

/// One head's block of the cache.
struct Seen<'a> {
    /// `[width, BLOCK]`
    keys: &'a [f32],
    /// `[BLOCK, width]`
    values: &'a [f32],
    /// The first slot that can be seen.
    low: usize,
}

/// What `N` queries, `[N, width]`, see of a block, each up to what `high` says of it. `out` is `[N, width]`.
#[inline(always)]
fn see<S: Simd, const N: usize>(
    queries: &[f32],
    seen: &Seen<'_>,
    high: impl Fn(usize) -> usize,
    running: &mut [Running],
    out: &mut [f32],
) {
    let Seen { keys, values, low } = *seen;
    let width = values.len() / BLOCK;
    let mut scores = score::<S, N>(queries, keys, width);
    let highs: [usize; N] = std::array::from_fn(high);
    let mut shrinks = [0.0; N];
    for one in 0..N {
        shrinks[one] = weigh::<S>(&mut scores[one], low, highs[one], &mut running[one]);
    }
    // What is not seen may not even be multiplied by zero, so only queries that see the same go together.
    if highs == [highs[0]; N] {
        mix::<S, N>(&scores, &values[low * width..highs[0] * width], (low, width), shrinks, out);
        return;
    }
    for (one, out) in out.chunks_exact_mut(width).take(N).enumerate() {
        let values = &values[low * width..highs[one] * width];
        mix::<S, 1>(&[scores[one]], values, (low, width), [shrinks[one]], out);
    }
}

/// Products of `N` queries with the keys of a block, `[width, BLOCK]`.
#[inline(always)]
fn score<S: Simd, const N: usize>(queries: &[f32], keys: &[f32], width: usize) -> [[f32; BLOCK]; N] {
    let mut sums = [[0.0; BLOCK]; N];
    for (component, keys) in keys.chunks_exact(BLOCK).enumerate() {
        for (one, sums) in sums.iter_mut().enumerate() {
            let query = queries[one * width + component];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = multiply_add::<S>(query, *key, *sum);
            }
        }
    }
    sums
}

/// Turns the visible scores into weights below the running highest one, the others into zeros; returns what earlier sums
/// shrink by.
#[inline(always)]
fn weigh<S: Simd>(scores: &mut [f32; BLOCK], low: usize, high: usize, running: &mut Running) -> f32 {
    for (slot, score) in scores.iter_mut().enumerate() {
        *score = if slot < low || slot >= high { f32::NEG_INFINITY } else { *score };
    }
    let highest = running.highest.max(halved(*scores, f32::max));
    let shrink = exponential::<S>(running.highest - highest);
    for score in scores.iter_mut() {
        *score = exponential::<S>(*score - highest);
    }
    running.sum = running.sum * shrink + halved(*scores, |a, b| a + b);
    running.highest = highest;
    shrink
}

/// Adds the weighted values, `[seen, width]`, to what `N` queries mixed so far, `[N, width]`; weights begin at `low`.
#[inline(always)]
fn mix<S: Simd, const N: usize>(
    weights: &[[f32; BLOCK]; N],
    values: &[f32],
    (low, width): (usize, usize),
    shrinks: [f32; N],
    out: &mut [f32],
) {
    let mut from = 0;
    while from + BLOCK <= width {
        let mut sums = [[0.0; BLOCK]; N];
        for (one, sums) in sums.iter_mut().enumerate() {
            let old = &out[one * width + from..][..BLOCK];
            sums.iter_mut().zip(old).for_each(|(sum, old)| *sum = old * shrinks[one]);
        }
        for (slot, row) in (low..BLOCK).zip(values.chunks_exact(width)) {
            let row = &row[from..from + BLOCK];
            for (one, sums) in sums.iter_mut().enumerate() {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum = multiply_add::<S>(weights[one][slot], *value, *sum);
                }
            }
        }
        for (one, sums) in sums.iter().enumerate() {
            out[one * width + from..][..BLOCK].copy_from_slice(sums);
        }
        from += BLOCK;
    }
    for (one, out) in out.chunks_exact_mut(width).take(N).enumerate() {
        for (offset, sum) in out.iter_mut().enumerate().skip(from) {
            *sum *= shrinks[one];
            for (slot, row) in (low..BLOCK).zip(values.chunks_exact(width)) {
                *sum = multiply_add::<S>(weights[one][slot], row[offset], *sum);
            }
        }
    }
}
