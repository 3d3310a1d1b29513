//! The boundary of the models: what the CPU prepares, what the device computes, and how either fails.
//!
//! A model knows token ids and pixels; it knows no product, no job, no queue and no clock. A [`Processor`] and a
//! [`ChatProcessor`] run on any thread; an [`Encoder`] and a [`Generator`] are owned by exactly one device thread, which is
//! why their methods take `&mut self`. A loaded model offers an encoder, a generator or both.
//! Invariant: a result depends on its own input alone, never on what else is in the batch.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;

use super::step_rows::StepRows;
use super::trace::Trace;
use crate::kv::{BlockId, KvStore};

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
    /// Fails with [`ModelError::Input`] when the text cannot be tokenised for this model or it takes no texts.
    fn text(&self, text: &str) -> Result<TokenIds, ModelError>;

    /// Fails with [`ModelError::Input`] when the picture is empty, its bytes do not fit its size, or the model takes no
    /// pictures.
    fn image(&self, picture: Picture<'_>) -> Result<Pixels, ModelError>;
}

/// The device side of an embedding model. One row per input, in order, each of unit length and of `dimensions()` values.
pub trait Encoder: Send {
    /// Length of every embedding, of texts and of pictures alike.
    fn dimensions(&self) -> usize;

    /// Whether it has a text side. Without one every text is refused.
    fn takes_texts(&self) -> bool;

    /// Whether it has a picture side. Without one every picture is refused.
    fn takes_images(&self) -> bool;

    /// Embeds texts of any mixture of lengths. Fails with [`ModelError::Input`] when the model takes no texts.
    fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Embeds pictures. Fails with [`ModelError::Input`] when the model takes no pictures.
    fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// Who speaks in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

/// A piece of a chat message.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    Text(&'a str),
    Image(Picture<'a>),
}

/// One message of a chat.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    pub role: Role,
    pub parts: Vec<Part<'a>>,
}

/// A picture as a generator's vision tower wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionInput {
    /// In the family's own layout: Llama 4 `[tiles, 3, side, side]`, Qwen `[patches, 3 * 2 * patch * patch]`.
    pub values: Vec<f32>,
    /// Rows and columns: of tiles without the global one (Llama 4), of patches (Qwen).
    pub grid: (usize, usize),
    /// Rows of features that the tower makes of it: the tokens that it takes in the prompt.
    pub tokens: usize,
    /// SHA-256 of the decoded picture, `width height` and its RGB bytes; what caches are keyed by.
    pub hash: [u8; 32],
}

/// A picture at its place in a prompt.
#[derive(Debug, Clone)]
pub struct PromptImage {
    pub input: Arc<VisionInput>,
    /// Where its rows of features go, in order: ranges of the prompt's ids.
    pub places: Vec<Range<usize>>,
}

/// A chat as token ids and pictures.
#[derive(Debug, Clone)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Position of each id, on the time, height and width axes; families with one axis repeat it.
    pub positions: Vec<[u32; 3]>,
    /// Added to the index of a generated token to get its position, on all axes.
    pub position_offset: i64,
    pub images: Vec<PromptImage>,
}

impl Prompt {
    /// The position of the token at `index`, of the prompt or generated after it.
    pub fn position(&self, index: usize) -> [u32; 3] {
        let later = || [u32::try_from(index as i64 + self.position_offset).unwrap_or_default(); 3];
        self.positions.get(index).copied().unwrap_or_else(later)
    }

    /// The parts of its pictures that belong to its tokens of `range`, for a step in which the first of these is `row`.
    /// `features` are those of `images`, in order.
    pub fn splices<'f>(&self, range: Range<usize>, row: usize, features: &'f [Features]) -> Vec<Splice<'f>> {
        let mut splices = Vec::new();
        for (image, features) in self.images.iter().zip(features) {
            let mut first = 0;
            for place in &image.places {
                let (from, to) = (place.start.max(range.start), place.end.min(range.end));
                if from < to {
                    let (row, first) = (row + from - range.start, first + from - place.start);
                    splices.push(Splice { row, features, first, count: to - from });
                }
                first += place.len();
            }
        }
        splices
    }
}

/// What one token id spells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSpelling {
    /// Bytes of text, not always whole characters.
    Bytes(Vec<u8>),
    /// A command to the model, by its name; no text contains it.
    Special(String),
    /// The model has a place for the id, the tokenizer has no token.
    Unused,
}

/// What every token id of a model spells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTable {
    /// The index is the id; as many as the model has embeddings.
    pub tokens: Vec<TokenSpelling>,
    /// Ids that end an answer.
    pub end_tokens: Vec<u32>,
}

