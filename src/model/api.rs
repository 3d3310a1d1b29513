//! The boundary of the models: what the CPU prepares, what the device computes, and how either fails.
//!
//! A model knows token ids and pixels; it knows no product, no job, no queue and no clock. A [`Processor`] runs on any
//! thread; an [`Encoder`] is owned by exactly one device thread, which is why its methods take `&mut self`.
//! Generation will stand beside [`Encoder`] as a trait `Generator` over the same [`TokenIds`] and [`Pixels`], owned by
//! the same thread; a loaded model then offers either or both.
//! Invariant: a result depends on its own input alone, never on what else is in the batch.

use std::path::{Path, PathBuf};

/// One text as the model wants it: truncated, and padded where the family pads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds(pub Vec<u32>);

impl TokenIds {
    /// What this text costs in a batch.
    pub fn cost(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

/// One picture as the model wants it: normalised values of shape `[3, side, side]`, channel first, rows from the top.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub side: usize,
    pub values: Vec<f32>,
    /// What this picture costs in a batch: its patches.
    pub cost: u32,
}

/// A decoded picture: 8-bit RGB, rows from the top, no padding, `width * height * 3` bytes.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    pub width: u32,
    pub height: u32,
    pub rgb: &'a [u8],
}

/// The CPU side of a model: text to token ids, pictures to pixel tensors.
pub trait Processor: Send + Sync {
    /// Fails with [`ModelError::Input`] when the text cannot be tokenised for this model.
    fn text(&self, text: &str) -> Result<TokenIds, ModelError>;

    /// Fails with [`ModelError::Input`] when the picture is empty or its bytes do not fit its size.
    fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError>;
}

/// The device side of an embedding model. One row per input, in order, each of unit length and of `dimensions()` values.
pub trait Encoder: Send {
    /// Length of every embedding, of texts and of pictures alike.
    fn dimensions(&self) -> usize;

    /// Embeds texts of any mixture of lengths.
    fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Embeds pictures.
    fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// Why a model cannot be loaded or cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {detail}", path.display())]
    Malformed { path: PathBuf, detail: String },
    /// A setting that this implementation does not know how to honour.
    #[error("{}: {key} = {value} is not supported; {advice}", path.display())]
    Unsupported { path: PathBuf, key: String, value: String, advice: String },
    #[error("{}: tensor {tensor} is missing, expected shape {expected:?}", path.display())]
    MissingTensor { path: PathBuf, tensor: String, expected: Vec<usize> },
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("{}: tensor {tensor} is stored as {found}; f32, f16 and bf16 can be read", path.display())]
    StoredType { path: PathBuf, tensor: String, found: String },
    #[error("device {name:?} cannot be used: {detail}")]
    Device { name: String, detail: String },
    /// This one input is bad.
    #[error("{detail}")]
    Input { detail: String },
    /// The computation itself failed.
    #[error("computing failed: {0}")]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn malformed(path: &Path, detail: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), detail: detail.to_string() }
    }

    pub(crate) fn unsupported(path: &Path, key: &str, value: impl std::fmt::Display, advice: &str) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            advice: advice.to_owned(),
        }
    }
}
