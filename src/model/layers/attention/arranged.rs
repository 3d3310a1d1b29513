//! From the joined product of queries, keys and values to what attention works with, on the CPU in one go.
//!
//! The same is done tensor by tensor where somebody wants to see what lies between, and by a kernel on a GPU. Invariant: the
//! bits are those of the way tensor by tensor.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor};
use rayon::prelude::*;

use crate::kv::{KvStore, Place};
use crate::model::layers::{Angles, RmsNorm};

/// Numbers that make it worth waking another thread.
const WORTH_SHARING: usize = 1 << 16;

/// What is done to queries and keys before they meet.
pub struct Arrangement<'a> {
    pub angles: Option<&'a Angles>,
    /// `[1, rows, 1]`, for queries.
    pub temperatures: Option<&'a Tensor>,
    /// Of queries and of keys.
    pub norms: Option<(&'a RmsNorm, &'a RmsNorm)>,
    /// Whether norms come before the rotation.
    pub norms_first: bool,
}

/// From `all`, `[rows, (heads + 2 kv_heads) * head_dim]` in f32, to queries, `[heads, rows, head_dim]`; keys and values go
/// to the rows' `slots` of a cache on the CPU.
pub fn arrange(
    all: &Tensor,
    arrangement: &Arrangement<'_>,
    cache: &mut KvStore,
    layer: usize,
    slots: &[u32],
) -> Result<Tensor> {
    let shape = cache.shape();
    let (kv_heads, width) = (shape.kv_heads, shape.head_dim);
    let (rows, columns) = all.dims2()?;
    let heads = columns / width - 2 * kv_heads;
    let all = all.contiguous()?;
    let (storage, layout) = all.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(all)), Some(layer)) = (&*storage, cache.host_mut(layer)) else {
        candle_core::bail!("numbers and cache must lie on the CPU")
    };
    let source = Source {
        all: &all[layout.start_offset()..layout.start_offset() + rows * columns],
        columns,
        width,
        turns: arrangement.angles.map(Turns::of).transpose()?,
        temperatures: arrangement.temperatures.map(|factors| factors.flatten_all()?.to_vec1()).transpose()?,
        arrangement,
    };
    let mut arranged = vec![0.0; (heads + kv_heads) * rows * width];
    let each = |(head, out): (usize, &mut [f32])| source.head(head, head < heads, out);
    match arranged.len() >= WORTH_SHARING {
        true => arranged.par_chunks_mut(rows * width).enumerate().try_for_each(each)?,
        false => arranged.chunks_mut(rows * width).enumerate().try_for_each(each)?,
    }
    for (row, slot) in slots.iter().enumerate() {
        for head in 0..kv_heads {
            let key = &arranged[((heads + head) * rows + row) * width..][..width];
            let value = &source.all[row * columns + (heads + kv_heads + head) * width..][..width];
            layer.write(Place { slot: *slot, head, kv_heads }, key, value);
        }
    }
    arranged.truncate(heads * rows * width);
    Tensor::from_vec(arranged, (heads, rows, width), &Device::Cpu)
}

struct Source<'a> {
    /// `[rows, columns]`
    all: &'a [f32],
    columns: usize,
    width: usize,
    turns: Option<Turns>,
    /// `[rows]`
    temperatures: Option<Vec<f32>>,
    arrangement: &'a Arrangement<'a>,
}

impl Source<'_> {
    /// One head's rows, `[rows, width]`, ready to meet others.
    fn head(&self, head: usize, is_query: bool, out: &mut [f32]) -> Result<()> {
        let width = self.width;
        for (out, row) in out.chunks_exact_mut(width).zip(self.all.chunks_exact(self.columns)) {
            out.copy_from_slice(&row[head * width..(head + 1) * width]);
        }
        let norm = self.arrangement.norms.map(|(query, key)| if is_query { query } else { key });
        if let Some(norm) = norm.filter(|_| self.arrangement.norms_first) {
            norm.in_place(out)?;
        }
        if let Some(turns) = &self.turns {
            turns.turn(out, width);
        }
        if let Some(factors) = self.temperatures.as_ref().filter(|_| is_query) {
            for (out, factor) in out.chunks_exact_mut(width).zip(factors) {
                out.iter_mut().for_each(|value| *value *= factor);
            }
        }
        if let Some(norm) = norm.filter(|_| !self.arrangement.norms_first) {
            norm.in_place(out)?;
        }
        Ok(())
    }
}

/// A rotation of rows.
struct Turns {
    /// `[rows, width / 2]` each.
    cosines: Vec<f32>,
    sines: Vec<f32>,
    neighbours: bool,
}

impl Turns {
    fn of(angles: &Angles) -> Result<Self> {
        let (cosines, sines, neighbours) = angles.parts();
        Ok(Self { cosines: cosines.flatten_all()?.to_vec1()?, sines: sines.flatten_all()?.to_vec1()?, neighbours })
    }

    fn turn(&self, out: &mut [f32], width: usize) {
        let half = width / 2;
        let angles = self.cosines.chunks_exact(half).zip(self.sines.chunks_exact(half));
        for (row, (cosines, sines)) in out.chunks_exact_mut(width).zip(angles) {
            let turned = |a: f32, b: f32, cosine: f32, sine: f32| (a * cosine - b * sine, a * sine + b * cosine);
            if self.neighbours {
                for (pair, (cosine, sine)) in row.as_chunks_mut::<2>().0.iter_mut().zip(cosines.iter().zip(sines)) {
                    *pair = turned(pair[0], pair[1], *cosine, *sine).into();
                }
            } else {
                let (low, high) = row.split_at_mut(half);
                for ((a, b), (cosine, sine)) in low.iter_mut().zip(high).zip(cosines.iter().zip(sines)) {
                    (*a, *b) = turned(*a, *b, *cosine, *sine);
                }
            }
        }
    }
}
