//! Where cached keys and values lie.
//!
//! On the CPU: plain arrays in the layout that the attention kernel reads, f16 or f32. On other devices: one tensor of keys
//! and one of values a layer, in the activations' number format. This file knows no
//! sequence; who owns which block is for its callers. Invariant: a position is written before it is read.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use super::block::{BLOCK, BlockId};

/// The size of one model's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub blocks: usize,
}

impl KvShape {
    /// Numbers of one layer's keys (or values) in one block.
    fn block_len(&self) -> usize {
        self.kv_heads * self.head_dim * BLOCK
    }
}

/// The cache of one model: keys and values of every layer, block by block.
#[derive(Debug)]
pub struct KvStore {
    shape: KvShape,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    Host(Vec<HostLayer>),
    Device(Vec<DeviceLayer>),
}

/// One layer's cache on the CPU, in f32 or f16.
#[derive(Debug)]
pub enum HostLayer {
    Single(HostArrays<f32>),
    Half(HostArrays<f16>),
}

/// Keys and values in the order in which attention reads them.
#[derive(Debug)]
pub struct HostArrays<T> {
    /// `[blocks, kv_heads, head_dim, BLOCK]`: scores of one block's keys then lie side by side.
    pub keys: Vec<T>,
    /// `[blocks, kv_heads, BLOCK, head_dim]`
    pub values: Vec<T>,
}

/// Where one head's key and value of one position lie on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// See [`KvStore::slot`].
    pub slot: u32,
    pub head: usize,
    /// How many heads there are.
    pub kv_heads: usize,
}

/// One layer's cache on a device, `[blocks * BLOCK, kv_heads * head_dim]` each.
#[derive(Debug)]
struct DeviceLayer {
    keys: Tensor,
    values: Tensor,
}

impl HostLayer {
    fn new(numbers: usize, dtype: DType) -> Self {
        match dtype {
            DType::F16 => {
                // Zeros that the allocator need not write are integers to it.
                let zeros = || vec![0_u16; numbers].reinterpret_into::<f16>();
                Self::Half(HostArrays { keys: zeros(), values: zeros() })
            }
            _ => Self::Single(HostArrays { keys: vec![0.0; numbers], values: vec![0.0; numbers] }),
        }
    }

    /// Writes what a head has at a slot, `[head_dim]` each.
    pub fn write(&mut self, place: Place, key: &[f32], value: &[f32]) {
        match self {
            Self::Single(arrays) => arrays.write(place, (key, value), <[f32]>::copy_from_slice),
            Self::Half(arrays) => arrays.write(place, (key, value), <[f16]>::convert_from_f32_slice),
        }
    }
}

impl<T: Copy + Default> HostArrays<T> {
    fn write(&mut self, place: Place, (key, value): (&[f32], &[f32]), narrow: fn(&mut [T], &[f32])) {
        let Place { slot, head, kv_heads } = place;
        let (block, slot) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let to = (block * kv_heads + head) * key.len() * BLOCK;
        let mut narrowed = vec![T::default(); key.len()];
        narrow(&mut narrowed, key);
        let column = self.keys[to..to + key.len() * BLOCK].iter_mut().skip(slot).step_by(BLOCK);
        column.zip(narrowed).for_each(|(cached, key)| *cached = key);
        narrow(&mut self.values[to + slot * value.len()..][..value.len()], value);
    }
}

impl KvStore {
    /// Room for `shape.blocks` blocks; on the CPU in f16 if `dtype` is that, else in f32. Memory of the host is touched only where positions are written.
    pub fn new(shape: KvShape, dtype: DType, device: &Device) -> Result<Self> {
        let layers = match device {
            Device::Cpu => {
                let numbers = shape.blocks * shape.block_len();
                Layers::Host((0..shape.layers).map(|_| HostLayer::new(numbers, dtype)).collect())
            }
            device => {
                let size = (shape.blocks * BLOCK, shape.kv_heads * shape.head_dim);
                let layer = |_| {
                    let keys = Tensor::zeros(size, dtype, device)?;
                    Ok(DeviceLayer { values: keys.zeros_like()?, keys })
                };
                Layers::Device((0..shape.layers).map(layer).collect::<Result<_>>()?)
            }
        };
        Ok(Self { shape, layers })
    }

    /// A cache that lies in tensors even on the CPU.
    #[cfg(test)]
    pub fn in_tensors(shape: KvShape) -> Result<Self> {
        let size = (shape.blocks * BLOCK, shape.kv_heads * shape.head_dim);
        let zeros = || Tensor::zeros(size, DType::F32, &Device::Cpu);
        let layer = |_| Ok(DeviceLayer { keys: zeros()?, values: zeros()? });
        Ok(Self { shape, layers: Layers::Device((0..shape.layers).map(layer).collect::<Result<_>>()?) })
    }

    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The place of a sequence's position in the cache: its block times [`BLOCK`] plus its slot in there.
    /// None when the block table or the cache is too small.
    pub fn slot(&self, blocks: &[BlockId], position: usize) -> Option<u32> {
        let block = blocks.get(position / BLOCK).filter(|block| (block.0 as usize) < self.shape.blocks)?;
        u32::try_from(block.0 as usize * BLOCK + position % BLOCK).ok()
    }

