//! Attention by kernels of our own on a CUDA device: straight from the cache's blocks, in one launch or three a layer.
//!
//! What the kernels must know of a step goes to the device once, for all layers. Tensor cores do 16-bit numbers in heads
//! of 64 and 128; other numbers and other widths have a plain kernel. Invariant: the host waits for nothing here.

use std::f64::consts::LOG2_E;

use candle_core::{DType, Device, Result, Tensor};

use super::arranged::Arrangement;
use super::plan::{AttentionPlan, Segment};
use super::tiles::{Item, Merge, NARROW, Tiles};
use crate::kv::KvStore;
use crate::model::kernels::{Argument, Grid, Kernel, is_narrow, launch, suffix, unwritten};
use crate::model::layers::Angles;

/// Threads of each block of the attention kernels.
const THREADS: usize = 128;

/// The largest head that the kernels take.
const LARGEST_WIDTH: usize = 256;

/// A step's plan on the device.
#[derive(Debug)]
pub struct DevicePlan {
    heads: usize,
    kv_heads: usize,
    width: usize,
    dtype: DType,
    /// Where the new keys and values of each row go.
    slots: Tensor,
    /// Block tables, one after the other.
    tables: Tensor,
    full: Work,
    chunked: Option<Work>,
}

/// What the kernel reads of a layer's segments.
#[derive(Debug)]
enum Work {
    Tiles {
        wide: Option<Tensor>,
        narrow: Option<Tensor>,
        merges: Option<Tensor>,
    },
    /// Position, first key and table of each row.
    Rows(Tensor),
}

impl DevicePlan {
    /// None where the kernels do not run: on other devices, and for heads that are too wide.
    pub fn new(
        plan: &AttentionPlan<'_>,
        cache: &KvStore,
        (heads, dtype, device): (usize, DType, &Device),
    ) -> Result<Option<Self>> {
        let shape = cache.shape();
        let (kv_heads, width) = (shape.kv_heads, shape.head_dim);
        if !device.is_cuda() || width > LARGEST_WIDTH || !width.is_multiple_of(2) {
            return Ok(None);
        }
        let mut starts = Vec::with_capacity(plan.tables.len());
        let mut tables: Vec<u32> = Vec::new();
        for table in &plan.tables {
            starts.push(tables.len() as u32);
            tables.extend(table.iter().map(|block| block.0));
        }
        let work = |segments: &[Segment]| {
            let has_tiles = is_narrow(dtype) && matches!(width, 64 | 128);
            let tiles = has_tiles.then(|| Tiles::new(segments, &starts, heads / kv_heads, kv_heads)).flatten();
            match tiles {
                Some(tiles) => Work::tiles(&tiles, device),
                None => Work::rows(segments, &starts, device),
            }
        };
        let chunked = (plan.chunked != plan.full).then(|| work(&plan.chunked)).transpose()?;
        Ok(Some(Self {
            heads,
            kv_heads,
            width,
            dtype,
            slots: Tensor::new(plan.slots.as_slice(), device)?,
            tables: Tensor::new(tables, device)?,
            full: work(&plan.full)?,
            chunked,
        }))
    }

    /// From the joined product `all`, `[rows, (heads + 2 kv_heads) * width]`, to queries, `[rows, heads * width]`; keys
    /// and values go into the cache.
    pub fn arrange(
        &self,
        all: &Tensor,
        arrangement: &Arrangement<'_>,
        cache: &KvStore,
        layer: usize,
    ) -> Result<Tensor> {
        const WARPS: usize = THREADS / 32;
        let (keys, values) = tensors(cache, layer)?;
        let rows = all.dim(0)?;
        let queries = unwritten((rows, self.heads * self.width), self.dtype, all.device())?;
        let angles = arrangement.angles.map(Angles::parts);
        let norms = arrangement.norms.map(|(query, key)| (query.parts(), key.parts()));
        let arguments = [
            Argument::Tensor(all),
            Argument::optional(angles.map(|angles| angles.0)),
            Argument::optional(angles.map(|angles| angles.1)),
            Argument::optional(arrangement.temperatures),
            Argument::optional(norms.map(|(query, _)| query.0)),
            Argument::optional(norms.map(|(_, key)| key.0)),
            Argument::Tensor(&self.slots),
            Argument::Tensor(&queries),
            Argument::Tensor(keys),
            Argument::Tensor(values),
            Argument::Count(rows),
            Argument::Count(self.heads),
            Argument::Count(self.kv_heads),
            Argument::Count(self.width),
            Argument::Count(angles.is_some_and(|angles| angles.2).into()),
            Argument::Count(arrangement.norms_first.into()),
            Argument::Real(norms.map_or(0.0, |(query, _)| query.1)),
        ];
        let every = self.heads + 2 * self.kv_heads;
        let grid = Grid::new((rows, every.div_ceil(WARPS)), THREADS);
        launch(all.device(), Kernel::Arrange, &format!("arrange_{}", suffix(self.dtype)?), grid, &arguments)?;
        Ok(queries)
    }

