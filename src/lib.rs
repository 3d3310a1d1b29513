//! Assay: a streaming batch pipeline from Kafka topics of product and ad assets to Delta tables of annotations and
//! embeddings, exactly once.
//!
//! Start reading at `pipeline::wiring`, then the four `api.rs`: source, media, engine and sink.

pub mod app;
pub mod ask;
pub mod bench;
pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod dlq;
pub mod domain;
pub mod engine;
pub mod eval;
pub mod heap;
pub mod inspect;
pub mod job;
pub mod kv;
pub mod ledger;
pub mod media;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod progress_line;
pub mod query;
pub mod retry;
pub mod server;
pub mod sink;
pub mod source;
pub mod status;
pub mod submit;
pub mod telemetry;
pub mod traces;
pub mod tryout;
pub mod upkeep;
