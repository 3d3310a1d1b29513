//! GGUF files (the format of ggml and llama.cpp): tensors in blocks or as floats, and everything else as metadata.
//!
//! Shapes are told outermost first, as everywhere here; the file has them the other way round. This file knows no
//! architecture. Invariant: every tensor of the index lies whole inside the file, and its blocks divide its rows.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use super::mapped::{Layout, MappedFile, Stored};
use crate::model::api::ModelError;

/// Settings, tokenizer and templates of a GGUF file by key.
pub type Metadata = HashMap<String, Value>;

/// Maps the file, adds its tensors to `index` and reads the rest.
pub fn open(path: &Path, index: &mut HashMap<String, Stored>) -> Result<(MappedFile, Metadata), ModelError> {
    let mapped = MappedFile::map(path)?;
    let content = Content::read(&mut Cursor::new(&mapped.map[..]))
        .map_err(|error| ModelError::malformed(path, format!("not a GGUF file that can be read: {error}")))?;
    for (name, info) in &content.tensor_infos {
        index.insert(name.clone(), stored(path, (name, info), content.tensor_data_offset, mapped.map.len())?);
    }
    Ok((mapped, content.metadata))
}

fn stored(path: &Path, (name, info): (&str, &TensorInfo), data: u64, length: usize) -> Result<Stored, ModelError> {
    let malformed = |detail: String| ModelError::malformed(path, format!("tensor {name} {detail}"));
    let (shape, format) = (info.shape.dims().to_vec(), info.ggml_dtype);
    let (block, size) = (format.block_size(), format.type_size());
    if !shape.last().is_some_and(|inputs| inputs.is_multiple_of(block)) {
        return Err(malformed(format!("has shape {shape:?}, which blocks of {block} do not divide")));
    }
    let start = data.checked_add(info.offset).and_then(|start| usize::try_from(start).ok());
    let bytes = shape.iter().try_fold(size, |bytes, side| bytes.checked_mul(*side)).map(|bytes| bytes / block);
    let range = start.zip(bytes).and_then(|(start, bytes)| Some((start, start.checked_add(bytes)?)));
    match range {
        Some((start, end)) if end <= length && start.is_multiple_of(align_of::<f32>()) => {
            Ok(Stored { file: 0, shape, layout: layout(format), format: format!("{format:?}"), start, end })
        }
        _ => Err(malformed(format!("does not lie inside of the {length} bytes: the file is cut off"))),
    }
}

/// None for what is no format of weights.
fn layout(format: GgmlDType) -> Option<Layout> {
    match format {
        GgmlDType::F32 => Some(Layout::Floats(DType::F32)),
        GgmlDType::F16 => Some(Layout::Floats(DType::F16)),
        GgmlDType::BF16 => Some(Layout::Floats(DType::BF16)),
        // These two are for activations.
        GgmlDType::Q8_1 | GgmlDType::Q8K => None,
        blocks => Some(Layout::Blocks(blocks)),
    }
}
