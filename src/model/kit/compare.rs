//! How near to its golden a tensor must be.

use candle_core::{DType, Tensor};

/// `|a - b| <= absolute + relative * |b|`, element by element.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    pub absolute: f32,
    pub relative: f32,
}

impl Limit {
    /// By the golden's name: decoders accumulate more than towers do.
    pub fn of(name: &str) -> Self {
        match name.split('.').next() {
            Some("vision") => Self { absolute: 2e-4, relative: 1e-4 },
            _ => Self { absolute: 1e-3, relative: 1e-4 },
        }
    }

    /// Compares and returns the largest difference.
    pub fn assert(&self, what: &str, found: &[f32], expected: &[f32]) -> f32 {
        assert_eq!(found.len(), expected.len(), "{what}: number of values");
        let mut farthest = 0.0_f32;
        for (index, (a, b)) in found.iter().zip(expected).enumerate() {
            let distance = (a - b).abs();
            let within = distance <= self.absolute + self.relative * b.abs();
            assert!(within, "{what}: value {index} is {a}, expected {b}");
            farthest = farthest.max(distance);
        }
        farthest
    }
}

/// All values as f32, row after row.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
