//! Reading a model's tensors by name: each with the shape that its layer expects, held as its kind is held.
//!
//! This file knows names, shapes and formats; it knows no architecture. Invariant: a tensor that is handed out has exactly
//! the shape that was asked for, and every failure names file, tensor and shapes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::directory::{SINGLE, weight_files};
use super::drawn;
use super::gguf_file::{self, Metadata};
use super::held::{Held, HeldTensor};
use super::mapped::{Layout, MappedFile, Stored};
use super::packed::{packed_bytes, packs};
use super::precision::Precision;
use super::rearranged::copy_bytes;
use super::rows::{self, Found};
use crate::model::api::ModelError;

/// The mapped weights of one model, to be read tensor by tensor onto one device.
pub struct Weights {
    files: Vec<MappedFile>,
    index: HashMap<String, Stored>,
    /// From the names that families ask for to those of the index.
    stored_name: fn(&str) -> String,
    precision: Precision,
    device: Device,
    held: RefCell<Held>,
    /// Names of what was asked for.
    read: RefCell<HashSet<String>>,
    /// Without them every tensor is zeros that take no memory.
    with_values: bool,
}

/// What a matrix is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Products.
    Map,
    /// Its rows.
    Table,
    /// Both.
    TableAndMap,
}

/// The weight of a linear map, `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// f32, f16 or bf16.
    Dense(Tensor),
    Quantised(Arc<QTensor>),
    /// One below the other, in formats that cannot be one.
    Stacked(Vec<Matrix>),
}

impl Weights {
    /// Maps all weight files of `directory`.
    pub fn open(directory: &Path, precision: Precision, device: &Device) -> Result<Self, ModelError> {
        let mut index = HashMap::new();
        let files = weight_files(directory)?
            .iter()
            .enumerate()
            .map(|(file, path)| MappedFile::open(path, file, &mut index))
            .collect::<Result<_, _>>()?;
        Ok(Self::of(files, index, precision, device))
    }

    /// Maps a GGUF file, whose tensors have the names that `stored_name` makes of those that families ask for.
    pub fn open_gguf(
        file: &Path,
        stored_name: fn(&str) -> String,
        precision: Precision,
        device: &Device,
    ) -> Result<(Self, Metadata), ModelError> {
        let mut index = HashMap::new();
        let (mapped, metadata) = gguf_file::open(file, &mut index)?;
        Ok((Self { stored_name, ..Self::of(vec![mapped], index, precision, device) }, metadata))
    }

    fn of(files: Vec<MappedFile>, index: HashMap<String, Stored>, precision: Precision, device: &Device) -> Self {
        let (held, read) = Default::default();
        let (device, stored_name) = (device.clone(), str::to_owned as fn(&str) -> String);
        Self { files, index, stored_name, precision, device, held, read, with_values: true }
    }

    /// The same without the values: names and shapes are checked and memory is counted, as if it were loaded.
    pub fn without_values(self) -> Self {
        Self { with_values: false, ..self }
    }

