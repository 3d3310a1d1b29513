//! Why a grammar cannot be made or followed.
//!
//! Knows no model. Invariant: a message says what to do, or which tokens were involved.

/// What goes wrong between a schema and an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The schema asks for what no grammar can keep; one line for each place.
    #[error("{detail}")]
    Schema { detail: String },
    /// A place of the schema takes its choices from the asset, and the asset has none.
    #[error(
        "{pointer}: the asset has no {choices}, and null is not allowed; allow null, or reject such assets earlier"
    )]
    NoChoices { pointer: String, choices: String },
    #[error("the tokens of the model cannot be used: {detail}")]
    Vocabulary { detail: String },
    /// Even the shortest answer that is known takes more tokens.
    #[error("an answer needs at least {needed} tokens, {given} are allowed; allow more, or ask for less in the schema")]
    BudgetTooSmall { needed: usize, given: usize },
    #[error("token {token} is not allowed here")]
    NotAllowed { token: u32 },
    /// The grammar engine gave up; the answer cannot go on.
    #[error("the grammar cannot be followed any further: {detail}")]
    Broken { detail: String },
}
