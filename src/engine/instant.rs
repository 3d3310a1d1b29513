//! A stand-in for the engine that answers at once: it measures and tests everything around a model, without one.
//!
//! Its vectors are made from a hash of the input, so equal inputs give equal vectors and nothing else is true of them.
//! It knows no model files and no device. Invariant: it never waits and never dies.

use std::hash::{DefaultHasher, Hash, Hasher};

use async_trait::async_trait;

use super::api::{Answer, Image, Inference, InferenceError, ModelDescription, Prepared, Request, Task};

/// Bytes of a picture that are hashed; more would be measured instead of the pipeline.
const HASHED_BYTES: usize = 256;

/// Characters that count as one token, and the side of a square of pixels that does.
const TOKEN_CHARACTERS: usize = 4;
const PATCH_SIDE: u32 = 16;

/// Models that exist by name only.
pub struct InstantInference {
    models: Vec<ModelDescription>,
}

/// The seed and the length of each vector.
struct Seeds(Vec<(u64, usize)>);

impl InstantInference {
    /// One stand-in for each name, with that many dimensions (at least 1).
    pub fn new<'a>(models: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let describe = |(name, dimensions): (&str, usize)| ModelDescription {
            name: name.to_owned(),
            architecture: "Instant".to_owned(),
            fingerprint: format!("{:016x}", seed(|hasher| (name, dimensions).hash(hasher))),
            dimensions: dimensions.max(1),
            embeds: true,
            generates: false,
        };
        Self { models: models.into_iter().map(describe).collect() }
    }
}

#[async_trait]
impl Inference for InstantInference {
    fn models(&self) -> &[ModelDescription] {
        &self.models
    }

    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError> {
        let mut tokens = 0_u32;
        let mut seeds = Vec::with_capacity(request.tasks.len());
        for task in &request.tasks {
            let model = task.model();
            let Some(known) = self.models.iter().find(|known| known.name == **model) else {
                return Err(InferenceError::UnknownModel { model: model.to_string() });
            };
            let (cost, seed) = match task {
                Task::EmbedText { text, .. } => {
                    let cost = text.len() / TOKEN_CHARACTERS + 1;
                    (u32::try_from(cost).unwrap_or(u32::MAX), seed(|hasher| text.hash(hasher)))
                }
                Task::EmbedImage { image, .. } => (patches(image), seed(|hasher| hash_image(image, hasher))),
                Task::Generate(_) => {
                    let detail = "the stand-in writes no texts".to_owned();
                    return Err(InferenceError::Unsupported { model: model.to_string(), detail });
                }
            };
            tokens = tokens.saturating_add(cost);
            seeds.push((seed, known.dimensions));
        }
        Ok(Prepared::new(tokens, Box::new(Seeds(seeds))))
    }

    async fn infer(&self, prepared: Prepared) -> Result<Answer, InferenceError> {
        let prompt_tokens = prepared.tokens;
        let Ok(seeds) = prepared.into_inner().downcast::<Seeds>() else {
            let detail = "the request was prepared by another engine".to_owned();
            return Err(InferenceError::Unsupported { model: String::new(), detail });
        };
        Ok(Answer {
            embeddings: seeds.0.iter().map(|(seed, dimensions)| unit_vector(*seed, *dimensions)).collect(),
            texts: Vec::new(),
            prompt_tokens,
            completion_tokens: 0,
            device_seconds: 0.0,
            finish_reason: "embedded",
        })
    }

    fn is_alive(&self) -> bool {
        true
    }
}

fn seed(feed: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(&mut hasher);
    hasher.finish()
}

fn patches(image: &Image) -> u32 {
    image.width.div_ceil(PATCH_SIDE).saturating_mul(image.height.div_ceil(PATCH_SIDE))
}

fn hash_image(image: &Image, hasher: &mut DefaultHasher) {
    (image.width, image.height).hash(hasher);
    let step = (image.rgb.len() / HASHED_BYTES).max(1);
    image.rgb.iter().step_by(step).for_each(|byte| byte.hash(hasher));
}

/// Values of a linear congruential sequence, scaled to length 1.
fn unit_vector(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Never exactly zero, so that the length is not either.
        ((state >> 40) as f32 + 0.5) / 8_388_608.0 - 1.0
    };
    let values: Vec<f32> = (0..dimensions).map(|_| next()).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    values.into_iter().map(|value| value / length).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn request(text: &str) -> Request {
        let image = Arc::new(Image { width: 20, height: 16, rgb: vec![7; 20 * 16 * 3] });
        Request {
            tasks: vec![
                Task::EmbedText { model: "a".into(), text: text.to_owned() },
                Task::EmbedImage { model: "b".into(), image },
            ],
        }
    }

    #[tokio::test]
    async fn equal_inputs_give_equal_unit_vectors_of_the_wanted_length() {
        let instant = InstantInference::new([("a", 3), ("b", 8)]);
        let first = instant.infer(instant.prepare(&request("one")).unwrap()).await.unwrap();
        let again = instant.infer(instant.prepare(&request("one")).unwrap()).await.unwrap();
        let other = instant.infer(instant.prepare(&request("two")).unwrap()).await.unwrap();
        assert_eq!(first, again);
        assert_ne!(first.embeddings[0], other.embeddings[0]);
        assert_eq!(first.embeddings[1], other.embeddings[1]);
        assert_eq!(first.embeddings.iter().map(Vec::len).collect::<Vec<_>>(), [3, 8]);
        for vector in &first.embeddings {
            let length: f32 = vector.iter().map(|value| value * value).sum();
            assert!((length - 1.0).abs() < 1e-5);
        }
        assert_eq!(first.prompt_tokens, 3);
    }

    #[test]
    fn a_model_that_is_not_listed_is_unknown() {
        let refusal = InstantInference::new([("a", 3)]).prepare(&request("one")).err();
        assert!(matches!(refusal, Some(InferenceError::UnknownModel { model }) if model == "b"));
    }
}
