//! Chats to prompts, for every family: rendered, tokenised, pictures put in their places.
//!
//! Knows no family; what a picture becomes is for its [`Eyes`]. Invariants: a prompt has as many pictures as its messages;
//! a text that spells a special token stays a text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::context;
use minijinja::value::Value;

use super::eyes::{Expansion, Eyes, picture_hash};
use super::template::{ChatTemplate, TemplateMessage};
use super::vocabulary::Vocabulary;
use crate::model::api::{
    ChatProcessor, Message, ModelError, Part, Picture, Prompt, PromptImage, Role, TokenTable, VisionInput,
};

/// Template, vocabulary and eyes of one model.
pub struct ChatTokenizer {
    directory: PathBuf,
    template: Option<ChatTemplate>,
    vocabulary: Vocabulary,
    /// Ids that end an answer.
    end_tokens: Vec<u32>,
    eyes: Option<Box<dyn Eyes>>,
}

impl ChatTokenizer {
    /// Reads the template of `directory`. `end_tokens` are the ids that end an answer.
    pub fn new(
        directory: &Path,
        vocabulary: Vocabulary,
        end_tokens: &[u32],
        eyes: Option<Box<dyn Eyes>>,
    ) -> Result<Self, ModelError> {
        let (template, end_tokens) = (ChatTemplate::load(directory)?, end_tokens.to_vec());
        Ok(Self { directory: directory.to_owned(), template, vocabulary, end_tokens, eyes })
    }

    /// With a template that is no file of its own; without pictures.
    pub fn with_template(
        directory: &Path,
        template: Option<ChatTemplate>,
        vocabulary: Vocabulary,
        end_tokens: &[u32],
    ) -> Self {
        let (directory, end_tokens) = (directory.to_owned(), end_tokens.to_vec());
        Self { directory, template, vocabulary, end_tokens, eyes: None }
    }

