//! What becomes of one part of a request on the device, and the request that it belongs to.
//!
//! Plain data between the two halves of the device thread (encoders and generators) and the loop that answers.

use super::api::InferenceError;

/// Where a result belongs: a request, and a task in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Counted from the start of the engine.
    pub request: u64,
    /// Index of the task.
    pub task: usize,
}

/// A task that is over.
#[derive(Debug)]
pub struct Settled {
    pub place: Place,
    pub result: Result<Done, InferenceError>,
    /// Its share of device time.
    pub device_seconds: f64,
}

/// What a task came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    Vector(Vec<f32>),
    Text(Written),
}

/// A generation that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub text: String,
    /// Of the prompt, where it was asked for.
    pub vector: Option<Vec<f32>>,
    pub tokens: usize,
    pub finish: Finish,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It was closed, or cut where it has no schema, because its tokens ran out.
    Length,
    /// The same because its time ran out.
    Deadline,
}

impl Finish {
    /// The word in the results table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Deadline => "deadline",
        }
    }
}
