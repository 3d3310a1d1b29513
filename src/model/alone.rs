//! One prompt answered by itself: for trying a model out.
//!
//! Greedy, one sequence, a cache of its own. A worker packs many sequences into each step instead; the answer is the same.

use crate::kv::{BLOCK, BlockId};
use crate::model::api::{Features, Generator, ModelError, Prompt, SequenceStep, Step};
use crate::model::trace::Trace;

/// Tokens of the prompt in one step.
const CHUNK: usize = 512;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The model wrote one of its end tokens.
    Stop,
    /// Who asked has had enough.
    Enough,
    /// It has as many tokens as allowed, or the context is full.
    Length,
}

/// Writes at most `most` tokens after `prompt` and hands each to `token`, end tokens excepted, until that says false.
/// Fails with [`ModelError::Input`] when the prompt leaves no room for a token, and with what `token` fails with.
pub fn answer(
    generator: &mut dyn Generator,
    prompt: &Prompt,
    most: usize,
    mut token: impl FnMut(u32) -> Result<bool, ModelError>,
) -> Result<Ended, ModelError> {
    let shape = generator.shape().clone();
    let length = prompt.ids.len();
    if length == 0 || length >= shape.context {
        let detail = format!("a prompt of {length} tokens; the model takes 1 to {}", shape.context - 1);
        return Err(ModelError::Input { detail });
    }
    let most = most.min(shape.context - length);
    let blocks: Vec<BlockId> = (0..(length + most).div_ceil(BLOCK) as u32).map(BlockId).collect();
    let mut cache = generator.cache(blocks.len())?;
    let see = |image: &crate::model::api::PromptImage| generator.see(&image.input, &mut Trace::off());
    let features: Vec<Features> = prompt.images.iter().map(see).collect::<Result<_, _>>()?;
    let mut ids = prompt.ids.clone();
    let mut past = 0;
    while ids.len() < length + most {
        let new = CHUNK.min(ids.len() - past);
        let positions: Vec<[u32; 3]> = (past..past + new).map(|index| prompt.position(index)).collect();
        let is_last = past + new == ids.len();
        let step = Step {
            tokens: &ids[past..past + new],
            positions: &positions,
            sequences: &[SequenceStep { new, past, blocks: &blocks }],
            splices: &prompt.splices(past..past + new, 0, &features),
            logits: if is_last { &[new - 1] } else { &[] },
            hidden: &[],
        };
        let output = generator.step(&step, &mut cache, &mut Trace::off())?;
        past += new;
        if is_last {
            let best = output.logits.likeliest(&[None], shape.vocabulary)?.remove(0);
            let next = best.checked().map_err(|detail| ModelError::Input { detail })?.token;
            if shape.end_tokens.contains(&next) {
                return Ok(Ended::Stop);
            }
            if !token(next)? {
                return Ok(Ended::Enough);
            }
            ids.push(next);
        }
    }
    Ok(Ended::Length)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::fixture;
    use crate::model::registry::load;
    use crate::model::weights::Precision;

    #[test]
    fn an_answer_ends_at_its_length_and_a_prompt_without_room_is_refused() {
        let parts = load(&fixture::model("llama3-tied"), Precision::F32, &Device::Cpu).unwrap().generator.unwrap();
        let mut generator = parts.generator;
        let mut prompt = parts.processor.text("a blue mug").unwrap();
        let mut ids = Vec::new();
        let mut keep = |id| {
            ids.push(id);
            Ok(true)
        };
        let ended = answer(generator.as_mut(), &prompt, 3, &mut keep).unwrap();
        assert!(ids.len() == 3 && ended == Ended::Length || ended == Ended::Stop);
        prompt.ids = vec![1; generator.shape().context];
        let refusal = answer(generator.as_mut(), &prompt, 3, |_| Ok(true)).unwrap_err().to_string();
        assert!(refusal.contains(&generator.shape().context.to_string()), "{refusal}");
    }
}