/// The CPU side of a generator.
pub trait ChatProcessor: Send + Sync {
    /// Renders the chat, ready for the assistant's answer, and prepares its pictures.
    /// Fails with [`ModelError::Input`] when the template refuses the messages or a picture cannot be used.
    fn prompt(&self, messages: &[Message<'_>]) -> Result<Prompt, ModelError>;

    /// A text without a template, with the special tokens that the tokenizer itself adds.
    fn text(&self, text: &str) -> Result<Prompt, ModelError>;

    /// What a picture is cut into, and the prompt tokens of each piece; none without a picture side.
    fn picture_unit(&self) -> Option<(String, usize)>;

    /// The text of generated ids; special tokens are left out. Incomplete UTF-8 at the end becomes U+FFFD.
    fn decode(&self, ids: &[u32]) -> Result<String, ModelError>;

    /// What each id spells, for whoever decides which ids may come next.
    fn vocabulary(&self) -> Result<TokenTable, ModelError>;

    /// The ids of a text in the middle of an answer: no frame, and no special token whatever the text spells.
    fn plain(&self, text: &str) -> Result<Vec<u32>, ModelError>;
}

/// What a generator is, as far as who drives it must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorShape {
    pub vocabulary: usize,
    /// Length of a hidden state.
    pub hidden: usize,
    /// Largest number of positions.
    pub context: usize,
    /// Ids that end an answer.
    pub end_tokens: Vec<u32>,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of one number of cached keys and values.
    pub cached_bytes: usize,
    /// How many experts see a token, and of how many; none where every weight sees every token.
    pub experts: Option<(usize, usize)>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct SequenceStep<'a> {
    /// Tokens of this sequence in this step; its rows follow those of the sequence before it.
    pub new: usize,
    /// Tokens of it that are in the cache already.
    pub past: usize,
    /// Its block table, with room for `past + new` positions.
    pub blocks: &'a [BlockId],
}

/// Features of a picture that replace token embeddings of a step.
#[derive(Debug, Clone, Copy)]
pub struct Splice<'a> {
    /// First row of the step.
    pub row: usize,
    pub features: &'a Features,
    /// First row of the features, and how many.
    pub first: usize,
    pub count: usize,
}

/// What one forward pass computes: new tokens of any number of sequences, packed without padding.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `[rows]`
    pub tokens: &'a [u32],
    /// `[rows]`
    pub positions: &'a [[u32; 3]],
    pub sequences: &'a [SequenceStep<'a>],
    pub splices: &'a [Splice<'a>],
    /// Rows whose next-token logits are wanted, ascending.
    pub logits: &'a [usize],
    /// Rows whose last hidden state (after the last norm) is wanted, ascending.
    pub hidden: &'a [usize],
}

/// What a step answers.
#[derive(Debug, Clone, Default)]
pub struct StepOutput {
    /// `[wanted, vocabulary]`
    pub logits: StepRows,
    /// `[wanted, hidden]`
    pub hidden: StepRows,
}

/// What a vision tower makes of one picture; lives on the device.
#[derive(Debug, Clone)]
pub struct Features {
    /// `[tokens, hidden]`: replace the embeddings of the picture's tokens.
    pub rows: Tensor,
    /// Each `[tokens, hidden]`: added after the first decoder layers (Qwen3-VL); else empty.
    pub deep: Vec<Tensor>,
}

impl Features {
    /// Memory that they take.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        bytes(&self.rows) + self.deep.iter().map(bytes).sum::<u64>()
    }

    /// Zeros on the CPU, `[tokens, hidden]`.
    #[cfg(test)]
    pub fn of_zeros(tokens: usize, hidden: usize) -> Self {
        let rows = Tensor::zeros((tokens, hidden), candle_core::DType::F32, &candle_core::Device::Cpu);
        Self { rows: rows.expect("zeros can be made"), deep: Vec::new() }
    }
}

/// The device side of a model that writes.
pub trait Generator: Send {
    fn shape(&self) -> &GeneratorShape;

    /// A cache of so many blocks for this model on its device.
    fn cache(&self, blocks: usize) -> Result<KvStore, ModelError>;

    /// Runs the vision tower. Fails with [`ModelError::Input`] when the model has none or the input does not fit it.
    fn see(&mut self, image: &VisionInput, trace: &mut Trace) -> Result<Features, ModelError>;

    /// One forward pass; the new tokens' keys and values are in the cache afterwards.
    fn step(&mut self, step: &Step<'_>, cache: &mut KvStore, trace: &mut Trace) -> Result<StepOutput, ModelError>;
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
