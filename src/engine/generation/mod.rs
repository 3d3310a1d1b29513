//! The generators' half of the device thread: answers written side by side, token by token.

mod choice;
mod features;
mod opinions;
mod packed;
mod preparer;
#[cfg(test)]
mod tests;
mod writer;
mod writing;

pub use preparer::GenerationPreparer;
pub use writer::{Writer, WriterParts};
pub use writing::PreparedGeneration;
