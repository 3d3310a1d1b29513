//! Convolutions over square feature maps, with their batch normalisation folded in.
//!
//! A map lies channel last: `[images * height * width, channels]`, rows of pixels from the top. So a 1 x 1 convolution is
//! one matrix product, and any other one is that product over gathered neighbourhoods. On the CPU the arithmetic is f32
//! whatever the precision of the weights. Batch normalisation after Ioffe and Szegedy, 2015. Invariant: images never mix.

use candle_core::{DType, Device, Result, Storage, Tensor};
use rayon::prelude::*;

use super::activation::activate;
use crate::model::api::ModelError;
use crate::model::config::Activation;
use crate::model::weights::Scope;

/// What the normalisation adds to the variance; the reference does not let a checkpoint say another.
const EPSILON: f64 = 1e-5;

/// Values of gathered neighbourhoods that are held at a time: they should stay in the cache until they are multiplied.
const MOST_GATHERED: usize = 1 << 20;

/// Feature maps of several images, all of the same size.
#[derive(Debug, Clone)]
pub struct Maps {
    /// `[images * side * side, channels]`
    pub rows: Tensor,
    pub images: usize,
    pub side: usize,
}

impl Maps {
    /// `[images, channels]`: the mean over each map, in f32.
    pub fn mean(&self) -> Result<Tensor> {
        let channels = self.rows.dim(1)?;
        self.rows.to_dtype(DType::F32)?.reshape((self.images, self.side * self.side, channels))?.mean(1)
    }

    /// `[images, channels, side, side]`
    pub fn channel_first(&self) -> Result<Tensor> {
        self.rows.reshape((self.images, self.side, self.side, ()))?.permute((0, 3, 1, 2))?.contiguous()
    }

    /// From `[images, channels, side, side]`.
    pub fn from_channel_first(maps: &Tensor) -> Result<Self> {
        let (images, channels, side, _) = maps.dims4()?;
        let rows = maps.permute((0, 2, 3, 1))?.reshape((images * side * side, channels))?;
        Ok(Self { rows, images, side })
    }

    /// The largest value of each `kernel` by `kernel` window, `kernel / 2` pixels of margin being left out of account.
    pub fn max_pooled(&self, kernel: usize, stride: usize) -> Result<Self> {
        let margin = kernel / 2;
        let maps = self.channel_first()?;
        // A margin that repeats the border holds no value that the window has not already.
        let maps = maps.pad_with_same(2, margin, margin)?.pad_with_same(3, margin, margin)?;
        Self::from_channel_first(&maps.max_pool2d_with_stride(kernel, stride)?)
    }
}

/// Sizes of a convolution. Its margin is half its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
}

impl Geometry {
    fn side(&self, side: usize) -> usize {
        (side + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1
    }
}

/// A convolution, its normalisation and perhaps an activation.
#[derive(Debug)]
pub struct Convolution {
    geometry: Geometry,
    /// `[kernel * kernel * inputs, outputs]`, scaled by the normalisation.
    weight: Tensor,
    /// `[outputs]`
    bias: Tensor,
    activation: Option<Activation>,
}

impl Convolution {
    /// Reads `convolution.weight`, `[outputs, inputs, kernel, kernel]`, and the four vectors of `normalization`.
    pub fn load(
        scope: &Scope<'_>,
        geometry: Geometry,
        activation: Option<Activation>,
    ) -> std::result::Result<Self, ModelError> {
        let Geometry { inputs, outputs, kernel, .. } = geometry;
        let weight = scope.at("convolution").exact("weight", &[outputs, inputs, kernel, kernel])?;
        let normalization = scope.at("normalization");
        let vector = |name: &str| normalization.exact(name, &[outputs]);
        let deviation = (vector("running_var")? + EPSILON)?.sqrt()?;
        let scale = (vector("weight")? / deviation)?;
        let bias = (vector("bias")? - (vector("running_mean")? * &scale)?)?;
        let weight = weight.permute((2, 3, 1, 0))?.reshape((kernel * kernel * inputs, outputs))?;
        let weight = weight.broadcast_mul(&scale)?;
        // Rounded to the precision that was asked for; the CPU then computes in f32.
        let held = |tensor: Tensor| -> Result<Tensor> {
            let rounded = tensor.to_dtype(scope.activations())?;
            if rounded.device().is_cpu() { rounded.to_dtype(DType::F32) } else { Ok(rounded) }
        };
        Ok(Self { geometry, weight: held(weight)?, bias: held(bias)?, activation })
    }

    /// The number format of the maps that it takes.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    pub fn device(&self) -> &Device {
        self.weight.device()
    }

