//! Structured answers: which tokens may come next, so that an answer fits its JSON Schema and its token budget.

mod bound;
mod choices;
mod closing;
mod error;
mod grammars;
mod guarded;
mod keywords;
mod mask;
mod matcher;
mod numbers;
mod pointer;
mod position;
mod reading;
mod spelled;
#[cfg(test)]
mod tests;

pub use choices::with_choices;
pub use error::GrammarError;
pub use grammars::{Grammars, check_schema};
pub use mask::TokenMask;
pub use matcher::{AnswerMatcher, FinishReason};
