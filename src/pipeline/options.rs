//! How much the pipeline may hold at once.
//!
//! Memory is bounded by these numbers alone: no stage has a queue that can grow beyond the permits given out.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// `[pipeline]` of the configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Assets between source and commit.
    pub assets: usize,
    /// Bytes of messages and media in memory.
    pub bytes: ByteSize,
    /// What one medium counts against `bytes` until model inputs are made of it, whatever its size.
    pub media_reserve: ByteSize,
    /// Threads that decode pictures and prepare model inputs; 0 means one per core.
    pub cpu_threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { assets: 4096, bytes: ByteSize::mib(512), media_reserve: ByteSize::mib(1), cpu_threads: 0 }
    }
}

impl Options {
    /// `cpu_threads`, with 0 resolved to the number of cores.
    pub fn cpu_threads(&self) -> usize {
        match self.cpu_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}