    pub fn forward(&self, input: &Maps) -> Result<Maps> {
        let side = self.geometry.side(input.side);
        let rows = match (self.geometry.kernel, self.geometry.stride) {
            (1, 1) => input.rows.matmul(&self.weight)?,
            _ if input.rows.device().is_cpu() => self.gathered_product(input, side)?,
            _ => self.convolved(input)?,
        };
        let rows = rows.broadcast_add(&self.bias)?;
        let rows = match self.activation {
            Some(activation) => activate(activation, &rows)?,
            None => rows,
        };
        Ok(Maps { rows, images: input.images, side })
    }

    /// By the device's own convolution.
    fn convolved(&self, input: &Maps) -> Result<Tensor> {
        let Geometry { inputs, outputs, kernel, stride } = self.geometry;
        let weight = self.weight.reshape((kernel, kernel, inputs, outputs))?.permute((3, 2, 0, 1))?.contiguous()?;
        let maps = input.channel_first()?.conv2d(&weight, kernel / 2, stride, 1, 1)?;
        Ok(Maps::from_channel_first(&maps)?.rows)
    }

    /// By a matrix product over neighbourhoods, for some images at a time.
    fn gathered_product(&self, input: &Maps, side: usize) -> Result<Tensor> {
        let width = self.weight.dim(0)?;
        let at_once = (MOST_GATHERED / (side * side * width)).clamp(1, input.images);
        let rows = input.rows.contiguous()?;
        let (storage, layout) = rows.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { candle_core::bail!("the maps are not on the CPU") };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let image = input.side * input.side * self.geometry.inputs;
        let mut products = Vec::new();
        for first in (0..input.images).step_by(at_once) {
            let count = at_once.min(input.images - first);
            let maps = &values[first * image..(first + count) * image];
            let gathered = gather(maps, self.geometry, input.side, side);
            let gathered = Tensor::from_vec(gathered, (count * side * side, width), &Device::Cpu)?;
            products.push(gathered.matmul(&self.weight)?);
        }
        Tensor::cat(&products, 0)
    }
}

/// The neighbourhood of every output pixel: rows of `kernel * kernel * inputs` values, zero outside of the map.
fn gather(maps: &[f32], geometry: Geometry, from: usize, to: usize) -> Vec<f32> {
    let Geometry { inputs, kernel, stride, .. } = geometry;
    let (line, image) = (to * kernel * kernel * inputs, from * from * inputs);
    let margin = kernel / 2;
    let mut gathered = vec![0.0; maps.len() / image * to * line];
    gathered.par_chunks_mut(line).enumerate().for_each(|(index, line)| {
        let map = &maps[index / to * image..][..image];
        let top = index % to * stride;
        for (column, neighbourhood) in line.chunks_exact_mut(kernel * kernel * inputs).enumerate() {
            // Columns of the kernel that lie inside of the map; they are neighbours there too.
            let left = column * stride;
            let (low, high) = (margin.saturating_sub(left), kernel.min(from + margin - left));
            for (row, target) in neighbourhood.chunks_exact_mut(kernel * inputs).enumerate() {
                let Some(source) = (top + row).checked_sub(margin).filter(|source| *source < from) else { continue };
                let start = (source * from + left + low - margin) * inputs;
                target[low * inputs..high * inputs].copy_from_slice(&map[start..start + (high - low) * inputs]);
            }
        }
    });
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convolution(kernel: usize, stride: usize) -> Convolution {
        let geometry = Geometry { inputs: 3, outputs: 5, kernel, stride };
        let weight = Tensor::randn(0f32, 1.0, (kernel * kernel * 3, 5), &Device::Cpu).unwrap();
        let bias = Tensor::randn(0f32, 1.0, 5, &Device::Cpu).unwrap();
        Convolution { geometry, weight, bias, activation: Some(Activation::Relu) }
    }

    fn farthest(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn gathered_products_equal_the_plain_convolution_for_every_kernel_stride_and_side() {
        for (kernel, stride) in [(1, 2), (3, 1), (3, 2), (7, 2)] {
            for side in [1, 2, 5, 8, 13] {
                let layer = convolution(kernel, stride);
                let maps = Tensor::randn(0f32, 1.0, (2, 3, side, side), &Device::Cpu).unwrap();
                let input = Maps::from_channel_first(&maps).unwrap();
                let found = layer.forward(&input).unwrap();
                let plain = layer.convolved(&input).unwrap().broadcast_add(&layer.bias).unwrap().relu().unwrap();
                assert_eq!(found.rows.dims(), [2 * found.side * found.side, 5]);
                assert!(farthest(&found.rows, &plain) < 1e-4, "{kernel} {stride} {side}");
            }
        }
    }

    #[test]
    fn a_pixel_outside_of_the_map_is_never_the_largest() {
        let maps = Tensor::full(-2f32, (1, 1, 5, 5), &Device::Cpu).unwrap();
        let pooled = Maps::from_channel_first(&maps).unwrap().max_pooled(3, 2).unwrap();
        assert_eq!(pooled.rows.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-2.0; 9]);
    }
}
