//! Tensors in mapped files: where each lies and what it is stored as.
//!
//! A file is mapped, read once and given back page by page, so that a model is never in memory twice. Invariant: a
//! tensor's bytes lie inside its file and are as many as its shape and format need.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};

use super::drawn;
use crate::model::api::ModelError;

/// Bytes that are read before their pages are given back.
const STRIDE: usize = 2 << 20;

/// How far around a page that is looked at others may be mapped, too: Linux maps what it has read in one go, 2 MiB at most.
const AROUND: usize = 2 << 20;

/// How the numbers of a tensor lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One after the other.
    Floats(DType),
    /// In blocks along its last dimension, which they divide.
    Blocks(GgmlDType),
}

/// A tensor as it lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Index of its file.
    pub file: usize,
    pub shape: Vec<usize>,
    /// None for formats that weights cannot have here.
    pub layout: Option<Layout>,
    /// What the file calls the format.
    pub format: String,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Layout {
    /// The float that it is, or that its numbers become.
    pub fn float(self) -> DType {
        match self {
            Self::Floats(dtype) => dtype,
            Self::Blocks(_) => DType::F32,
        }
    }
}

/// A mapped file of weights.
#[derive(Debug)]
pub struct MappedFile {
    pub path: PathBuf,
    /// Whether its numbers are drawn and not stored; see [`super::drawn`].
    pub is_drawn: bool,
    pub(super) map: Mmap,
}

impl MappedFile {
    /// Maps a file of any format.
    pub(super) fn map(path: &Path) -> Result<Self, ModelError> {
        let failed = |source| ModelError::Read { path: path.to_owned(), source };
        let map = map(&File::open(path).map_err(failed)?).map_err(failed)?;
        Ok(Self { path: path.to_owned(), is_drawn: false, map })
    }

    /// Maps a safetensors file and adds its tensors to `index` under file number `file`.
    pub fn open(path: &Path, file: usize, index: &mut HashMap<String, Stored>) -> Result<Self, ModelError> {
        let mut mapped = Self::map(path)?;
        let map = &mapped.map;
        let malformed = |error: safetensors::SafeTensorError| {
            ModelError::malformed(path, format!("not a safetensors file: {error}"))
        };
        let (header, metadata) = SafeTensors::read_metadata(map).map_err(malformed)?;
        // The header's length itself takes eight bytes.
        let data = header + 8;
        for (name, info) in metadata.tensors() {
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.len() {
                let detail = format!("tensor {name} ends at byte {end} of {}: the file is cut off", map.len());
                return Err(ModelError::malformed(path, detail));
            }
            let layout = match info.dtype {
                Dtype::F32 => Some(Layout::Floats(DType::F32)),
                Dtype::F16 => Some(Layout::Floats(DType::F16)),
                Dtype::BF16 => Some(Layout::Floats(DType::BF16)),
                _ => None,
            };
            let format = format!("{:?}", info.dtype);
            index.insert(name, Stored { file, shape: info.shape.clone(), layout, format, start, end });
        }
        let notes = metadata.metadata().as_ref();
        mapped.is_drawn = notes.is_some_and(|notes| notes.get(drawn::KEY).is_some_and(|value| value == drawn::VALUE));
        Ok(mapped)
    }

    /// Hands the bytes of part of a tensor over piece by piece, and gives their pages back. `range` counts elements of
    /// `size` bytes. Pieces hold whole elements.
    pub fn read(&self, stored: &Stored, range: std::ops::Range<usize>, size: usize, mut piece: impl FnMut(&[u8])) {
        let (start, end) = (stored.start + range.start * size, (stored.start + range.end * size).min(stored.end));
        let mut from = start;
        while from < end {
            let to = end.min(from + STRIDE / size * size);
            piece(&self.map[from..to]);
            self.give_back(from, to);
            from = to;
        }
    }

    #[allow(unsafe_code)]
    fn give_back(&self, from: usize, to: usize) {
        // SAFETY: the mapping is of a file and is only read: a page that is looked at again is read from the file again.
        // Failing to give pages back costs memory, nothing else.
        let (from, to) = (from.saturating_sub(AROUND), self.map.len().min(to + AROUND));
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read while the model is being loaded and dropped afterwards. Model files are written once
    // and replaced whole, by rename; whoever truncates one in place during that time breaks this process.
    unsafe { Mmap::map(file) }
}