    /// Writes keys and values, `[kv_heads, rows, head_dim]` each, to the slots of their rows.
    pub fn write(&mut self, layer: usize, keys: &Tensor, values: &Tensor, slots: &[u32]) -> Result<()> {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        match &mut self.layers {
            Layers::Host(layers) => {
                let keys = keys.flatten_all()?.to_vec1::<f32>()?;
                let values = values.flatten_all()?.to_vec1::<f32>()?;
                let layer = &mut layers[layer];
                for (row, slot) in slots.iter().enumerate() {
                    for head in 0..kv_heads {
                        let from = (head * slots.len() + row) * head_dim;
                        let own = from..from + head_dim;
                        layer.write(Place { slot: *slot, head, kv_heads }, &keys[own.clone()], &values[own]);
                    }
                }
                Ok(())
            }
            Layers::Device(layers) => {
                let (width, rows) = (kv_heads * head_dim, slots.len());
                let slots = Tensor::new(slots, keys.device())?.unsqueeze(1)?;
                let slots = slots.broadcast_as((rows, width))?.contiguous()?;
                let flat = |heads: &Tensor| heads.transpose(0, 1)?.contiguous()?.reshape((rows, width));
                layers[layer].keys.scatter_set(&slots, &flat(keys)?, 0)?;
                layers[layer].values.scatter_set(&slots, &flat(values)?, 0)
            }
        }
    }

    /// A layer's arrays to write to, when the cache lies on the CPU.
    pub fn host_mut(&mut self, layer: usize) -> Option<&mut HostLayer> {
        match &mut self.layers {
            Layers::Host(layers) => Some(&mut layers[layer]),
            Layers::Device(_) => None,
        }
    }

    /// A layer's arrays, when the cache lies on the CPU.
    pub fn host(&self, layer: usize) -> Option<&HostLayer> {
        match &self.layers {
            Layers::Host(layers) => Some(&layers[layer]),
            Layers::Device(_) => None,
        }
    }

    /// A layer's keys and values, `[blocks * BLOCK, kv_heads * head_dim]` each, when the cache lies in tensors: for kernels
    /// that read and write them in place.
    pub fn tensors(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        match &self.layers {
            Layers::Host(_) => None,
            Layers::Device(layers) => Some((&layers[layer].keys, &layers[layer].values)),
        }
    }

    /// Keys and values at `slots`, `[slots, kv_heads, head_dim]` each, when the cache lies in tensors.
    pub fn gather(&self, layer: usize, slots: &[u32]) -> Result<Option<(Tensor, Tensor)>> {
        let Layers::Device(layers) = &self.layers else { return Ok(None) };
        let DeviceLayer { keys, values } = &layers[layer];
        let size = (slots.len(), self.shape.kv_heads, self.shape.head_dim);
        let slots = Tensor::new(slots, keys.device())?;
        let pick = |from: &Tensor| from.index_select(&slots, 0)?.reshape(size);
        Ok(Some((pick(keys)?, pick(values)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 2, head_dim: 3, blocks: 4 };

    #[test]
    fn a_position_is_found_through_the_block_table_and_nowhere_else() {
        let store = KvStore::new(SHAPE, DType::F32, &Device::Cpu).unwrap();
        let table = [BlockId(3), BlockId(1), BlockId(9)];
        assert_eq!(store.slot(&table, 0), Some(48));
        assert_eq!(store.slot(&table, 17), Some(17));
        assert_eq!(store.slot(&table, 32), None);
        assert_eq!(store.slot(&table, 48), None);
    }

    #[test]
    fn what_is_written_lies_at_its_slot_head_by_head() {
        let heads = |from: f32| Tensor::arange(from, from + 12.0, &Device::Cpu).unwrap().reshape((2, 2, 3)).unwrap();
        let (keys, values) = (heads(1.0), heads(101.0));
        let mut single = KvStore::new(SHAPE, DType::F32, &Device::Cpu).unwrap();
        single.write(0, &keys, &values, &[5, 33]).unwrap();
        let HostLayer::Single(layer) = single.host(0).unwrap() else { panic!("f32 was asked for") };
        // Row 0 of head 1 is 7, 8, 9; slot 5 of block 0.
        let key = |component: usize| layer.keys[(3 + component) * BLOCK + 5];
        assert_eq!([key(0), key(1), key(2)], [7.0, 8.0, 9.0]);
        assert_eq!(layer.values[(BLOCK + 5) * 3..][..3], [107.0, 108.0, 109.0]);
        let mut store = KvStore::new(SHAPE, DType::F16, &Device::Cpu).unwrap();
        store.write(0, &keys, &values, &[5, 33]).unwrap();
        let HostLayer::Half(halves) = store.host(0).unwrap() else { panic!("f16 was asked for") };
        assert!(halves.keys.iter().map(|key| key.to_f32()).eq(layer.keys.iter().copied()));
        assert!(halves.values.iter().map(|value| value.to_f32()).eq(layer.values.iter().copied()));
        let mut store = KvStore::in_tensors(SHAPE).unwrap();
        store.write(0, &keys, &values, &[5, 33]).unwrap();
        let (keys, _) = store.gather(0, &[33]).unwrap().unwrap();
        assert_eq!(keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [4.0, 5.0, 6.0, 10.0, 11.0, 12.0]);
    }
}
