//! Calls into the grammar engine, which panics where it finds itself inconsistent.
//!
//! Knows no grammar. Invariant: what goes wrong inside ends one answer, not the thread that runs all of them.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::GrammarError;

/// The call's value; its error and its panic become [`GrammarError::Broken`].
pub fn guarded<T, E: Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, GrammarError> {
    let detail = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("internal error: {}", text.unwrap_or("no message"))
        }
    };
    Err(GrammarError::Broken { detail })
}