    /// The files that it reads.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    /// The root of the tensor names.
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(&(self.stored_name)(name))
    }

    /// The numbers of a small tensor, whatever is read of the others.
    pub fn numbers(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, ModelError> {
        Ok(rows::floats(self.find(name, expected)?, 0..expected.iter().product()))
    }

    /// What was read so far.
    pub fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Stored parameters by format, and the names of tensors that nobody asked for so far, both in order.
    pub fn stored(&self) -> (BTreeMap<String, usize>, Vec<String>) {
        let mut formats = BTreeMap::new();
        for stored in self.index.values() {
            *formats.entry(stored.format.clone()).or_default() += stored.shape.iter().product::<usize>();
        }
        let read = self.read.borrow();
        let mut unread: Vec<String> = self.index.keys().filter(|name| !read.contains(*name)).cloned().collect();
        unread.sort();
        (formats, unread)
    }

    fn find(&self, name: &str, expected: &[usize]) -> Result<Found<'_>, ModelError> {
        let tensor = (self.stored_name)(name);
        let Some(stored) = self.index.get(&tensor) else {
            let path = self.files.first().map_or_else(|| PathBuf::from(SINGLE), |file| file.path.clone());
            return Err(ModelError::MissingTensor { path, tensor, expected: expected.to_vec() });
        };
        self.read.borrow_mut().insert(tensor.clone());
        let file = &self.files[stored.file];
        let path = file.path.clone();
        if stored.shape != expected {
            return Err(ModelError::Shape { path, tensor, expected: expected.to_vec(), found: stored.shape.clone() });
        }
        match stored.layout {
            Some(layout) => Ok((file, stored, layout)),
            None => Err(ModelError::StoredType { path, tensor, found: stored.format.clone() }),
        }
    }

    /// Whether there are no numbers to read and the device makes them faster.
    fn draws_on_device(&self) -> bool {
        self.device.is_cuda() && !self.precision.quantises() && self.files.iter().all(|file| file.is_drawn)
    }

    /// The blocks in which a tensor is kept because it is stored so.
    fn kept(&self, layout: Layout) -> Option<GgmlDType> {
        match layout {
            Layout::Blocks(blocks) if self.precision.quantises() => Some(blocks),
            _ => None,
        }
    }

    /// The format of a linear map, and the one that was asked for if it is another.
    fn formats(&self, held: String) -> (String, Option<String>) {
        let asked = format!("{:?}", self.precision);
        let differs = self.precision.quantises() && held != asked;
        (held, differs.then_some(asked))
    }

    fn keep(&self, name: String, parameters: usize, bytes: usize, (format, instead_of): (String, Option<String>)) {
        self.held.borrow_mut().0.push(HeldTensor { name, parameters, bytes, format, instead_of });
    }

    /// Memory of a matrix of blocks, with what products need beside it.
    fn block_bytes(&self, blocks: GgmlDType, (outputs, inputs): (usize, usize), usage: Usage) -> usize {
        let stored = outputs * inputs / blocks.block_size() * blocks.type_size();
        if !self.device.is_cpu() {
            return stored;
        }
        match usage {
            Usage::Table => stored,
            Usage::Map if packs(blocks) => packed_bytes(outputs, inputs),
            Usage::TableAndMap if packs(blocks) => stored + packed_bytes(outputs, inputs),
            Usage::Map | Usage::TableAndMap => stored + copy_bytes(blocks, outputs, inputs),
        }
    }

    fn float(&self, name: String, expected: &[usize], held: DType) -> Result<Tensor, ModelError> {
        let found = self.find(&name, expected)?;
        let count = expected.iter().product();
        let tensor = match self.with_values {
            true if self.draws_on_device() => drawn::tensor(expected, held, &self.device)?,
            true => rows::tensor(found, 0..count, expected, held, &self.device)?,
            false => zeros(expected, held)?,
        };
        self.keep(name, count, count * held.size_in_bytes(), (format!("{held:?}"), None));
        Ok(tensor)
    }

    /// Makes a matrix of parts that are all stored as `blocks`, as they are.
    fn kept_matrix(
        &self,
        name: String,
        (outputs, inputs): (usize, usize),
        (blocks, usage): (GgmlDType, Usage),
        parts: &[Found<'_>],
    ) -> Result<Matrix, ModelError> {
        let count = outputs * inputs;
        let bytes = self.block_bytes(blocks, (outputs, inputs), usage);
        self.keep(name, count, bytes, (format!("{blocks:?}"), None));
        Ok(match self.with_values {
            true => Matrix::Quantised(Arc::new(rows::kept(parts, (outputs, inputs), blocks, &self.device)?)),
            false => Matrix::Dense(zeros(&[outputs, inputs], DType::F32)?),
        })
    }

    /// Makes a matrix of rows that `rows` reads as f32; `stored` is what they are stored as.
    fn matrix(
        &self,
        name: String,
        (outputs, inputs): (usize, usize),
        stored: DType,
        rows: impl Fn(Range<usize>) -> Vec<f32>,
    ) -> Result<Matrix, ModelError> {
        let count = outputs * inputs;
        match self.precision.blocks(inputs) {
            Some(blocks) if !self.with_values => {
                let bytes = self.block_bytes(blocks, (outputs, inputs), Usage::Map);
                self.keep(name, count, bytes, self.formats(format!("{blocks:?}")));
                Ok(Matrix::Dense(zeros(&[outputs, inputs], DType::F32)?))
            }
            Some(blocks) => {
                let quantised = rows::quantised((outputs, inputs), blocks, &self.device, rows)?;
                let bytes = self.block_bytes(blocks, (outputs, inputs), Usage::Map);
                self.keep(name, count, bytes, self.formats(format!("{blocks:?}")));
                Ok(Matrix::Quantised(Arc::new(quantised)))
            }
            None => {
                let held = self.precision.table(stored);
                let tensor = match self.with_values {
                    true if self.draws_on_device() => drawn::tensor(&[outputs, inputs], held, &self.device)?,
                    true => rows::dense((outputs, inputs), held, &self.device, rows)?,
                    false => zeros(&[outputs, inputs], held)?,
                };
                self.keep(name, count, count * held.size_in_bytes(), self.formats(format!("{held:?}")));
                Ok(Matrix::Dense(tensor))
            }
        }
    }
}

