//! Normalisation of rows: by the root of the mean square (Zhang and Sennrich, 2019), and by mean and variance (Ba et al.,
//! 2016). Sums are in f32 whatever the input is.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Module, Result, Shape, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::lanes::{LANES, halved, multiply_add, shared_rows, work_off};
use crate::model::api::ModelError;
use crate::model::kernels::{Argument, Grid, Kernel, launch, suffix, unwritten};
use crate::model::weights::Scope;

/// `x / sqrt(mean(x^2) + epsilon) * weight` over the last axis; squares are summed in f32.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    /// Reads `weight`, `[size]`.
    pub fn load(scope: &Scope<'_>, size: usize, epsilon: f64) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: scope.tensor("weight", &[size])?, epsilon: epsilon as f32 })
    }

    /// A norm without weights, for inputs of format `dtype`.
    pub fn plain(size: usize, epsilon: f64, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { weight: Tensor::ones(size, dtype, device)?, epsilon: epsilon as f32 })
    }

    /// With weights at hand, `[size]`.
    #[cfg(test)]
    pub fn of(weight: Tensor, epsilon: f32) -> Self {
        Self { weight, epsilon }
    }

    /// `[size]`, and what is added to the mean square.
    pub fn parts(&self) -> (&Tensor, f32) {
        (&self.weight, self.epsilon)
    }

    /// The sum of two tensors, `[rows, size]`, and the same normalised.
    pub fn after_adding(&self, one: &Tensor, other: &Tensor) -> Result<(Tensor, Tensor)> {
        if one.device().is_cuda() && self.weight.dtype() == one.dtype() {
            return self.on_device(one, other);
        }
        let sum = (one + other)?;
        let normed = self.forward(&sum)?;
        Ok((sum, normed))
    }

    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if input.device().is_cpu() && input.dtype() == DType::F32 && self.weight.dtype() == DType::F32 {
            return input.contiguous()?.apply_op2_no_bwd(&self.weight, &OnHost { epsilon: self.epsilon });
        }
        let weight = self.weight.to_dtype(input.dtype())?;
        candle_nn::ops::rms_norm(&input.contiguous()?, &weight, self.epsilon)
    }

    /// Normalises rows, `[rows, size]`, that lie on the CPU.
    pub fn in_place(&self, rows: &mut [f32]) -> Result<()> {
        let weight = self.weight.to_vec1::<f32>()?;
        let input = rows.to_vec();
        Arch::new().dispatch(Piece { input: &input, weight: &weight, epsilon: self.epsilon, out: rows });
        Ok(())
    }

    fn on_device(&self, one: &Tensor, other: &Tensor) -> Result<(Tensor, Tensor)> {
        const THREADS: usize = 512;
        let (rows, width) = one.dims2()?;
        let (device, dtype) = (one.device(), one.dtype());
        let (sum, normed) = (unwritten((rows, width), dtype, device)?, unwritten((rows, width), dtype, device)?);
        let [a, b, w, s, n] = [one, other, &self.weight, &sum, &normed].map(Argument::Tensor);
        let arguments = [a, b, w, s, n, Argument::Count(width), Argument::Real(self.epsilon)];
        let name = format!("add_and_normalise_{}", suffix(dtype)?);
        launch(device, Kernel::Norm, &name, Grid::new((rows, 1), THREADS), &arguments)?;
        Ok((sum, normed))
    }
}

/// The first norm on the CPU, in f32. Sums are of sixteen lanes, so that a row's bits do not depend on how many numbers the
/// processor's registers hold.
struct OnHost {
    epsilon: f32,
}

impl CustomOp2 for OnHost {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (Some(input), Some(weight)) = (l1.contiguous_offsets(), l2.contiguous_offsets()) else {
            candle_core::bail!("values must lie side by side")
        };
        let input = &s1.as_slice::<f32>()?[input.0..input.1];
        let weight = &s2.as_slice::<f32>()?[weight.0..weight.1];
        let mut out = vec![0.0; input.len()];
        let share = shared_rows(weight.len()) * weight.len().max(1);
        let pieces = out.chunks_mut(share).zip(input.chunks(share));
        work_off(pieces.map(|(out, input)| Piece { input, weight, epsilon: self.epsilon, out }).collect());
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}

/// Some rows.
struct Piece<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { input, weight, epsilon, out } = self;
        let size = weight.len();
        for (row, out) in input.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            let mut lanes = [0.0; LANES];
            let (whole, rest) = row.as_chunks::<LANES>();
            for values in whole {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane = multiply_add::<S>(*value, *value, *lane);
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane = multiply_add::<S>(*value, *value, *lane);
            }
            let mean = halved(lanes, |a, b| a + b) / size as f32;
            let root = (mean + epsilon).sqrt();
            for ((out, value), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = value / root * weight;
            }
        }
    }
}

impl Module for RmsNorm {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        RmsNorm::forward(self, input)
    }
}

/// `(x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias` over the last axis.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, `[size]`.
    pub fn load(scope: &Scope<'_>, size: usize, epsilon: f64) -> std::result::Result<Self, ModelError> {
        let (weight, bias) = (scope.tensor("weight", &[size])?, scope.tensor("bias", &[size])?);
        Ok(Self { weight, bias, epsilon: epsilon as f32 })
    }
}

impl Module for LayerNorm {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.to_dtype(input.dtype())?, self.bias.to_dtype(input.dtype())?);
        candle_nn::ops::layer_norm(&input.contiguous()?, &weight, &bias, self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_divided_by_its_root_mean_square_whatever_its_length_and_the_number_of_rows() {
        for (rows, size) in [(1, 5), (3, 64), (9, 37), (5000, 48)] {
            let values: Vec<f32> = (0..rows * size).map(|at| ((at * 7919) % 2003) as f32 * 0.01 - 10.0).collect();
            let weight: Vec<f32> = (0..size).map(|at| 1.0 + at as f32 * 0.1).collect();
            let norm = RmsNorm::of(Tensor::from_slice(&weight, size, &Device::Cpu).unwrap(), 1e-5);
            let input = Tensor::from_slice(&values, (rows, size), &Device::Cpu).unwrap();
            let found = norm.forward(&input).unwrap().to_vec2::<f32>().unwrap();
            for (row, found) in values.chunks(size).zip(&found) {
                let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
                let root = (square / size as f64 + 1e-5).sqrt();
                for ((value, weight), found) in row.iter().zip(&weight).zip(found) {
                    let expected = f64::from(*value) / root * f64::from(*weight);
                    assert!((f64::from(*found) - expected).abs() <= 2e-6 * expected.abs().max(1e-3));
                }
            }
        }
    }
}
