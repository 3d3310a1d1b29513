//! SigLIP (Zhai et al., 2023): two towers trained with a sigmoid loss; the widths of both are the embedding.
//!
//! Loads the layout of Hugging Face's `SiglipModel`. Every text is padded to the full length and nothing is masked,
//! so padding is part of the text; it is pooled at the last position. Pictures are pooled by attention from a probe.

use std::path::Path;

use candle_core::{IndexOp, Tensor};
use candle_nn::{LayerNorm, Module};
use serde::Deserialize;

use super::api::{Encoder, ModelError, Pixels, TokenIds};
use super::config::{Activation, Section, Stack, TextTower, VisionTower, positive};
use super::embedding_input::TextAndImage;
use super::family::{CONFIG, Parts};
use super::image_processor::{self, ImageProcessor};
use super::layers::{
    Blocks, FeedForward, Linear, PatchEmbedding, TextEmbedding, attend_whole, layer_norm, linear, split_heads,
    unit_rows,
};
use super::tokenizer::{Padding, TextProcessor};
use super::weights::{Scope, Weights, read_json};

/// Loads the model in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let config = SiglipConfig::read(&directory.join(CONFIG))?;
    let processor = TextAndImage {
        text: TextProcessor::load(directory, &config.text, Padding::ToLimit)?,
        image: ImageProcessor::load(directory, &config.vision, &image_processor::SIGLIP)?,
    };
    Ok(Parts::embedding(processor, Siglip::load(config, weights)?))
}

/// What config.json says of a SigLIP model.
#[derive(Debug, Clone, Copy)]
pub struct SiglipConfig {
    pub text: TextTower,
    pub vision: VisionTower,
}

impl SiglipConfig {
    /// Reads config.json.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        #[derive(Default, Deserialize)]
        struct Text {
            #[serde(flatten)]
            section: Section,
            projection_size: Option<usize>,
        }
        #[derive(Default, Deserialize)]
        struct Vision {
            #[serde(flatten)]
            section: Section,
            vision_use_head: Option<bool>,
        }
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            text_config: Text,
            #[serde(default)]
            vision_config: Vision,
        }
        let found: File = read_json(file)?;
        let stack = Stack {
            hidden: 768,
            intermediate: 3072,
            layers: 12,
            heads: 12,
            epsilon: 1e-6,
            activation: Activation::GeluTanh,
        };
        let text = TextTower { stack, vocabulary: 32000, positions: 64, end_token: 49407, pad_token: 1 };
        let vision = VisionTower { stack, side: 224, patch: 16 };
        let text = found.text_config.section.text(text, file)?;
        let vision = found.vision_config.section.vision(vision, file)?;
        if found.vision_config.vision_use_head == Some(false) {
            let advice = "pictures are pooled by the attention head";
            return Err(ModelError::unsupported(file, "vision_config.vision_use_head", false, advice));
        }
        let key = "text_config.projection_size";
        let projection = positive(found.text_config.projection_size, text.stack.hidden, key, file)?;
        if projection != vision.stack.hidden {
            let advice = format!("texts and pictures must have the same width, here {}", vision.stack.hidden);
            return Err(ModelError::unsupported(file, key, projection, &advice));
        }
        Ok(Self { text, vision })
    }
}

/// Both towers.
pub struct Siglip {
    config: SiglipConfig,
    text_embedding: TextEmbedding,
    text_blocks: Blocks,
    text_norm: LayerNorm,
    text_head: Linear,
    patches: PatchEmbedding,
    patch_positions: Tensor,
    vision_blocks: Blocks,
    vision_norm: LayerNorm,
    pooling: Pooling,
}

