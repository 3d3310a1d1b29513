//! A folder that is gone when a measurement is over.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Such a folder.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one for the command of that name.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("assay-{name}-{}", std::process::id()));
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
