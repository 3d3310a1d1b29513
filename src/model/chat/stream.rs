//! Text while it is written: whole characters only.

use crate::model::api::{ChatProcessor, ModelError};

/// What an incomplete character decodes to.
const INCOMPLETE: char = '\u{fffd}';

/// Ids that may stay undecided; a character has at most four bytes, so what is longer is no character at all.
const MOST_UNDECIDED: usize = 8;

/// Turns ids into text as they come. Costs the same for each id, however long the text.
#[derive(Debug, Default)]
pub struct TextStream {
    /// Some ids before the undecided ones, because a token may decode otherwise at the start of a text.
    ids: Vec<u32>,
    decided: usize,
}

impl TextStream {
    /// The text that `id` completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32, processor: &dyn ChatProcessor) -> Result<String, ModelError> {
        self.ids.push(id);
        let before = processor.decode(&self.ids[..self.decided])?;
        let text = processor.decode(&self.ids)?;
        let undecided = self.ids.len() - self.decided;
        if text.ends_with(INCOMPLETE) && undecided < MOST_UNDECIDED {
            return Ok(String::new());
        }
        let new = text.get(before.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.decided);
        self.decided = self.ids.len();
        Ok(new)
    }

    /// What is left when no more ids come.
    pub fn finish(self, processor: &dyn ChatProcessor) -> Result<String, ModelError> {
        let before = processor.decode(&self.ids[..self.decided])?;
        Ok(processor.decode(&self.ids)?.get(before.len()..).unwrap_or_default().to_owned())
    }
}
