//! The CPU side of a generation: from texts, pictures and a schema to a prompt and what may be answered.
//!
//! It runs on any thread and knows no device. Invariant: a generation that is prepared here fits the model's context, and
//! its schema can be closed within its tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::choice::Choice;
use super::writing::PreparedGeneration;
use crate::engine::api::{Generation, InferenceError, OutputSchema, Pooling};
use crate::engine::grammar::{AnswerMatcher, GrammarError, Grammars, with_choices};
use crate::engine::sampler::Sampler;
use crate::model::{ChatProcessor, Message, Part, Picture, Prompt, Role};

/// Instructions whose tokens are remembered.
const MOST_FRAMES: usize = 64;

/// What one model's generations need on the CPU.
pub struct GenerationPreparer {
    model: String,
    processor: Arc<dyn ChatProcessor>,
    grammars: Grammars,
    /// Largest number of positions.
    context: usize,
    /// Token ids of chats in which the user says nothing, by instruction.
    frames: Mutex<Frames>,
}

/// Token ids by instruction.
type Frames = HashMap<Option<Arc<str>>, Arc<[u32]>>;

impl GenerationPreparer {
    /// Fails when the tokenizer's tokens cannot be spelled, which grammars need.
    pub fn new(model: &str, processor: Arc<dyn ChatProcessor>, context: usize) -> Result<Self, GrammarError> {
        let grammars = Grammars::new(processor.clone())?;
        Ok(Self { model: model.to_owned(), processor, grammars, context, frames: Mutex::default() })
    }

    /// Blocking: renders, tokenises, prepares pictures, compiles the schema unless it is known.
    pub fn prepare(&self, generation: &Generation) -> Result<PreparedGeneration, InferenceError> {
        let pictures: Vec<Picture<'_>> = generation.images.iter().map(|image| image.picture()).collect();
        let instruction = generation.instruction.as_ref();
        let prompt = self.prompt(instruction, &pictures, &generation.prompt)?;
        let length = prompt.ids.len();
        if length >= self.context {
            let most = self.context.saturating_sub(1);
            return Err(self.bad_input(format!("its prompt is {length} tokens long; the model takes at most {most}")));
        }
        let max_tokens = generation.max_tokens.clamp(1, self.context - length);
        let answer = match &generation.output {
            Some(output) => Some(self.answer(output, max_tokens)?),
            None => None,
        };
        let pooled_from = match generation.pooling {
            None => None,
            Some(Pooling::Last) => Some(length - 1),
            Some(Pooling::Mean) => Some(self.own_tokens(instruction, &prompt)?),
        };
        let choice = Choice::new(answer, Sampler::new(generation.sampling.clone()));
        Ok(PreparedGeneration { prompt, choice, max_tokens, deadline: generation.deadline, pooled_from })
    }

    fn prompt(
        &self,
        instruction: Option<&Arc<str>>,
        pictures: &[Picture<'_>],
        text: &str,
    ) -> Result<Prompt, InferenceError> {
        let system = instruction.map(|text| Message { role: Role::System, parts: vec![Part::Text(text)] });
        let parts = pictures.iter().copied().map(Part::Image).chain([Part::Text(text)]).collect();
        let messages: Vec<Message<'_>> = system.into_iter().chain([Message { role: Role::User, parts }]).collect();
        self.processor.prompt(&messages).map_err(|error| self.bad_input(error.to_string()))
    }

    fn answer(&self, output: &OutputSchema, max_tokens: usize) -> Result<AnswerMatcher, InferenceError> {
        let choices = |wanted: &str| {
            let found = output.choices.iter().find(|(name, _)| name == wanted);
            found.map_or(&[][..], |(_, values)| values.as_slice())
        };
        let started = with_choices(&output.schema, &choices)
            .and_then(|schema| self.grammars.grammar(&schema))
            .and_then(|grammar| grammar.start(max_tokens));
        started.map_err(|error| {
            let (model, detail) = (self.model.clone(), error.to_string());
            match error {
                GrammarError::NoChoices { .. } => InferenceError::NoChoices { model, detail },
                GrammarError::BudgetTooSmall { .. } => InferenceError::BadInput { model, detail },
                _ => InferenceError::Unsupported { model, detail },
            }
        })
    }

    /// The first token of a prompt that is not the same for every asset of its job; at most the last one.
    fn own_tokens(&self, instruction: Option<&Arc<str>>, prompt: &Prompt) -> Result<usize, InferenceError> {
        let key = instruction.cloned();
        let known = self.frames.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let frame = match known {
            Some(frame) => frame,
            None => {
                let frame: Arc<[u32]> = self.prompt(instruction, &[], "")?.ids.into();
                let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
                if frames.len() >= MOST_FRAMES {
                    frames.clear();
                }
                frames.insert(key, frame.clone());
                frame
            }
        };
        let common = frame.iter().zip(&prompt.ids).take_while(|(one, other)| one == other).count();
        Ok(common.min(prompt.ids.len() - 1))
    }

    fn bad_input(&self, detail: String) -> InferenceError {
        InferenceError::BadInput { model: self.model.clone(), detail }
    }
}