    /// The chat as the template renders it, and what its marks stand for.
    pub fn rendered(&self, messages: &[Message<'_>]) -> Result<(String, HashMap<char, String>), ModelError> {
        let template = self.template.as_ref().ok_or_else(|| {
            ModelError::malformed(&self.directory.join("chat_template.jinja"), "the model has no chat template")
        })?;
        let mut marks = HashMap::new();
        let messages: Vec<TemplateMessage> =
            messages.iter().map(|message| self.template_message(message, &mut marks)).collect();
        Ok((template.render(&messages)?, marks))
    }

    /// A message without pictures has its text as content, because templates of models without eyes know nothing else.
    fn template_message(&self, message: &Message<'_>, marks: &mut HashMap<char, String>) -> TemplateMessage {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let with_pictures = message.parts.iter().any(|part| matches!(part, Part::Image(_)));
        let texts = message.parts.iter().map(|part| match part {
            Part::Text(text) => Some(self.vocabulary.mark(text, marks)),
            Part::Image(_) => None,
        });
        let content = if with_pictures {
            let part = |text: Option<String>| match text {
                Some(text) => context! { type => "text", text => text },
                None => context! { type => "image" },
            };
            Value::from(texts.map(part).collect::<Vec<_>>())
        } else {
            Value::from(texts.flatten().collect::<String>())
        };
        TemplateMessage { role, content }
    }

    fn look(&self, picture: Picture<'_>) -> Result<VisionInput, ModelError> {
        match &self.eyes {
            Some(eyes) => eyes.look(picture),
            None => Err(ModelError::Input { detail: "this model takes no pictures".to_owned() }),
        }
    }

    /// Puts pictures where their placeholders stand.
    fn assemble(&self, ids: Vec<u32>, inputs: Vec<Arc<VisionInput>>) -> Result<Prompt, ModelError> {
        let placeholder = self.eyes.as_ref().map(|eyes| eyes.placeholder());
        let slots = ids.iter().filter(|id| Some(**id) == placeholder).count();
        if slots != inputs.len() {
            let detail = format!("the chat template made {slots} places for {} pictures", inputs.len());
            return Err(ModelError::Input { detail });
        }
        let mut prompt = Prompt {
            ids: Vec::with_capacity(ids.len()),
            positions: Vec::new(),
            position_offset: 0,
            images: Vec::new(),
        };
        let mut inputs = inputs.into_iter();
        let mut position = 0_u32;
        for id in ids {
            let picture = if Some(id) == placeholder { inputs.next() } else { None };
            let (Some(input), Some(eyes)) = (picture, &self.eyes) else {
                prompt.ids.push(id);
                prompt.positions.push([position; 3]);
                position += 1;
                continue;
            };
            let Expansion { ids, places, positions, advance } = eyes.expand(&input);
            let first = prompt.ids.len();
            prompt.ids.extend(ids);
            prompt.positions.extend(positions.into_iter().map(|axes| axes.map(|axis| axis + position)));
            let places = places.into_iter().map(|place| place.start + first..place.end + first).collect();
            prompt.images.push(PromptImage { input, places });
            position += advance;
        }
        prompt.position_offset = i64::from(position) - prompt.ids.len() as i64;
        Ok(prompt)
    }
}

impl ChatProcessor for ChatTokenizer {
    fn prompt(&self, messages: &[Message<'_>]) -> Result<Prompt, ModelError> {
        let (rendered, marks) = self.rendered(messages)?;
        let mut ids = self.vocabulary.encode_marked(&rendered, &marks)?;
        // The reference's processors of models with eyes add the start token where the template writes none; its
        // tokenizers of models without never do.
        if self.eyes.is_some()
            && let Some(start) = self.template.as_ref().and_then(ChatTemplate::start_token)
            && !rendered.starts_with(start)
            && let Ok(with_frame) = self.vocabulary.encode("", true)
            && let [only] = with_frame[..]
            && self.vocabulary.id(start)? == only
        {
            ids.insert(0, only);
        }
        let mut seen: HashMap<[u8; 32], Arc<VisionInput>> = HashMap::new();
        let pictures = messages.iter().flat_map(|message| &message.parts).filter_map(|part| match part {
            Part::Image(picture) => Some(*picture),
            Part::Text(_) => None,
        });
        let inputs: Vec<Arc<VisionInput>> = pictures
            .map(|picture| match seen.entry(picture_hash(picture)) {
                std::collections::hash_map::Entry::Occupied(known) => Ok(known.get().clone()),
                std::collections::hash_map::Entry::Vacant(new) => Ok(new.insert(Arc::new(self.look(picture)?)).clone()),
            })
            .collect::<Result<_, ModelError>>()?;
        self.assemble(ids, inputs)
    }

    fn text(&self, text: &str) -> Result<Prompt, ModelError> {
        let mut marks = HashMap::new();
        let marked = self.vocabulary.mark(text, &mut marks);
        let ids = match marks.is_empty() {
            true => self.vocabulary.encode(text, true)?,
            false => {
                // The frame of an empty text, with the text in it.
                let frame = self.vocabulary.encode("", true)?;
                let plain = self.vocabulary.encode_marked(&marked, &marks)?;
                frame
                    .first()
                    .copied()
                    .into_iter()
                    .chain(plain)
                    .chain(frame.get(1..).unwrap_or_default().to_vec())
                    .collect()
            }
        };
        let positions = (0..ids.len() as u32).map(|position| [position; 3]).collect();
        Ok(Prompt { ids, positions, position_offset: 0, images: Vec::new() })
    }

    fn picture_unit(&self) -> Option<(String, usize)> {
        self.eyes.as_ref().map(|eyes| eyes.unit())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.vocabulary.decode(ids)
    }

    fn vocabulary(&self) -> Result<TokenTable, ModelError> {
        Ok(TokenTable { tokens: self.vocabulary.spellings()?, end_tokens: self.end_tokens.clone() })
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.vocabulary.plain(text)
    }
}
