//! One record to be enqueued, and where it was found.

use std::time::SystemTime;

use serde_json::{Map, Value};

/// A record as a file described it; not yet checked against its schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// File and line, for messages.
    pub place: String,
    pub key: Option<String>,
    /// None for a tombstone.
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl Draft {
    /// A draft of a message whose key is its id.
    pub(super) fn of_message(place: String, message: Map<String, Value>) -> Self {
        let key = message.get("id").and_then(Value::as_str).map(str::to_owned);
        Self { place, key, payload: Some(Value::Object(message).to_string().into_bytes()), headers: Vec::new() }
    }
}

/// A draft, or what is wrong at which place.
pub type Found = Result<Draft, Problem>;

/// Something that could not be read as an asset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Problem {
    pub place: String,
    pub message: String,
}

/// RFC 3339 in UTC, as `event_time` wants it.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
