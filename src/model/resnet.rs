//! ResNet (He et al., 2015): residual stages of convolutions; a picture's vector is the mean over the last maps.
//!
//! Loads the layout of Hugging Face's `ResNetModel` and `ResNetForImageClassification`; the classes of the latter are
//! not looked at. It takes square pictures of any side, as the image processor makes them.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::api::{Encoder, ModelError, Pixels, TokenIds};
use super::config::{Activation, positive};
use super::embedding_input::{ImageOnly, images_only};
use super::family::{CONFIG, Parts};
use super::image_processor::{self, ImageProcessor};
use super::layers::{Convolution, Geometry, Maps, activate, unit_rows};
use super::trace::Trace;
use super::weights::{Scope, Weights, read_json};

/// Pixels of the picture's side for one of the last map's, as published models have it.
pub const REDUCTION: u32 = 32;

/// A bottleneck computes on this part of its channels.
const BOTTLENECK: usize = 4;

/// The inner layers of a block have this activation, whatever config.json says of the outer ones.
const INNER: Option<Activation> = Some(Activation::Relu);

/// Loads the model in `directory`.
pub fn load(directory: &Path, weights: &Weights) -> Result<Parts, ModelError> {
    let config = ResnetConfig::read(&directory.join(CONFIG))?;
    let image = ImageProcessor::load_any_side(directory, &image_processor::RESNET, REDUCTION)?;
    Ok(Parts::embedding(ImageOnly { image }, Resnet::load(config, weights)?))
}

/// What one residual block is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Two 3 x 3 convolutions.
    Basic,
    /// 1 x 1, 3 x 3, 1 x 1; either of the first two halves the map.
    Bottleneck { first_halves: bool },
}

/// What config.json says of a ResNet.
#[derive(Debug, Clone)]
pub struct ResnetConfig {
    /// Where its tensors' names begin.
    prefix: Option<&'static str>,
    embedding: usize,
    /// Channels and blocks of each stage.
    stages: Vec<(usize, usize)>,
    kind: Kind,
    first_stage_halves: bool,
    activation: Activation,
}

impl ResnetConfig {
    /// Reads config.json.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            architectures: Vec<String>,
            num_channels: Option<usize>,
            embedding_size: Option<usize>,
            hidden_sizes: Option<Vec<usize>>,
            depths: Option<Vec<usize>>,
            layer_type: Option<String>,
            hidden_act: Option<String>,
            #[serde(default)]
            downsample_in_first_stage: bool,
            #[serde(default)]
            downsample_in_bottleneck: bool,
        }
        let found: File = read_json(file)?;
        if let Some(channels) = found.num_channels.filter(|channels| *channels != 3) {
            return Err(ModelError::unsupported(file, "num_channels", channels, "only 3 (RGB) is"));
        }
        let kind = match found.layer_type.as_deref() {
            None | Some("bottleneck") => Kind::Bottleneck { first_halves: found.downsample_in_bottleneck },
            Some("basic") => Kind::Basic,
            Some(other) => {
                return Err(ModelError::unsupported(file, "layer_type", other, "basic and bottleneck are"));
            }
        };
        let sizes = found.hidden_sizes.unwrap_or_else(|| vec![256, 512, 1024, 2048]);
        let depths = found.depths.unwrap_or_else(|| vec![3, 4, 6, 3]);
        let narrowest = if kind == Kind::Basic { 1 } else { BOTTLENECK };
        if sizes.is_empty() || sizes.len() != depths.len() || depths.contains(&0) {
            let detail = format!("hidden_sizes {sizes:?} and depths {depths:?} are no list of stages");
            return Err(ModelError::malformed(file, detail));
        }
        if let Some(size) = sizes.iter().find(|size| **size < narrowest) {
            return Err(ModelError::malformed(file, format!("hidden_sizes: a stage cannot have {size} channels")));
        }
        let is_classifier = found.architectures.first().is_some_and(|name| name == "ResNetForImageClassification");
        Ok(Self {
            prefix: is_classifier.then_some("resnet"),
            embedding: positive(found.embedding_size, 64, "embedding_size", file)?,
            stages: sizes.into_iter().zip(depths).collect(),
            kind,
            first_stage_halves: found.downsample_in_first_stage,
            activation: Activation::named(found.hidden_act.as_deref().unwrap_or("relu"), "hidden_act", file)?,
        })
    }
}

/// The stem and the stages.
pub struct Resnet {
    stem: Convolution,
    stages: Vec<Vec<Block>>,
    dimensions: usize,
}

