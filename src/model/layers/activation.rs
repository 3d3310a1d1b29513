//! The non-linearities, value by value.
//!
//! In f32 on the CPU they run on all threads and in vector registers where the formula allows it; elsewhere the tensor
//! library has them. GELU after Hendrycks and Gimpel, 2016. Invariant: a value of the result depends on its own value of
//! the input alone, and lies within 2e-6 of what the formula says.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::model::config::Activation;

/// Values that one thread takes at a time; fewer would not be worth the hand-over.
const CHUNK: usize = 1 << 14;

/// Applies the activation.
pub fn activate(activation: Activation, input: &Tensor) -> Result<Tensor> {
    if input.device().is_cpu() && input.dtype() == DType::F32 && input.is_contiguous() {
        return match activation {
            Activation::QuickGelu => each(input, |x| x / (1.0 + (-1.702 * x).exp())),
            Activation::GeluTanh => each(input, gelu_tanh),
            Activation::GeluErf => each(input, gelu_erf),
            Activation::Relu => input.relu(),
            Activation::Silu => each(input, |x| x / (1.0 + (-x).exp())),
        };
    }
    match activation {
        Activation::QuickGelu => input * candle_nn::ops::sigmoid(&(input * 1.702)?)?,
        Activation::GeluTanh => input.gelu(),
        Activation::GeluErf => input.gelu_erf(),
        Activation::Relu => input.relu(),
        Activation::Silu => input.silu(),
    }
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, by the equal `x / (1 + exp(-2 ..))`.
fn gelu_tanh(x: f32) -> f32 {
    const TWICE_ROOT: f32 = 1.595_769;
    x / (1.0 + (-TWICE_ROOT * x * (1.0 + 0.044_715 * x * x)).exp())
}

/// `x / 2 (1 + erf(x / sqrt(2)))`. The error function is a quotient of polynomials, fitted for the smallest largest error
/// (1.5e-8) up to 5.5, beyond which it is 1 in f32.
fn gelu_erf(x: f32) -> f32 {
    const LIMIT: f32 = 5.5;
    let square = x * x;
    let above =
        horner(square, [4.549_877_5e-8, 1.270_425_4e-5, 3.376_526_6e-4, 0.009_354_53, 0.067_705_41, 0.797_884_47]);
    let below = horner(square, [1.197_505_3e-6, 7.364_774e-5, 0.001_884_448_5, 0.028_645_907, 0.251_522_07, 1.0]);
    let error_function = if x.abs() < LIMIT { x * above / below } else { 1f32.copysign(x) };
    0.5 * x * (1.0 + error_function)
}

/// The polynomial with these coefficients, the highest power first.
#[inline(always)]
fn horner(x: f32, coefficients: [f32; 6]) -> f32 {
    coefficients.into_iter().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

fn each(input: &Tensor, function: impl Fn(f32) -> f32 + Send + Sync) -> Result<Tensor> {
    input.apply_op1_no_bwd(&ValueByValue(function))
}

struct ValueByValue<F>(F);

impl<F: Fn(f32) -> f32 + Send + Sync> CustomOp1 for ValueByValue<F> {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("values must lie side by side")
        };
        let values = &storage.as_slice::<f32>()?[start..end];
        let mut results = vec![0.0; values.len()];
        results.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(results, values)| {
            for (result, value) in results.iter_mut().zip(values) {
                *result = self.0(*value);
            }
        });
        Ok((CpuStorage::F32(results), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn every_activation_equals_its_formula_in_double_precision() {
        let values: Vec<f32> = (-40_000..=40_000).map(|step| step as f32 * 2.5e-4).chain([-1e4, 1e4]).collect();
        let input = Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
        let wide = input.to_dtype(DType::F64).unwrap();
        for activation in
            [Activation::QuickGelu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Silu]
        {
            let found = activate(activation, &input).unwrap().to_vec1::<f32>().unwrap();
            let expected = activate(activation, &wide).unwrap().to_vec1::<f64>().unwrap();
            for ((value, found), expected) in values.iter().zip(&found).zip(&expected) {
                assert!((f64::from(*found) - expected).abs() <= 2e-6, "{activation:?} of {value}: {found}, {expected}");
            }
        }
    }
}
