//! The number formats in which a model can be held.

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

/// How weights are held; what is stored otherwise is converted while loading.
///
/// On the CPU activations are f32 whatever this says: 16-bit weights are widened inside each product. Quantised formats
/// hold the weights of linear maps and experts in blocks along their inputs; everything else (embeddings, norms,
/// routers, convolutions) stays a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    F16,
    Bf16,
    /// 8 bits, blocks of 32 with one scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits, blocks of 256 with scales and minima of 32.
    Q4K,
}

impl Precision {
    /// The format of what is not quantised, given what it is stored as: a 16-bit table stays one beside quantised maps.
    pub fn table(self, stored: DType) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Q8_0 | Self::Q4K => stored,
        }
    }

    /// The format of activations, of norms and of all that is computed with as it is.
    pub fn activations(self, on_cpu: bool) -> DType {
        match self {
            Self::F16 if !on_cpu => DType::F16,
            Self::Bf16 if !on_cpu => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The format of cached keys and values: on the CPU 16 bits where weights are rounded at least as coarsely.
    pub fn cached(self, on_cpu: bool) -> DType {
        if on_cpu && self.quantises() { DType::F16 } else { self.activations(on_cpu) }
    }

    /// Whether linear maps are held in blocks of integers.
    pub fn quantises(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4K)
    }

    /// The block format of a map with so many inputs: the one asked for, else a coarser one whose blocks divide them.
    pub fn blocks(self, inputs: usize) -> Option<GgmlDType> {
        let wanted: &[GgmlDType] = match self {
            Self::F32 | Self::F16 | Self::Bf16 => &[],
            Self::Q8_0 => &[GgmlDType::Q8_0],
            Self::Q4K => &[GgmlDType::Q4K, GgmlDType::Q8_0],
        };
        wanted.iter().copied().find(|blocks| inputs.is_multiple_of(blocks.block_size()))
    }

    /// As settings spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4k",
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "q8_0" => Ok(Self::Q8_0),
            "q4k" => Ok(Self::Q4K),
            _ => Err("write f32, f16, bf16, q8_0 or q4k".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_that_no_block_divides_falls_back_step_by_step() {
        assert_eq!(Precision::Q4K.blocks(512), Some(GgmlDType::Q4K));
        assert_eq!(Precision::Q4K.blocks(96), Some(GgmlDType::Q8_0));
        assert_eq!(Precision::Q8_0.blocks(72), None);
        assert_eq!(Precision::Bf16.blocks(512), None);
    }
}
