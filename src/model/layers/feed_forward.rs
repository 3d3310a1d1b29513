//! The plain feed-forward layer: two linear maps with a non-linearity between them.

use candle_core::{Module, Result, Tensor};

use super::activation::activate;
use super::linear::Linear;
use crate::model::api::ModelError;
use crate::model::config::Activation;
use crate::model::weights::Scope;

/// `outer(activation(inner(x)))`.
#[derive(Debug, Clone)]
pub struct FeedForward {
    inner: Linear,
    outer: Linear,
    activation: Activation,
}

impl FeedForward {
    /// Reads two maps with biases, `names` below `scope`; `sizes` are those of input, between and output.
    pub fn load(
        scope: &Scope<'_>,
        names: [&str; 2],
        sizes: [usize; 3],
        activation: Activation,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            inner: Linear::load_with_bias(&scope.at(names[0]), sizes[0], sizes[1])?,
            outer: Linear::load_with_bias(&scope.at(names[1]), sizes[1], sizes[2])?,
            activation,
        })
    }
}

impl Module for FeedForward {
    /// `[.., input]` to `[.., output]`.
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.outer.forward(&activate(self.activation, &self.inner.forward(input)?)?)
    }
}
