//! Linear maps, whatever their weights are held as.
//!
//! `[.., inputs]` to `[.., outputs]`. On the CPU activations are f32: a few rows go through a kernel of our own, which
//! reads each weight once for all of them, in 16 bits where it is held so; many rows go through the library's product,
//! 16-bit weights widened a piece at a time; Q8_0 has a kernel of our own for both where the processor multiplies bytes,
//! other quantised weights have the library's.
//! Invariant: a row of the result depends on its own row of the input alone.

use std::sync::Arc;

use candle_core::quantized::QMatMul;
use candle_core::{DType, Device, Module, Result, Tensor};

use super::{packed, skinny};
use crate::model::api::ModelError;
use crate::model::weights::{Matrix, Packed, Scope, packs};

/// Outputs whose 16-bit weights are widened at once.
const WIDENED: usize = 1024;

/// A linear map, with or without a bias.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Dense(Tensor),
    Packed(Arc<Packed>),
    Quantised {
        map: QMatMul,
        outputs: usize,
    },
    /// Outputs one after the other.
    Stacked(Vec<Weight>),
}

impl Linear {
    /// Reads `weight`, `[outputs, inputs]`, without a bias.
    pub fn load(scope: &Scope<'_>, inputs: usize, outputs: usize) -> std::result::Result<Self, ModelError> {
        Self::new(scope.matrix("weight", outputs, inputs)?, None)
    }

    /// Reads `weight` and `bias`, `[outputs]`.
    pub fn load_with_bias(scope: &Scope<'_>, inputs: usize, outputs: usize) -> std::result::Result<Self, ModelError> {
        let bias = scope.tensor("bias", &[outputs])?;
        Self::new(scope.matrix("weight", outputs, inputs)?, Some(bias))
    }

    /// Reads maps of the same inputs, `(name, outputs)` below `scope`, as one: one wide product costs less than
    /// several narrow ones.
    pub fn load_joined(
        scope: &Scope<'_>,
        parts: &[(&str, usize)],
        inputs: usize,
        with_bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let names: Vec<String> = parts.iter().map(|(name, _)| format!("{name}.weight")).collect();
        let weights: Vec<(&str, usize)> =
            names.iter().zip(parts).map(|(name, (_, outputs))| (name.as_str(), *outputs)).collect();
        let bias = match with_bias {
            true => {
                let part = |(name, outputs): &(&str, usize)| scope.at(name).tensor("bias", &[*outputs]);
                let parts = parts.iter().map(part).collect::<std::result::Result<Vec<_>, _>>()?;
                Some(Tensor::cat(&parts, 0)?)
            }
            false => None,
        };
        Self::new(scope.joined(&weights, inputs)?, bias)
    }

    /// From a matrix at hand.
    pub fn new(weight: Matrix, bias: Option<Tensor>) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: Weight::new(weight)?, bias })
    }

    /// From a weight `[outputs, inputs]` at hand.
    pub fn from_weight(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }

    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let shape = input.dims();
        let inputs = shape[shape.len() - 1];
        let rows = input.elem_count() / inputs.max(1);
        let flat = input.reshape((rows, inputs))?;
        let flat = self.weight.forward(&flat)?;
        let flat = match &self.bias {
            Some(bias) => flat.broadcast_add(bias)?,
            None => flat,
        };
        flat.reshape([&shape[..shape.len() - 1], &[self.weight.outputs()]].concat())
    }
}

impl Weight {
    fn new(matrix: Matrix) -> Result<Self> {
        Ok(match matrix {
            Matrix::Dense(weight) => Self::Dense(spaced(weight)?),
            Matrix::Quantised(weight) if weight.device().is_cpu() && packs(weight.dtype()) => {
                Self::Packed(Arc::new(Packed::new(&weight)?))
            }
            Matrix::Quantised(weight) => {
                let (outputs, inputs) = weight.shape().dims2()?;
                // From an Arc the library would fall back to f32 where an environment variable asks for it.
                let map = QMatMul::QTensor(weight);
                if map_is_on_cpu(&map) {
                    // What the kernels keep beside the blocks is made now, so that memory does not grow while serving.
                    map.forward(&Tensor::zeros((1, inputs), DType::F32, &Device::Cpu)?)?;
                }
                Self::Quantised { map, outputs }
            }
            Matrix::Stacked(parts) => Self::Stacked(parts.into_iter().map(Self::new).collect::<Result<_>>()?),
        })
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => dense(input, weight),
            Self::Packed(weight) => packed::product(&input.to_dtype(DType::F32)?, weight)?.to_dtype(input.dtype()),
            Self::Quantised { map, .. } => map.forward(&input.to_dtype(DType::F32)?)?.to_dtype(input.dtype()),
            Self::Stacked(parts) => {
                Tensor::cat(&parts.iter().map(|part| part.forward(input)).collect::<Result<Vec<_>>>()?, 1)
            }
        }
    }

    fn outputs(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.dims()[0],
            Self::Packed(weight) => weight.outputs,
            Self::Quantised { outputs, .. } => *outputs,
            Self::Stacked(parts) => parts.iter().map(Self::outputs).sum(),
        }
    }
}

fn map_is_on_cpu(map: &QMatMul) -> bool {
    matches!(map, QMatMul::QTensor(weight) if weight.device().is_cpu())
}

/// Rows whose length is a multiple of a page all begin in the same sets of the caches and push each other out; on the CPU
/// such rows get a gap behind them.
fn spaced(weight: Tensor) -> Result<Tensor> {
    const PAGE: usize = 4096;
    const GAP: usize = 16;
    let (outputs, inputs) = weight.dims2()?;
    let collides = (inputs * weight.dtype().size_in_bytes()).is_multiple_of(PAGE);
    if !weight.device().is_cpu() || outputs == 1 || !collides || weight.stride()[1] != 1 {
        return Ok(weight);
    }
    weight.pad_with_zeros(1, 0, GAP)?.narrow(1, 0, inputs)
}

/// `[rows, inputs]` times a float weight.
fn dense(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !input.device().is_cpu() {
        return input.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(input.dtype());
    }
    if input.dtype() == DType::F32 && skinny::serves(input.dim(0)?) {
        return skinny::product(input, weight);
    }
    if weight.dtype() == DType::F32 || weight.dtype() == input.dtype() {
        return input.matmul(&weight.t()?);
    }
    let outputs = weight.dim(0)?;
    let parts: Vec<Tensor> = (0..outputs)
        .step_by(WIDENED)
        .map(|first| {
            let part = weight.narrow(0, first, WIDENED.min(outputs - first))?.to_dtype(input.dtype())?;
            input.matmul(&part.t()?)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 1)
}