    /// See [`super::attend`]; `queries` are `[rows, heads * width]`, and so is what it returns.
    pub fn attend(&self, queries: &Tensor, cache: &KvStore, layer: usize, chunked: bool) -> Result<Tensor> {
        let (keys, values) = tensors(cache, layer)?;
        let device = queries.device();
        let out = unwritten(queries.shape(), self.dtype, device)?;
        let work = self.chunked.as_ref().filter(|_| chunked).unwrap_or(&self.full);
        let ending = suffix(self.dtype)?;
        let scale = Argument::Real(((self.width as f64).powf(-0.5) * LOG2_E) as f32);
        let (heads, kv_heads) = (Argument::Count(self.heads), Argument::Count(self.kv_heads));
        let [q, k, v, t, o] = [queries, keys, values, &self.tables, &out].map(Argument::Tensor);
        match work {
            Work::Rows(rows) => {
                let grid = Grid::new((queries.dim(0)?, self.heads), THREADS);
                let arguments =
                    [q, k, v, t, Argument::Tensor(rows), o, heads, kv_heads, Argument::Count(self.width), scale];
                launch(device, Kernel::Attention, &format!("attend_any_{ending}"), grid, &arguments)?;
            }
            Work::Tiles { wide, narrow, merges } => {
                let run = |kind: &str, items: &Tensor, parts: Argument<'_>| {
                    let grid = Grid::new((items.dim(0)?, self.kv_heads), THREADS);
                    let arguments = [q, k, v, t, Argument::Tensor(items), o, parts, heads, kv_heads, scale];
                    launch(
                        device,
                        Kernel::Attention,
                        &format!("attend_{kind}_{}_{ending}", self.width),
                        grid,
                        &arguments,
                    )
                };
                if let Some(wide) = wide {
                    run("wide", wide, Argument::Nothing)?;
                }
                if let (Some(narrow), None) = (narrow, merges) {
                    run("narrow", narrow, Argument::Nothing)?;
                }
                if let (Some(narrow), Some(merges)) = (narrow, merges) {
                    let size = (narrow.dim(0)?, self.kv_heads, NARROW, self.width + 2);
                    let parts = unwritten(size, DType::F32, device)?;
                    let parts = Argument::Tensor(&parts);
                    run("narrow", narrow, parts)?;
                    let grid = Grid::new((merges.dim(0)?, self.kv_heads), THREADS);
                    let arguments = [parts, Argument::Tensor(merges), o, heads, kv_heads, Argument::Count(self.width)];
                    launch(device, Kernel::Attention, &format!("merge_parts_{ending}"), grid, &arguments)?;
                }
            }
        }
        Ok(out)
    }
}

impl Work {
    fn tiles(tiles: &Tiles, device: &Device) -> Result<Self> {
        let upload = |words: Vec<u32>, width: usize| match words.len() {
            0 => Ok(None),
            length => Tensor::from_vec(words, (length / width, width), device).map(Some),
        };
        let items = |items: &[Item]| upload(items.iter().flat_map(|item| item.words()).collect(), Item::WORDS);
        let merges = tiles.merges.iter().flat_map(|merge| merge.words()).collect();
        Ok(Self::Tiles {
            wide: items(&tiles.wide)?,
            narrow: items(&tiles.narrow)?,
            merges: upload(merges, Merge::WORDS)?,
        })
    }

    fn rows(segments: &[Segment], starts: &[u32], device: &Device) -> Result<Self> {
        let row = |segment: &Segment, offset: usize| {
            [(segment.position + offset) as u32, segment.first_key as u32, starts[segment.sequence]]
        };
        let words: Vec<u32> = segments
            .iter()
            .flat_map(|segment| (0..segment.rows.len()).flat_map(move |offset| row(segment, offset)))
            .collect();
        Ok(Self::Rows(Tensor::new(words, device)?))
    }
}

fn tensors(cache: &KvStore, layer: usize) -> Result<(&Tensor, &Tensor)> {
    match cache.tensors(layer) {
        Some(tensors) => Ok(tensors),
        None => candle_core::bail!("the cache does not lie on the device"),
    }
}
