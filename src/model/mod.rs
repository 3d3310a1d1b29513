//! Models: weights, tokenizers and forward passes. This room knows tokens and pixels, not products.

mod alone;
mod api;
mod bert;
mod ceilings;
mod chat;
mod clip;
mod config;
mod decoder;
mod device;
mod drift;
mod embedding_input;
mod family;
mod fingerprint;
#[cfg(test)]
mod fixture;
mod gguf;
mod hub;
mod image;
mod image_processor;
#[cfg(test)]
mod kernel_tests;
mod kernels;
#[cfg(test)]
mod kit;
mod layers;
mod llama;
mod llama4;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod parity_encoders;
mod qwen25_vl;
mod qwen3_vl;
mod qwen_eyes;
mod registry;
mod resize;
mod resnet;
mod sentence;
mod siglip;
mod step_rows;
mod tokenizer;
mod trace;
mod weights;

pub use alone::{Ended, answer};
pub use api::{
    ChatProcessor, Encoder, Features, Generator, GeneratorShape, Message, ModelError, Part, Picture, Pixels, Processor,
    Prompt, PromptImage, Role, SequenceStep, Splice, Step, StepOutput, TokenIds, TokenSpelling, TokenTable,
    VisionInput,
};
pub use ceilings::Ceilings;
pub use chat::TextStream;
pub use device::{free_memory, open_device};
pub use drift::{Drift, Observed, observe};
pub use family::{EncoderParts, GeneratorParts};
pub use hub::{HubAddress, HubError, HubOptions, locate};
pub use registry::{Loaded, Outline, is_model, load, outline};
pub use step_rows::{Likeliest, StepRows, likeliest};
pub use trace::Trace;
pub use weights::{DRAWN_KEY, DRAWN_VALUE, Held, HeldTensor, Precision};