/// One zero, seen everywhere.
fn zeros(shape: &[usize], dtype: DType) -> candle_core::Result<Tensor> {
    Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape)
}

/// A place in the tree of tensor names.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        &self.weights.device
    }

    /// The format of activations.
    pub fn activations(&self) -> DType {
        self.weights.precision.activations(self.weights.device.is_cpu())
    }

    /// The format of cached keys and values.
    pub fn cached(&self) -> DType {
        self.weights.precision.cached(self.weights.device.is_cpu())
    }

    /// Whether linear maps are held in blocks of integers, where these fit.
    pub fn quantises(&self) -> bool {
        self.weights.precision.quantises()
    }

    /// The names below `segment`.
    pub fn at(&self, segment: impl std::fmt::Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}{segment}.", self.prefix) }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Reads the tensor of that name, in the format of activations; its shape must be `expected`.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        self.weights.float(self.name(name), expected, self.activations())
    }

    /// Reads a tensor in f32, whatever activations are.
    pub fn exact(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        self.weights.float(self.name(name), expected, DType::F32)
    }

    /// Reads a table to look rows up in, which is never quantised.
    pub fn table(&self, name: &str, expected: &[usize]) -> Result<Tensor, ModelError> {
        let name = self.name(name);
        let (_, _, stored) = self.weights.find(&name, expected)?;
        self.weights.float(name, expected, self.weights.precision.table(stored.float()))
    }

    /// Reads a table to look rows up in, `[rows, width]`: blocks where it is stored so and blocks are wanted, else floats.
    /// Blocks may serve for products, too, as `usage` says.
    pub fn lookup(&self, name: &str, (rows, width): (usize, usize), usage: Usage) -> Result<Matrix, ModelError> {
        let found = self.weights.find(&self.name(name), &[rows, width])?;
        match self.weights.kept(found.2) {
            Some(blocks) => self.weights.kept_matrix(self.name(name), (rows, width), (blocks, usage), &[found]),
            None => Ok(Matrix::Dense(self.table(name, &[rows, width])?)),
        }
    }

    /// Whether that matrix is held as the blocks that it is stored as.
    pub fn keeps_blocks(&self, name: &str, outputs: usize, inputs: usize) -> Result<bool, ModelError> {
        let (_, _, layout) = self.weights.find(&self.name(name), &[outputs, inputs])?;
        Ok(self.weights.kept(layout).is_some())
    }

    /// Reads the weight of a linear map, `[outputs, inputs]`.
    pub fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, ModelError> {
        self.joined(&[(name, outputs)], inputs)
    }

    /// Reads weights of the same inputs as one matrix, one below the other.
    pub fn joined(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Matrix, ModelError> {
        let found: Vec<_> = parts
            .iter()
            .map(|(name, outputs)| Ok((self.weights.find(&self.name(name), &[*outputs, inputs])?, *outputs)))
            .collect::<Result<_, ModelError>>()?;
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        let name = parts.iter().map(|(name, _)| self.name(name)).collect::<Vec<_>>().join(" + ");
        let stored = found.first().map_or(DType::F32, |((_, _, layout), _)| layout.float());
        let mut kept = found.iter().map(|((_, _, layout), _)| self.weights.kept(*layout));
        let first = kept.next().flatten();
        if !kept.all(|blocks| blocks == first) {
            return Ok(Matrix::Stacked(
                parts.iter().map(|part| self.joined(&[*part], inputs)).collect::<Result<_, _>>()?,
            ));
        }
        if let Some(blocks) = first {
            let parts: Vec<Found<'_>> = found.iter().map(|(found, _)| *found).collect();
            return self.weights.kept_matrix(name, (outputs, inputs), (blocks, Usage::Map), &parts);
        }
        if found.len() == 1 && !self.quantises() {
            // No detour through f32 for what is held as a float.
            return Ok(Matrix::Dense(self.weights.float(
                name,
                &[outputs, inputs],
                self.weights.precision.table(stored),
            )?));
        }
        self.weights.matrix(name, (outputs, inputs), stored, |rows| {
            let mut values = Vec::with_capacity(rows.len() * inputs);
            let mut first = 0;
            for (found, count) in &found {
                let (from, to) = (rows.start.max(first), rows.end.min(first + count));
                if from < to {
                    let elements = (from - first) * inputs..(to - first) * inputs;
                    values.append(&mut rows::floats(*found, elements));
                }
                first += count;
            }
            values
        })
    }

    /// Reads one of a stack of weights that are stored turned, `[stack, inputs, outputs]`, as `[outputs, inputs]`.
    pub fn turned(
        &self,
        name: &str,
        (stack, index): (usize, usize),
        (inputs, outputs): (usize, usize),
    ) -> Result<Matrix, ModelError> {
        let name = self.name(name);
        let found = self.weights.find(&name, &[stack, inputs, outputs])?;
        let size = inputs * outputs;
        let range = if self.weights.with_values && !self.weights.draws_on_device() {
            index * size..(index + 1) * size
        } else {
            0..0
        };
        let values = rows::floats(found, range);
        self.weights.matrix(format!("{name}[{index}]"), (outputs, inputs), found.2.float(), |rows| {
            turned_rows(&values, rows, (inputs, outputs))
        })
    }
}

