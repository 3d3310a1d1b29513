//! Why a published model is not at hand. Every error names the repository, and the file where it is about one.

use std::path::PathBuf;

use super::address::{AddressError, HubAddress};

/// Why a model cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(
        "{address}: {what} is refused (HTTP {status}): it is private, gated or does not exist; a token in HF_TOKEN may \
         open it"
    )]
    Refused { address: Box<HubAddress>, what: String, status: u16 },
    #[error("{address}: {what} does not exist (HTTP {status})")]
    NotFound { address: Box<HubAddress>, what: String, status: u16 },
    #[error("{address}: {what} cannot be fetched: {detail}")]
    Fetch { address: Box<HubAddress>, what: String, detail: String },
    /// Neither the hub nor the cache has it.
    #[error("{address}: {reason}, and {} lacks {}", cache.display(), missing.join(", "))]
    Missing { address: Box<HubAddress>, reason: String, cache: PathBuf, missing: Vec<String> },
    #[error("{address}: {file} has {found} of {expected} bytes after {attempts} attempts")]
    Damaged { address: Box<HubAddress>, file: String, expected: u64, found: u64, attempts: usize },
    #[error("{address}: {file}: {detail}")]
    Malformed { address: Box<HubAddress>, file: String, detail: String },
    #[error(
        "{address} has no weights that can be read: neither model.safetensors, with or without an index, nor a .gguf"
    )]
    NoWeights { address: Box<HubAddress> },
    #[error("{address} has several GGUF files ({}); name one, as {address}/{}", files.join(", "), files[0])]
    ManyFiles { address: Box<HubAddress>, files: Vec<String> },
    #[error("{}: {source}", path.display())]
    Cache { path: PathBuf, source: std::io::Error },
}
