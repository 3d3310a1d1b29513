//! The gated feed-forward layer (Shazeer, 2020): `down(silu(gate(x)) * up(x))`.

use candle_core::{CpuStorage, CustomOp1, Layout, Module, Result, Shape, Tensor};
use pulp::{Simd, WithSimd};

use super::lanes::{exponential, shared_rows, work_off};
use super::linear::Linear;
use crate::model::api::ModelError;
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
    both.apply_op1_no_bwd(&Gated { width })
}

/// On the CPU, in f32.
struct Gated {
    width: usize,
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.width;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("gates and what they let through must lie side by side")
        };
        let both = &storage.as_slice::<f32>()?[start..end];
        let mut out = vec![0.0; both.len() / 2];
        let rows = shared_rows(width);
        let pieces = out.chunks_mut(rows * width).zip(both.chunks(rows * 2 * width));
        work_off(pieces.map(|(out, both)| Piece { both, width, out }).collect());
        Ok((CpuStorage::F32(out), (layout.shape().elem_count() / (2 * width.max(1)), width).into()))
    }
}

/// Some rows.
struct Piece<'a> {
    both: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { both, width, out } = self;
        for (both, out) in both.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = both.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                // The exponential of what is not positive stays small: e^-x / (1 + e^-x) is 1 / (1 + e^x).
                let power = exponential::<S>(-gate.abs());
                let above = if *gate < 0.0 { power } else { 1.0 };
                *out = gate * above / (1.0 + power) * up;
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_gate_equals_its_formula_in_double_precision_for_one_row_and_for_many() {
        for (rows, width) in [(1, 5), (3, 16), (700, 75)] {
            let value = |at: usize| ((at * 7919) % 4001) as f32 * 0.01 - 20.0;
            let values: Vec<f32> = (0..rows * 2 * width).map(value).collect();
            let both = Tensor::from_slice(&values, (rows, 2 * width), &Device::Cpu).unwrap();
            let found = gated(&both, width).unwrap().to_vec2::<f32>().unwrap();
            for (row, found) in found.iter().enumerate() {
                for (column, found) in found.iter().enumerate() {
                    let at = row * 2 * width + column;
                    let (gate, up) = (f64::from(values[at]), f64::from(values[at + width]));
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{gate}, {up}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let both = Tensor::new(&[[f32::NAN, 1.0, 2.0, f32::NAN]], &Device::Cpu).unwrap();
        let found = gated(&both, 2).unwrap().to_vec2::<f32>().unwrap();
        assert!(found[0][0].is_nan() && found[0][1].is_nan());
    }
}