impl Siglip {
    pub fn load(config: SiglipConfig, weights: &Weights) -> Result<Self, ModelError> {
        let SiglipConfig { text, vision } = config;
        let (width, dimensions) = (text.stack.hidden, vision.stack.hidden);
        let scope = weights.root().at("text_model");
        let picture = weights.root().at("vision_model");
        let embeddings = picture.at("embeddings");
        Ok(Self {
            config,
            text_embedding: TextEmbedding::load(&scope.at("embeddings"), text.vocabulary, text.positions, width)?,
            text_blocks: Blocks::load(&scope.at("encoder"), &text.stack)?,
            text_norm: layer_norm(&scope.at("final_layer_norm"), width, text.stack.epsilon)?,
            text_head: linear(&scope.at("head"), width, dimensions)?,
            patches: PatchEmbedding::load(&embeddings.at("patch_embedding"), &vision, true)?,
            patch_positions: embeddings.at("position_embedding").tensor("weight", &[vision.patches(), dimensions])?,
            vision_blocks: Blocks::load(&picture.at("encoder"), &vision.stack)?,
            vision_norm: layer_norm(&picture.at("post_layernorm"), dimensions, vision.stack.epsilon)?,
            pooling: Pooling::load(&picture.at("head"), &vision.stack)?,
        })
    }
}

impl Encoder for Siglip {
    fn dimensions(&self) -> usize {
        self.config.vision.stack.hidden
    }

    fn takes_texts(&self) -> bool {
        true
    }

    fn takes_images(&self) -> bool {
        true
    }

    fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError> {
        let Some(length) = texts.first().map(|text| text.0.len()) else { return Ok(Vec::new()) };
        let fits = (1..=self.config.text.positions).contains(&length);
        if !fits || texts.iter().any(|text| text.0.len() != length) {
            let detail = format!("texts must be padded to one length of at most {}", self.config.text.positions);
            return Err(ModelError::Input { detail });
        }
        let ids = texts.iter().flat_map(|text| text.0.iter().copied()).collect();
        let hidden = self.text_blocks.forward(self.text_embedding.forward(ids, texts.len())?, None)?;
        let ends = self.text_norm.forward(&hidden.i((.., length - 1))?.contiguous()?)?;
        Ok(unit_rows(&self.text_head.forward(&ends)?)?)
    }

    fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let embedded = self.patches.forward(images)?.broadcast_add(&self.patch_positions)?;
        let hidden = self.vision_norm.forward(&self.vision_blocks.forward(embedded, None)?)?;
        Ok(unit_rows(&self.pooling.forward(&hidden)?)?)
    }
}

/// One learned query that looks at all patches.
struct Pooling {
    /// The query after its projection: `[1, heads, 1, d]`, the same for every picture.
    query: Tensor,
    keys_and_values: Linear,
    outward: Linear,
    norm: LayerNorm,
    feed_forward: FeedForward,
    heads: usize,
}

impl Pooling {
    fn load(scope: &Scope<'_>, stack: &Stack) -> Result<Self, ModelError> {
        let hidden = stack.hidden;
        let attention = scope.at("attention");
        let weight = attention.tensor("in_proj_weight", &[3 * hidden, hidden])?;
        let bias = attention.tensor("in_proj_bias", &[3 * hidden])?;
        let part = |start: usize, length: usize| -> candle_core::Result<Linear> {
            Ok(Linear::from_weight(weight.narrow(0, start, length)?, Some(bias.narrow(0, start, length)?)))
        };
        let probe = scope.tensor("probe", &[1, 1, hidden])?;
        let query = split_heads(&part(0, hidden)?.forward(&probe)?, 1, stack.heads)?.remove(0);
        Ok(Self {
            query,
            keys_and_values: part(hidden, 2 * hidden)?,
            outward: linear(&attention.at("out_proj"), hidden, hidden)?,
            norm: layer_norm(&scope.at("layernorm"), hidden, stack.epsilon)?,
            feed_forward: FeedForward::load(
                &scope.at("mlp"),
                ["fc1", "fc2"],
                [stack.hidden, stack.intermediate, stack.hidden],
                stack.activation,
            )?,
            heads: stack.heads,
        })
    }

    /// `[batch, patches, hidden]` to `[batch, hidden]`.
    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let batch = hidden.dim(0)?;
        let split = split_heads(&self.keys_and_values.forward(hidden)?, 2, self.heads)?;
        let (_, heads, _, width) = self.query.dims4()?;
        let queries = self.query.expand((batch, heads, 1, width))?.contiguous()?;
        let seen = self.outward.forward(&attend_whole(&queries, &split[0], &split[1], None)?)?;
        let pooled = (&seen + self.feed_forward.forward(&self.norm.forward(&seen)?)?)?;
        pooled.i((.., 0))?.contiguous()
    }
}
