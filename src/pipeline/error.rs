//! Why a pipeline ends other than by being asked to. Bad assets and down dependencies are not among the reasons.

use crate::engine::InferenceError;
use crate::ledger::Ticket;
use crate::sink::SinkError;
use crate::source::SourceError;

/// The process must end; the offsets in the tables make that safe.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error("the source ended: {0}")]
    Source(#[from] SourceError),
    #[error("the tables cannot be written: {0}")]
    Sink(#[from] SinkError),
    #[error("inference ended: {0}")]
    Inference(#[from] InferenceError),
    /// A stage dropped an asset without an outcome.
    #[error("asset {ticket} was lost in the {stage} stage; this is a defect, please report it")]
    Abandoned { ticket: Ticket, stage: &'static str },
    /// The grace was over before the last rows were written. They will be done again.
    #[error("the grace ended with {open} assets unfinished; they will be done again by the next worker")]
    DrainIncomplete { open: usize },
    /// A run that was to end by itself was asked to stop before.
    #[error("stopped before everything that was there at the start was committed; the next run goes on from here")]
    StoppedEarly,
    #[error("a pipeline task panicked: {detail}")]
    Panicked { detail: String },
}
