//! Normalisation of rows: by the root of the mean square (Zhang and Sennrich, 2019), and by mean and variance (Ba et al.,
//! 2016). Sums are in f32 whatever the input is.

use candle_core::{DType, Device, Module, Result, Tensor};

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

    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let weight = self.weight.to_dtype(input.dtype())?;
        candle_nn::ops::rms_norm(&input.contiguous()?, &weight, self.epsilon)
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
