//! One record of a topic, and its message.
//!
//! Messages hold no field that the schemas do not know. This file writes nothing.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::domain::{AssetKind, Content};

/// One record of a topic.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub kind: AssetKind,
    pub key: String,
    /// Null for a tombstone.
    pub value: Value,
    /// Milliseconds since the Unix epoch (UTC).
    pub timestamp: i64,
}

/// A message, with no field that the schemas do not know. `event_time` counts seconds since the Unix epoch (UTC).
pub(super) fn message_of(content: &Content, id: &str, media: Vec<Value>, event_time: i64) -> Value {
    let mut message = match content {
        Content::Product(product) => json!(product),
        Content::Ad(ad) => json!(ad),
    };
    message["id"] = json!(id);
    message["media"] = Value::Array(media);
    message["event_time"] = json!(rfc3339(event_time));
    message
}

/// Seconds since the Unix epoch as `2026-03-01T08:00:00Z`.
pub(super) fn rfc3339(seconds: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_772_352_000), "2026-03-01T08:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
    }
}
