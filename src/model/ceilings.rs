//! What a GPU can do at best: a large matrix product and a large copy, measured where the model ran.

use std::fmt;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use super::weights::Precision;

/// The best of so many rounds counts.
const ROUNDS: usize = 10;

/// Measured, not from a data sheet.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Floating-point operations of a square matrix product of random numbers.
    pub operations_per_second: f64,
    /// Bytes read and bytes written by a copy.
    pub bytes_per_second: f64,
}

impl Ceilings {
    /// In the format of weights that are held so. Fails when the device does.
    pub fn measure(precision: Precision, device: &Device) -> Result<Self> {
        let dtype = precision.table(DType::F32);
        const SIDE: usize = 8192;
        const NUMBERS: usize = 1 << 30;
        let random = |shape: &[usize]| Tensor::rand(-1.0_f32, 1.0, shape, device)?.to_dtype(dtype);
        let (left, right) = (random(&[SIDE, SIDE])?, random(&[SIDE, SIDE])?);
        let seconds = best(device, || left.matmul(&right).map(drop))?;
        let operations_per_second = 2.0 * (SIDE as f64).powi(3) / seconds;
        drop((left, right));
        let source = random(&[NUMBERS])?;
        let seconds = best(device, || source.copy().map(drop))?;
        let bytes_per_second = 2.0 * (NUMBERS * dtype.size_in_bytes()) as f64 / seconds;
        Ok(Self { operations_per_second, bytes_per_second })
    }
}

fn best(device: &Device, work: impl Fn() -> Result<()>) -> Result<f64> {
    work()?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        device.synchronize()?;
        let started = Instant::now();
        work()?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

impl fmt::Display for Ceilings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operations, bytes) = (self.operations_per_second / 1e12, self.bytes_per_second / 1e9);
        write!(formatter, "products reach {operations:.2} Tflop/s, copies {bytes:.0} GB/s")
    }
}
