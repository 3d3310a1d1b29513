//! What of a model is in memory, tensor by tensor.

use std::fmt;

/// One tensor as it is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTensor {
    pub name: String,
    pub parameters: usize,
    pub bytes: usize,
    /// For example `F32`, `BF16` or `Q8_0`.
    pub format: String,
    /// The format that was asked for, where its blocks did not divide the tensor's rows.
    pub instead_of: Option<String>,
}

/// Every tensor that was read, in the order of reading. A tensor that two layers share counts once a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held(pub Vec<HeldTensor>);

impl Held {
    /// Numbers of all tensors together.
    pub fn parameters(&self) -> usize {
        self.0.iter().map(|tensor| tensor.parameters).sum()
    }

    /// Memory of all tensors together.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|tensor| tensor.bytes).sum()
    }
}

impl fmt::Display for HeldTensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({} parameters, {} bytes, {})", self.name, self.parameters, self.bytes, self.format)
    }
}
