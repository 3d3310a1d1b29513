//! Models in one GGUF file: settings, tokenizer and template from its metadata, tensors by the names of llama.cpp.

mod header;
mod llama;
mod names;
mod place;
mod tokenizer;
#[cfg(test)]
mod writer;

pub use llama::load;
pub use names::stored_name;
pub use place::gguf_file;
