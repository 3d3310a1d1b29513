//! The boundary of the media room: from a reference to bytes, and from bytes to pixels.
//!
//! It knows no asset, no Kafka and no model. Nothing is read that the allow-list does not name.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::Blame;

/// The bytes of one medium and their content hash.
#[derive(Debug, Clone)]
pub struct Media {
    pub bytes: Bytes,
    /// Lower-case hexadecimal SHA-256 of `bytes`.
    pub sha256: String,
}

/// Reads media. One attempt per call: who calls decides about retries by [`MediaError::blame`].
#[async_trait]
pub trait MediaStore: Send + Sync {
    /// Reads the whole object, at most `limit` bytes; the limit is enforced while streaming.
    async fn fetch(&self, url: &str, limit: u64) -> Result<Media, MediaError>;

    /// Whether the reference names a file of this machine.
    fn is_local(&self, _url: &str) -> bool {
        false
    }

    /// [`fetch`](Self::fetch) for a file of this machine. Blocking: many small files are read by one thread, without a
    /// hand-over for each.
    fn read_local(&self, url: &str, _limit: u64) -> Result<Media, MediaError> {
        Err(MediaError::Malformed { url: url.to_owned(), detail: "it is no file of this machine".to_owned() })
    }
}

/// A decoded picture: 8-bit RGB, rows from the top, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

/// What decoding may cost. Checked from the header, before pixels are allocated.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// Most pixels (width x height).
    pub pixels: u64,
    /// Longest side in pixels.
    pub side: u32,
    /// Most bytes that the decoder may allocate.
    pub allocation: u64,
}

/// Why a medium could not be had or used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MediaError {
    #[error("{url:?} is not a media reference: {detail}; use s3://, gs://, az://, https:// or file://")]
    Malformed { url: String, detail: String },
    #[error("{url:?} may not be read: {detail}; list its bucket, host or folder under media.allow")]
    Forbidden { url: String, detail: String },
    #[error("{url:?} does not exist")]
    NotFound { url: String },
    #[error("{url:?} has more than {limit} bytes; raise limits.media_bytes of the job or shrink the file")]
    TooLarge { url: String, limit: u64 },
    /// There is something, but it will not be handed out: an expired signature, an archived object, a folder.
    #[error("{url:?} is refused: {detail}")]
    Refused { url: String, detail: String },
    #[error("not a picture that can be decoded: {detail}")]
    Undecodable { detail: String },
    #[error("picture is too big: {detail}")]
    OverLimits { detail: String },
    /// The body stopped coming; the next attempt may go better, but the asset's deadline keeps running.
    #[error("{url:?} stalled: no byte for {waited:?}")]
    Stalled { url: String, waited: Duration },
    /// The store is unreachable, overloaded or refuses our credentials. `retry_after` is the store's own wish.
    #[error("{url:?} cannot be read for now: {detail}")]
    Unavailable { url: String, detail: String, retry_after: Option<Duration> },
}

impl MediaError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Unavailable { .. } | Self::Stalled { .. } => Blame::World,
            _ => Blame::Asset,
        }
    }

    /// The stable word for the rejections table.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "media_reference_malformed",
            Self::Forbidden { .. } => "media_forbidden",
            Self::NotFound { .. } => "media_not_found",
            Self::TooLarge { .. } => "media_too_large",
            Self::Refused { .. } => "media_refused",
            Self::Undecodable { .. } => "picture_undecodable",
            Self::OverLimits { .. } => "picture_over_limits",
            Self::Stalled { .. } => "media_stalled",
            Self::Unavailable { .. } => "media_unavailable",
        }
    }
}
