//! Chats to token ids: templates, tokenizers, and what stands for a picture in a prompt.

mod eyes;
mod processor;
mod spelling;
mod stream;
mod template;
mod vocabulary;

pub use eyes::{Expansion, Eyes, picture_hash};
pub use processor::ChatTokenizer;
pub use stream::TextStream;
pub use template::ChatTemplate;
pub use vocabulary::Vocabulary;