impl Resnet {
    pub fn load(config: ResnetConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = config.prefix.map_or_else(|| weights.root(), |prefix| weights.root().at(prefix));
        let geometry = Geometry { inputs: 3, outputs: config.embedding, kernel: 7, stride: 2 };
        let stem = Convolution::load(&root.at("embedder").at("embedder"), geometry, Some(config.activation))?;
        let encoder = root.at("encoder").at("stages");
        let (mut inputs, mut stages) = (config.embedding, Vec::new());
        for (index, (outputs, depth)) in config.stages.iter().copied().enumerate() {
            let layers = encoder.at(index).at("layers");
            let mut blocks = Vec::new();
            for layer in 0..depth {
                let halves = layer == 0 && (index > 0 || config.first_stage_halves);
                let outer = Geometry { inputs, outputs, kernel: 1, stride: if halves { 2 } else { 1 } };
                blocks.push(Block::load(&layers.at(layer), &config, outer)?);
                inputs = outputs;
            }
            stages.push(blocks);
        }
        Ok(Self { stem, stages, dimensions: inputs })
    }

    /// `[images, dimensions]`: the mean over the last maps, f32. `pixels` is `[images, 3, side, side]`. Shows `stage_0`
    /// (the stem) and `stage_i` after stage i, each `[images, channels, height, width]`.
    pub fn pooled(&self, pixels: &Tensor, trace: &mut Trace) -> Result<Tensor, ModelError> {
        let pixels = pixels.to_device(self.stem.device())?.to_dtype(self.stem.dtype())?;
        let mut maps = self.stem.forward(&Maps::from_channel_first(&pixels)?)?.max_pooled(3, 2)?;
        let mut show = |index: usize, maps: &Maps| -> Result<(), ModelError> {
            if trace.is_on() {
                trace.show(format_args!("stage_{index}"), &maps.channel_first()?);
            }
            Ok(())
        };
        show(0, &maps)?;
        for (index, blocks) in self.stages.iter().enumerate() {
            for block in blocks {
                maps = block.forward(&maps)?;
            }
            show(index + 1, &maps)?;
        }
        Ok(maps.mean()?)
    }
}

impl Encoder for Resnet {
    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn takes_texts(&self) -> bool {
        false
    }

    fn takes_images(&self) -> bool {
        true
    }

    fn embed_texts(&mut self, _texts: &[&TokenIds]) -> Result<Vec<Vec<f32>>, ModelError> {
        Err(images_only())
    }

    fn embed_images(&mut self, images: &[&Pixels]) -> Result<Vec<Vec<f32>>, ModelError> {
        let Some(side) = images.first().map(|image| image.side) else { return Ok(Vec::new()) };
        let mut values = Vec::with_capacity(images.len() * 3 * side * side);
        for image in images {
            if side == 0 || image.side != side || image.values.len() != 3 * side * side {
                let detail = format!("a picture of side {} among those of side {side}", image.side);
                return Err(ModelError::Input { detail });
            }
            values.extend_from_slice(&image.values);
        }
        let pixels = Tensor::from_vec(values, (images.len(), 3, side, side), self.stem.device())?;
        Ok(unit_rows(&self.pooled(&pixels, &mut Trace::off())?)?)
    }
}

/// Convolutions, added to what came in, and an activation.
struct Block {
    layers: Vec<Convolution>,
    /// Present where what came in has another shape than what comes out.
    shortcut: Option<Convolution>,
    activation: Activation,
}

impl Block {
    /// `outer` says what the block does as a whole.
    fn load(scope: &Scope<'_>, config: &ResnetConfig, outer: Geometry) -> Result<Self, ModelError> {
        let Geometry { inputs, outputs, stride, .. } = outer;
        let geometry = |inputs, outputs, kernel, stride| Geometry { inputs, outputs, kernel, stride };
        let inside = outputs / BOTTLENECK;
        let geometries = match config.kind {
            Kind::Basic => vec![geometry(inputs, outputs, 3, stride), geometry(outputs, outputs, 3, 1)],
            Kind::Bottleneck { first_halves } => {
                let (first, second) = if first_halves { (stride, 1) } else { (1, stride) };
                vec![
                    geometry(inputs, inside, 1, first),
                    geometry(inside, inside, 3, second),
                    geometry(inside, outputs, 1, 1),
                ]
            }
        };
        let last = geometries.len() - 1;
        let layer = |(index, geometry)| {
            let activation = if index == last { None } else { INNER };
            Convolution::load(&scope.at("layer").at(index), geometry, activation)
        };
        let shortcut =
            (inputs != outputs || stride != 1).then(|| Convolution::load(&scope.at("shortcut"), outer, None));
        Ok(Self {
            layers: geometries.into_iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            shortcut: shortcut.transpose()?,
            activation: config.activation,
        })
    }

    fn forward(&self, input: &Maps) -> candle_core::Result<Maps> {
        let mut maps = input.clone();
        for layer in &self.layers {
            maps = layer.forward(&maps)?;
        }
        let around = match &self.shortcut {
            Some(shortcut) => shortcut.forward(input)?.rows,
            None => input.rows.clone(),
        };
        maps.rows = activate(self.activation, &(maps.rows + around)?)?;
        Ok(maps)
    }
}