/// Rows `rows` of the transpose of `values`, `[inputs, outputs]`. Some rows at a time, because walking down a single
/// column of a large matrix misses the caches at every step.
fn turned_rows(values: &[f32], rows: Range<usize>, (inputs, outputs): (usize, usize)) -> Vec<f32> {
    const ABREAST: usize = 32;
    let mut turned = vec![0.0; rows.len() * inputs];
    turned.par_chunks_mut((ABREAST * inputs).max(1)).enumerate().for_each(|(tile, turned)| {
        let first = rows.start + tile * ABREAST;
        for input in 0..inputs {
            for (row, value) in turned.chunks_exact_mut(inputs).zip(&values[input * outputs + first..]) {
                row[input] = *value;
            }
        }
    });
    turned
}

#[cfg(test)]
mod tests {
    use super::super::directory::INDEX;
    use super::*;

    fn directory_with(tensors: &[(&str, Tensor)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let map: HashMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        candle_core::safetensors::save(&map, directory.path().join(SINGLE)).unwrap();
        directory
    }

    fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_of_a_turned_matrix_are_its_columns_whatever_their_number() {
        let (inputs, outputs) = (37, 75);
        let values: Vec<f32> = (0..inputs * outputs).map(|value| value as f32).collect();
        for rows in [0..75, 3..4, 30..71] {
            let expected: Vec<f32> = rows
                .clone()
                .flat_map(|output| values[output..].iter().step_by(outputs).copied().take(inputs))
                .collect();
            assert_eq!(turned_rows(&values, rows, (inputs, outputs)), expected);
        }
    }

    fn open(directory: &Path) -> Result<Weights, ModelError> {
        Weights::open(directory, Precision::F32, &Device::Cpu)
    }

    #[test]
    fn a_missing_or_misshapen_tensor_is_named_with_its_file_and_shapes() {
        let directory = directory_with(&[("a.weight", zeros(&[2, 3], DType::F16))]);
        let weights = open(directory.path()).unwrap();
        let scope = weights.root().at("a");
        let refusal = scope.tensor("weight", &[3, 2]).unwrap_err().to_string();
        for part in ["model.safetensors", "a.weight", "[2, 3]", "[3, 2]"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        let refusal = scope.tensor("bias", &[2]).unwrap_err().to_string();
        assert!(refusal.contains("a.bias is missing") && refusal.contains("[2]"), "{refusal}");
        assert_eq!(scope.tensor("weight", &[2, 3]).unwrap().dtype(), DType::F32);
    }

    #[test]
    fn integers_and_garbage_are_no_weights() {
        let directory = directory_with(&[("a", zeros(&[2], DType::U32))]);
        let refusal = open(directory.path()).unwrap().root().tensor("a", &[2]).unwrap_err().to_string();
        assert!(refusal.contains("U32"), "{refusal}");
        std::fs::write(directory.path().join(SINGLE), b"not a tensor file").unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Malformed { .. })));
        std::fs::remove_file(directory.path().join(SINGLE)).unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Read { .. })));
    }

    #[test]
    fn shards_are_found_through_the_index_and_never_outside_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        for (file, name) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
            let map = HashMap::from([(name.to_owned(), zeros(&[1], DType::BF16))]);
            candle_core::safetensors::save(&map, directory.path().join(file)).unwrap();
        }
        let index = directory.path().join(INDEX);
        std::fs::write(&index, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#).unwrap();
        let weights = open(directory.path()).unwrap();
        assert!(weights.root().tensor("a", &[1]).is_ok() && weights.root().tensor("b", &[1]).is_ok());
        std::fs::write(&index, r#"{"weight_map": {"a": "../one.safetensors"}}"#).unwrap();
        assert!(matches!(open(directory.path()), Err(ModelError::Malformed { .. })));
    }
}
