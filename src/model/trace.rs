//! A look into a forward pass: named tensors, kept when somebody asks for them.
//!
//! Comparing with a reference needs the steps between input and output; a worker does not, and then this costs nothing.

use std::fmt;

use candle_core::Tensor;

/// Keeps what a forward pass shows, or nothing.
#[derive(Debug, Default)]
pub struct Trace(Option<Vec<(String, Tensor)>>);

impl Trace {
    /// Keeps nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Keeps all that is shown.
    pub fn on() -> Self {
        Self(Some(Vec::new()))
    }

    /// Shows a tensor. Names are those of the reference goldens, for example `text.layer_3`.
    pub fn show(&mut self, name: fmt::Arguments<'_>, tensor: &Tensor) {
        if let Some(kept) = &mut self.0 {
            kept.push((name.to_string(), tensor.clone()));
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What was shown, in order.
    pub fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.0.unwrap_or_default()
    }
}
