//! Numbers for a weight file that holds none: shapes of a real model for measuring, without its gigabytes.
//!
//! Such a file says so in its metadata, and its data is a hole. Vectors become ones, everything else is drawn evenly with a
//! standard deviation of 0.02; on a GPU the device draws. Zeros would not do: products of zeros are faster.

use candle_core::{DType, Device, Result, Tensor};

/// The entry of a safetensors file's metadata that marks it.
pub const KEY: &str = "values";
pub const VALUE: &str = "drawn";

/// Numbers lie within this of zero.
const REACH: f32 = 0.034_641;

/// The number at place `index` of its file; the same each time.
pub fn number(index: usize, is_vector: bool) -> f32 {
    if is_vector {
        return 1.0;
    }
    // The finaliser of SplitMix64 (Steele et al., 2014).
    let mut bits = (index as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = (bits >> 40) as f32 / (1 << 24) as f32;
    (2.0 * part - 1.0) * REACH
}

/// A tensor that the device draws itself.
pub fn tensor(shape: &[usize], held: DType, device: &Device) -> Result<Tensor> {
    match shape {
        [_] => Tensor::ones(shape, held, device),
        _ => Tensor::rand(-REACH, REACH, shape, device)?.to_dtype(held),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Precision, Weights};
    use super::*;

    #[test]
    fn drawn_numbers_have_the_spread_of_weights_and_vectors_are_ones() {
        let numbers: Vec<f32> = (0..100_000).map(|index| number(index, false)).collect();
        let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
        let deviation = (numbers.iter().map(|value| value * value).sum::<f32>() / numbers.len() as f32).sqrt();
        assert!(mean.abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4, "{mean} {deviation}");
        assert_eq!(number(7, true), 1.0);
    }

    #[test]
    fn a_file_that_says_so_is_drawn_and_the_same_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let header = format!(
            r#"{{"__metadata__":{{"{KEY}":"{VALUE}"}},"norm":{{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}},
            "map":{{"dtype":"BF16","shape":[2,3],"data_offsets":[6,18]}}}}"#
        );
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 18]].concat();
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        let read = |name: &str, shape: &[usize]| {
            let weights = Weights::open(directory.path(), Precision::F32, &Device::Cpu).unwrap();
            weights.root().tensor(name, shape).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(read("norm", &[3]), [1.0; 3]);
        let map = read("map", &[2, 3]);
        assert_eq!(map, read("map", &[2, 3]));
        assert!(map.iter().all(|value| value.abs() <= REACH && *value != 0.0) && map[0] != map[1], "{map:?}");
    }
}
