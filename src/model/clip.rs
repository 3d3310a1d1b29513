//! CLIP (Radford et al., 2021): a causal text tower and a vision transformer, projected into one space.
//!
//! Loads the layout of Hugging Face's `CLIPModel`. Texts of different lengths share a batch, padded on the right, which
//! the causal mask hides; the text is pooled at its end token.

use std::path::Path;

use candle_core::{IndexOp, Tensor};
use candle_nn::{LayerNorm, Module};
use serde::Deserialize;

use super::api::{Encoder, ModelError, Pixels, TokenIds};
use super::config::{Activation, Section, Stack, TextTower, VisionTower, positive};
use super::embedding_input::TextAndImage;
use super::family::{CONFIG, Parts};
use super::image_processor::{self, ImageProcessor};
use super::layers::{Blocks, Linear, PatchEmbedding, TextEmbedding, causal_mask, layer_norm, projection, unit_rows};
use super::tokenizer::{Padding, TextProcessor};
use super::weights::{Scope, Weights, read_json};

/// Old configurations say 2 whatever the tokenizer's end token is; the text then ends at its largest id.
const UNTRUE_END_TOKEN: u32 = 2;

/// Loads the model in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let config = ClipConfig::read(&directory.join(CONFIG))?;
    let processor = TextAndImage {
        text: TextProcessor::load(directory, &config.text, Padding::None)?,
        image: ImageProcessor::load(directory, &config.vision, &image_processor::CLIP)?,
    };
    Ok(Parts::embedding(processor, Clip::load(config, weights)?))
}

/// What config.json says of a CLIP model.
#[derive(Debug, Clone, Copy)]
pub struct ClipConfig {
    pub text: TextTower,
    pub vision: VisionTower,
    pub projection: usize,
}

impl ClipConfig {
    /// Reads config.json.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            text_config: Section,
            #[serde(default)]
            vision_config: Section,
            projection_dim: Option<usize>,
        }
        let found: File = read_json(file)?;
        let text =
            TextTower { stack: stack(512, 2048, 8), vocabulary: 49408, positions: 77, end_token: 49407, pad_token: 1 };
        let vision = VisionTower { stack: stack(768, 3072, 12), side: 224, patch: 32 };
        Ok(Self {
            text: found.text_config.text(text, file)?,
            vision: found.vision_config.vision(vision, file)?,
            projection: positive(found.projection_dim, 512, "projection_dim", file)?,
        })
    }
}

fn stack(hidden: usize, intermediate: usize, heads: usize) -> Stack {
    Stack { hidden, intermediate, layers: 12, heads, epsilon: 1e-5, activation: Activation::QuickGelu }
}

/// Both towers with their projections.
pub struct Clip {
    config: ClipConfig,
    text_embedding: TextEmbedding,
    text_blocks: Blocks,
    text_norm: LayerNorm,
    text_projection: Linear,
    vision: Vision,
}

impl Clip {
    pub fn load(config: ClipConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let scope = root.at("text_model");
        let tower = config.text;
        let hidden = tower.stack.hidden;
        Ok(Self {
            config,
            text_embedding: TextEmbedding::load(&scope.at("embeddings"), tower.vocabulary, tower.positions, hidden)?,
            text_blocks: Blocks::load(&scope.at("encoder"), &tower.stack)?,
            text_norm: layer_norm(&scope.at("final_layer_norm"), hidden, tower.stack.epsilon)?,
            text_projection: projection(&root.at("text_projection"), hidden, config.projection)?,
            vision: Vision::load(&root, &config)?,
        })
    }

    /// Where a text's vector is taken: the first largest id under the old rule, else the first end token.
    fn pooled_position(&self, ids: &[u32]) -> usize {
        let wanted = match self.config.text.end_token {
            UNTRUE_END_TOKEN => ids.iter().copied().max().unwrap_or_default(),
            end => end,
        };
        // The reference takes an argmax, which is 0 where no end token occurs.
        ids.iter().position(|id| *id == wanted).unwrap_or_default()
    }
}

impl Encoder for Clip {
    fn dimensions(&self) -> usize {
        self.config.projection
    }

    fn takes_texts(&self) -> bool {
        true
    }

    fn takes_images(&self) -> bool {
        true
    }

    fn embed_texts(&mut self, texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError> {
        let longest = texts.iter().map(|text| text.0.len()).max().unwrap_or_default();
        if longest == 0 || longest > self.config.text.positions || texts.iter().any(|text| text.0.is_empty()) {
            let detail = format!("texts must have 1 to {} tokens", self.config.text.positions);
            return Err(ModelError::Input { detail });
        }
        let mut ids = Vec::with_capacity(texts.len() * longest);
        let mut pooled = Vec::with_capacity(texts.len());
        for (row, text) in texts.iter().enumerate() {
            pooled.push((row * longest + self.pooled_position(&text.0)) as u32);
            ids.extend_from_slice(&text.0);
            ids.resize((row + 1) * longest, text.0[0]);
        }
        let embedded = self.text_embedding.forward(ids, texts.len())?;
        let mask = causal_mask(longest, embedded.dtype(), embedded.device())?;
        let hidden = self.text_blocks.forward(embedded, Some(&mask))?.flatten(0, 1)?;
        let rows = Tensor::from_vec(pooled, texts.len(), hidden.device())?;
        let ends = self.text_norm.forward(&hidden.index_select(&rows, 0)?)?;
        Ok(unit_rows(&self.text_projection.forward(&ends)?)?)
    }

    fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        self.vision.forward(images)
    }
}

/// The picture tower: a class token before the patches, whose last state is the picture's.
struct Vision {
    patches: PatchEmbedding,
    class: Tensor,
    positions: Tensor,
    first_norm: LayerNorm,
    blocks: Blocks,
    last_norm: LayerNorm,
    projection: Linear,
}

impl Vision {
    fn load(root: &Scope<'_>, config: &ClipConfig) -> Result<Self, ModelError> {
        let scope = root.at("vision_model");
        let embeddings = scope.at("embeddings");
        let tower = config.vision;
        let (hidden, epsilon) = (tower.stack.hidden, tower.stack.epsilon);
        Ok(Self {
            patches: PatchEmbedding::load(&embeddings.at("patch_embedding"), &tower, false)?,
            class: embeddings.tensor("class_embedding", &[hidden])?,
            positions: embeddings.at("position_embedding").tensor("weight", &[tower.patches() + 1, hidden])?,
            // The misspelling is the checkpoint's.
            first_norm: layer_norm(&scope.at("pre_layrnorm"), hidden, epsilon)?,
            blocks: Blocks::load(&scope.at("encoder"), &tower.stack)?,
            last_norm: layer_norm(&scope.at("post_layernorm"), hidden, epsilon)?,
            projection: projection(&root.at("visual_projection"), hidden, config.projection)?,
        })
    }

    fn forward(&self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
        let patches = self.patches.forward(images)?;
        let (batch, _, hidden) = patches.dims3()?;
        let class = self.class.expand((batch, 1, hidden))?;
        let embedded = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        let hidden = self.blocks.forward(self.first_norm.forward(&embedded)?, None)?;
        let class = self.last_norm.forward(&hidden.i((.., 0))?.contiguous()?)?;
        Ok(unit_rows(&self.projection.forward(&class)?)?)
    }
}
