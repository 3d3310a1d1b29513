//! What became of an asset: exactly one [`Outcome`] per record, either a row of results or a rejection.

use std::fmt;

use super::asset::AssetKind;
use super::table::Value;

/// The end of one record's way through the pipeline.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Annotated(Annotation),
    /// A record with a null value: the asset with this id is to leave the `latest` view.
    Removed {
        asset_id: String,
    },
    Rejected(Rejection),
}

/// What inference said of one asset.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    pub asset_id: String,
    pub kind: AssetKind,
    /// Microseconds since the Unix epoch (UTC).
    pub event_time: i64,
    /// Lower-case hexadecimal SHA-256 of each medium's bytes, in message order.
    pub media_hashes: Vec<String>,
    /// One value for each annotation column of the job, then one for each embedding column, in the job's order.
    pub values: Vec<Value>,
    /// Tokens read: text tokens plus image patches.
    pub prompt_tokens: u32,
    /// Tokens generated; 0 for an encoder.
    pub completion_tokens: u32,
    /// Seconds of device time that this asset's share of its batches took.
    pub device_seconds: f64,
    /// Why inference ended, for example `embedded` or `stop`.
    pub finish_reason: &'static str,
}

/// Why an asset has no row of results.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// Known once the message could be read that far.
    pub asset_id: Option<String>,
    pub stage: Stage,
    /// A stable snake_case word for grouping, for example `schema_violation` or `media_not_found`.
    pub reason: &'static str,
    /// A sentence for a person: names the field or the medium and says what to do.
    pub detail: String,
    pub blame: Blame,
    /// How often the failing step was tried.
    pub attempts: u32,
}

/// The station of the pipeline at which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    Decode,
    Fetch,
    Prepare,
    Infer,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Decode, Self::Fetch, Self::Prepare, Self::Infer];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Fetch => "fetch",
            Self::Prepare => "prepare",
            Self::Infer => "infer",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who has to act when something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// This message is bad: it becomes a rejection and its offset passes.
    Asset,
    /// A dependency is down: back off and try again, reject nothing.
    World,
    /// An invariant is broken: end the process; the offsets make that safe.
    Us,
}

impl Blame {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asset => "asset",
            Self::World => "world",
            Self::Us => "us",
        }
    }
}
