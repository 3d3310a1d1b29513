//! Jobs: what is to be done with the assets of which topics, as job files and message schemas say it.
//!
//! This room reads files and bytes and answers with plain data of the domain or with complaints that name the place.
//! It knows no Kafka, no store and no model: topics and models are names here.

mod annotate;
mod annotation;
mod answer;
mod catalog;
mod choices;
mod columns;
mod event_time;
mod json;
mod key_lines;
mod message;
mod problem;
mod prompt;
mod reader;
mod schema;
mod spec;
mod suggestion;
mod violation;

pub use annotate::{Annotate, AnswerSampling};
pub use annotation::annotation_columns;
pub use answer::AnswerError;
pub use catalog::{JobCatalog, UnknownJob};
pub use choices::choices;
pub use event_time::parse_event_time;
pub use key_lines::{KeyLines, join_key};
pub use message::{MessageDecoder, MessageError, check_key};
pub use problem::Problem;
pub use prompt::{Template, TemplateError};
pub use schema::{UnknownModel, rejections_schema, results_schema};
pub use spec::{Embedding, EmbeddingInput, JobSpec, Limits, Pooling};
pub use suggestion::did_you_mean;
pub use violation::Violation;
