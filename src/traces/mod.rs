//! Traces: the way of an asset as OpenTelemetry spans, sent to a collector over OTLP/HTTP. Off unless an endpoint is set.
//!
//! Read `journey` (what is noted while an asset is on its way), then `context` (what a message header says), then `export`.

mod context;
mod export;
mod journey;
mod options;

pub use export::{Exporting, Tracer};
pub use journey::Journey;
pub use options::Options;
