//! Measuring in processes of their own: a folder for the time being, what such a process says, and the median of rounds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::model::Precision;

/// A folder that is gone when the measurement is over.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("assay-bench-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in the temporary folder does no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the same work in Python computes in: on a GPU the format that comes first, on the CPU, where the engine's own
/// activations are f32 too, always f32.
pub fn torch_dtype(first: Precision, device: &str) -> &'static str {
    match first {
        Precision::F16 if device != "cpu" => "float16",
        Precision::Bf16 if device != "cpu" => "bfloat16",
        _ => "float32",
    }
}

/// The last line that a case's process prints, as JSON.
pub fn said<T: DeserializeOwned>(mut command: Command, name: &str) -> Result<T> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{name} cannot be started"))?;
    if !output.status.success() {
        bail!("measuring {name} ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("{name} printed no figures"))?;
    serde_json::from_str(line).with_context(|| format!("{name} printed {line:?}"))
}

/// The middle one of some values; the upper one of two.
pub fn median_by(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
