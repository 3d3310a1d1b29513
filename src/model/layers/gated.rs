//! The gated feed-forward layer (Shazeer, 2020): `down(silu(gate(x)) * up(x))`.

use candle_core::{Module, Result, Tensor};

use super::activation::activate;
use super::linear::Linear;
use crate::model::api::ModelError;
use crate::model::config::Activation;
use crate::model::kernels::{Argument, Grid, Kernel, launch, suffix, unwritten};
use crate::model::weights::Scope;

/// Three linear maps with the gate between them.
#[derive(Debug, Clone)]
pub struct GatedFeedForward {
    /// The gate's outputs before those of up.
    gate_up: Linear,
    down: Linear,
    width: usize,
}

impl GatedFeedForward {
    /// Reads `gate_proj`, `up_proj` and `down_proj` below `scope`.
    pub fn load(scope: &Scope<'_>, hidden: usize, width: usize, bias: bool) -> std::result::Result<Self, ModelError> {
        let gate_up = Linear::load_joined(scope, &[("gate_proj", width), ("up_proj", width)], hidden, bias)?;
        let down = scope.at("down_proj");
        let down = match bias {
            true => Linear::load_with_bias(&down, width, hidden)?,
            false => Linear::load(&down, width, hidden)?,
        };
        Ok(Self { gate_up, down, width })
    }

    /// `[rows, hidden]` to `[rows, hidden]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.down.forward(&gated(&self.gate_up.forward(input)?, self.width)?)
    }
}

impl Module for GatedFeedForward {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        GatedFeedForward::forward(self, input)
    }
}

/// `silu(gate) * up` of `[rows, gate and up]`, each `width` wide.
pub fn gated(both: &Tensor, width: usize) -> Result<Tensor> {
    if both.device().is_cuda() {
        return on_device(both, width);
    }
    let gate = both.narrow(1, 0, width)?;
    // Side by side the gate's values are worked out on all threads.
    activate(Activation::Silu, &gate.contiguous()?)? * both.narrow(1, width, width)?
}

fn on_device(both: &Tensor, width: usize) -> Result<Tensor> {
    const THREADS: usize = 256;
    const MOST_BLOCKS: usize = 4096;
    let (device, dtype, rows) = (both.device(), both.dtype(), both.dim(0)?);
    let out = unwritten((rows, width), dtype, device)?;
    let blocks = (rows * width).div_ceil(THREADS * 16 / dtype.size_in_bytes()).clamp(1, MOST_BLOCKS);
    let arguments = [Argument::Tensor(both), Argument::Tensor(&out), Argument::Count(rows), Argument::Count(width)];
    launch(device, Kernel::Gated, &format!("gated_{}", suffix(dtype)?), Grid::new((blocks, 1), THREADS), &arguments)?;
    Ok(out)
}
