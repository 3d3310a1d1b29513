//! Pictures to pixel tensors, by the preprocessor_config.json of the model directory.
//!
//! Knows the settings of `CLIPImageProcessor`, `SiglipImageProcessor`, `ConvNextImageProcessor`, `ViTImageProcessor` and
//! `BitImageProcessor`: resize, cut the centre, rescale, normalise.
//! Invariant: a setting is either honoured or refused by name; every result has the side that the model takes.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::api::{ModelError, Picture, Pixels};
use super::config::VisionTower;
use super::resize::{Filter, Window, resize};
use super::weights::read_json;

pub const PREPROCESSOR: &str = "preprocessor_config.json";
pub const PROCESSOR: &str = "processor_config.json";

/// A very long picture grows when its short side is stretched to the model's; this many pixels are refused.
const MOST_RESIZED_PIXELS: u64 = 1 << 24;

/// What the families do when their file says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Whether a size given as one number means the shortest edge; otherwise it means a square.
    pub one_size_is_shortest_edge: bool,
    pub size: u32,
    pub center_crop: bool,
    /// For the dialect that gives the final size and the share of the picture that is kept.
    pub kept_share: Option<f64>,
    pub filter: Filter,
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
    /// Names of the image processors that are honoured.
    pub kinds: &'static [&'static str],
}

/// As `CLIPImageProcessor` has them.
pub const CLIP: Defaults = Defaults {
    one_size_is_shortest_edge: true,
    size: 224,
    center_crop: true,
    kept_share: None,
    filter: Filter::Bicubic,
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    kinds: &["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"],
};

/// As `SiglipImageProcessor` has them.
pub const SIGLIP: Defaults = Defaults {
    one_size_is_shortest_edge: false,
    size: 224,
    center_crop: false,
    kept_share: None,
    filter: Filter::Bicubic,
    mean: [0.5; 3],
    deviation: [0.5; 3],
    kinds: &["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"],
};

/// As the processors have them that ResNet checkpoints name; the first counts where none is named.
pub const RESNET: [Defaults; 4] = [
    Defaults {
        one_size_is_shortest_edge: true,
        size: LEAST_UNCUT,
        center_crop: false,
        kept_share: Some(0.875),
        filter: Filter::Bicubic,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        kinds: &[
            "ConvNextImageProcessor",
            "ConvNextImageProcessorFast",
            "ConvNextImageProcessorPil",
            "ConvNextFeatureExtractor",
        ],
    },
    Defaults {
        one_size_is_shortest_edge: false,
        size: 224,
        center_crop: false,
        kept_share: None,
        filter: Filter::Bilinear,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        kinds: &["ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil", "ViTFeatureExtractor"],
    },
    Defaults { kinds: &["BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil"], ..CLIP },
    CLIP,
];

/// `ConvNextImageProcessor` keeps a share of smaller pictures only; from this size on it squeezes the whole one.
const LEAST_UNCUT: u32 = 384;

/// What the picture is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    ShortestEdge(u32),
    Exact { width: u32, height: u32 },
}

/// The settings of one model, ready to apply.
#[derive(Debug)]
pub struct ImageProcessor {
    target: Target,
    filter: Filter,
    /// Width and height of the centre that is kept.
    crop: Option<(u32, u32)>,
    /// The normalised value of each of the 256 levels, per channel.
    levels: [[f32; 256]; 3],
    side: u32,
    patches: u32,
}

impl ImageProcessor {
    /// Reads preprocessor_config.json, or the part of processor_config.json that newer releases write instead.
    pub fn load(directory: &Path, tower: &VisionTower, defaults: &Defaults) -> Result<Self, ModelError> {
        let settings = Settings::read(directory)?;
        settings.check_kind(std::slice::from_ref(defaults))?;
        let side = u32::try_from(tower.side).unwrap_or(u32::MAX);
        let (width, height) = settings.result(defaults)?;
        if (width, height) != (side, side) {
            let detail = format!("pictures become {width} x {height}, but config.json takes {side} x {side}");
            return Err(ModelError::malformed(&settings.file, detail));
        }
        Self::new(&settings, defaults, side, u32::try_from(tower.patches()).unwrap_or(u32::MAX))
    }

    /// The same for a model that takes squares of any side, and so takes the side that the file gives. `known` are the
    /// processors that are honoured; a picture costs one for each `reduction` by `reduction` pixels.
    pub fn load_any_side(directory: &Path, known: &[Defaults], reduction: u32) -> Result<Self, ModelError> {
        let settings = Settings::read(directory)?;
        let defaults = settings.check_kind(known)?;
        let (width, height) = settings.result(defaults)?;
        if width != height {
            let detail = format!("pictures become {width} x {height}, but only squares are supported");
            return Err(ModelError::malformed(&settings.file, detail));
        }
        Self::new(&settings, defaults, width, width.div_ceil(reduction.max(1)).pow(2))
    }

    fn new(settings: &Settings, defaults: &Defaults, side: u32, patches: u32) -> Result<Self, ModelError> {
        let (target, crop) = settings.geometry(defaults)?;
        let filter = settings.filter(defaults)?;
        Ok(Self { target, filter, crop, levels: settings.levels(defaults)?, side, patches })
    }

    /// The pixel tensor of one picture.
    pub fn process(&self, picture: Picture<'_>) -> Result<Pixels, ModelError> {
        let (width, height) = (picture.width, picture.height);
        if width == 0 || height == 0 || picture.rgb.len() as u64 != u64::from(width) * u64::from(height) * 3 {
            let detail = format!("a picture of {width} x {height} pixels with {} bytes", picture.rgb.len());
            return Err(ModelError::Input { detail });
        }
        let resized = self.target.of(width, height);
        if u64::from(resized.0) * u64::from(resized.1) > MOST_RESIZED_PIXELS {
            let detail = format!(
                "a picture of {width} x {height} pixels is too long for its width: it would be resized to {} x {}",
                resized.0, resized.1
            );
            return Err(ModelError::Input { detail });
        }
        let kept = self.crop.unwrap_or(resized);
        let window = Window {
            left: resized.0.saturating_sub(kept.0) / 2,
            top: resized.1.saturating_sub(kept.1) / 2,
            width: resized.0.min(kept.0),
            height: resized.1.min(kept.1),
        };
        let bytes = resize(picture, resized, window, self.filter)
            .map_err(|error| ModelError::Input { detail: format!("the picture cannot be resized: {error}") })?;
        Ok(Pixels { side: self.side as usize, values: self.normalised(&bytes, window), cost: self.patches })
    }

    /// Channel by channel; what the picture does not cover of the model's square is black, in equal margins.
    fn normalised(&self, bytes: &[u8], window: Window) -> Vec<f32> {
        let side = self.side as usize;
        let (left, top) = ((self.side - window.width) as usize / 2, (self.side - window.height) as usize / 2);
        let mut values = Vec::with_capacity(3 * side * side);
        for levels in &self.levels {
            values.resize(values.len() + side * side, levels[0]);
        }
        for (row, line) in bytes.chunks_exact(window.width as usize * 3).enumerate() {
            let start = (top + row) * side + left;
            for (channel, levels) in self.levels.iter().enumerate() {
                let from = channel * side * side + start;
                let target = &mut values[from..from + window.width as usize];
                for (value, pixel) in target.iter_mut().zip(line.chunks_exact(3)) {
                    *value = levels[usize::from(pixel[channel])];
                }
            }
        }
        values
    }
}

impl Target {
    /// Width and height after resizing; the long side is cut down to a whole number, as the reference does.
    fn of(self, width: u32, height: u32) -> (u32, u32) {
        let long = |edge: u32, long: u32, short: u32| {
            u32::try_from(u64::from(edge) * u64::from(long) / u64::from(short)).unwrap_or(u32::MAX)
        };
        match self {
            Self::Exact { width, height } => (width, height),
            Self::ShortestEdge(edge) if width <= height => (edge, long(edge, height, width)),
            Self::ShortestEdge(edge) => (long(edge, width, height), edge),
        }
    }
}

/// The file's keys, read one by one so that each error names its own.
pub struct Settings {
    pub file: PathBuf,
    keys: Map<String, Value>,
}

impl Settings {
    /// Reads preprocessor_config.json, or the part of processor_config.json that newer releases write instead.
    pub fn read(directory: &Path) -> Result<Self, ModelError> {
        let file = directory.join(PREPROCESSOR);
        if file.is_file() {
            return Ok(Self { keys: read_json(&file)?, file });
        }
        let file = directory.join(PROCESSOR);
        let mut whole: Map<String, Value> = read_json(&file)?;
        match whole.remove("image_processor") {
            Some(Value::Object(keys)) => Ok(Self { keys, file }),
            _ => Err(ModelError::malformed(&file, format!("image_processor is missing, and so is {PREPROCESSOR}"))),
        }
    }

    pub fn unsupported(&self, key: &str, value: impl std::fmt::Display, advice: &str) -> ModelError {
        ModelError::unsupported(&self.file, key, value, advice)
    }

    /// A key that is absent or null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.unsupported(key, other, "write true or false")),
        }
    }

    /// Refuses another family's processor and any step that we do not know; else gives the processor's defaults.
    pub fn check_kind<'a>(&self, known: &'a [Defaults]) -> Result<&'a Defaults, ModelError> {
        const STEPS: [&str; 5] = ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"];
        let mut chosen = &known[0];
        for key in ["feature_extractor_type", "image_processor_type"] {
            let Some(kind) = self.value(key) else { continue };
            let found = known.iter().find(|defaults| defaults.kinds.iter().any(|name| kind == name));
            chosen = found.ok_or_else(|| {
                let names: Vec<_> = known.iter().map(|defaults| defaults.kinds[0]).collect();
                self.unsupported(key, kind, &format!("this model family knows {}", names.join(", ")))
            })?;
        }
        let unknown = self.keys.keys().find(|key| {
            key.starts_with("do_") && !STEPS.contains(&key.as_str()) && self.keys[*key] == Value::Bool(true)
        });
        match unknown {
            Some(key) => Err(self.unsupported(key, true, "set it to false or use another model")),
            None if !self.flag("do_resize", true)? => {
                Err(self.unsupported("do_resize", false, "pictures come in all sizes and must be resized"))
            }
            None => Ok(chosen),
        }
    }

    /// A whole number of pixels that a picture can have as its side.
    pub fn pixels(&self, key: &str, value: &Value) -> Result<u32, ModelError> {
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (1..=65_536).contains(&number) => Ok(number),
            _ => Err(self.unsupported(key, value, "write a number of pixels")),
        }
    }

    /// What pictures are resized to, and width and height of the centre that is kept of that.
    fn geometry(&self, defaults: &Defaults) -> Result<(Target, Option<(u32, u32)>), ModelError> {
        let target = self.target(defaults)?;
        let Some(share) = defaults.kept_share else { return Ok((target, self.crop(defaults)?)) };
        let Target::ShortestEdge(side) = target else {
            return Err(self.unsupported("size", "height and width", "write shortest_edge"));
        };
        if self.flag("do_center_crop", false)? {
            return Err(self.unsupported("do_center_crop", true, "crop_pct says already what is kept"));
        }
        let share = match self.value("crop_pct") {
            None => share,
            Some(value) => value
                .as_f64()
                .filter(|share| (0.05..=1.0).contains(share))
                .ok_or_else(|| self.unsupported("crop_pct", value, "write a share from 0.05 to 1"))?,
        };
        if side >= LEAST_UNCUT {
            return Ok((Target::Exact { width: side, height: side }, None));
        }
        // Cut down to a whole number, as the reference does.
        Ok((Target::ShortestEdge((f64::from(side) / share) as u32), Some((side, side))))
    }

    /// Width and height of every pixel tensor.
    fn result(&self, defaults: &Defaults) -> Result<(u32, u32), ModelError> {
        match self.geometry(defaults)? {
            (_, Some(crop)) => Ok(crop),
            (Target::Exact { width, height }, None) => Ok((width, height)),
            (Target::ShortestEdge(_), None) => {
                let advice = "without do_center_crop the size must be height and width";
                Err(self.unsupported("size", "shortest_edge", advice))
            }
        }
    }

    fn target(&self, defaults: &Defaults) -> Result<Target, ModelError> {
        let single = |edge| match defaults.one_size_is_shortest_edge {
            true => Target::ShortestEdge(edge),
            false => Target::Exact { width: edge, height: edge },
        };
        match self.value("size") {
            None => Ok(single(defaults.size)),
            Some(Value::Object(size)) if size.len() == 1 && size.contains_key("shortest_edge") => {
                Ok(Target::ShortestEdge(self.pixels("size.shortest_edge", &size["shortest_edge"])?))
            }
            Some(Value::Object(size)) => {
                let (width, height) = self.rectangle("size", size)?;
                Ok(Target::Exact { width, height })
            }
            Some(number) => Ok(single(self.pixels("size", number)?)),
        }
    }

    fn crop(&self, defaults: &Defaults) -> Result<Option<(u32, u32)>, ModelError> {
        if !self.flag("do_center_crop", defaults.center_crop)? {
            return Ok(None);
        }
        Ok(Some(match self.value("crop_size") {
            None => (defaults.size, defaults.size),
            Some(Value::Object(size)) => self.rectangle("crop_size", size)?,
            Some(number) => {
                let side = self.pixels("crop_size", number)?;
                (side, side)
            }
        }))
    }

    /// Width and height.
    fn rectangle(&self, key: &str, size: &Map<String, Value>) -> Result<(u32, u32), ModelError> {
        match (size.get("width"), size.get("height")) {
            (Some(width), Some(height)) if size.len() == 2 => {
                Ok((self.pixels(&format!("{key}.width"), width)?, self.pixels(&format!("{key}.height"), height)?))
            }
            _ => {
                let found = Value::Object(size.clone());
                Err(self.unsupported(key, found, "write a number, height and width, or for size shortest_edge"))
            }
        }
    }

    pub fn filter(&self, defaults: &Defaults) -> Result<Filter, ModelError> {
        match self.value("resample").map(|value| value.as_u64().ok_or(value)) {
            None => Ok(defaults.filter),
            Some(Ok(3)) => Ok(Filter::Bicubic),
            Some(Ok(2)) => Ok(Filter::Bilinear),
            Some(Ok(number)) => Err(self.unsupported("resample", number, "2 (bilinear) and 3 (bicubic) are")),
            Some(Err(other)) => Err(self.unsupported("resample", other, "2 (bilinear) and 3 (bicubic) are")),
        }
    }

    /// `(level * factor - mean) / deviation`, folded as the reference folds it: into the mean and the deviation.
    pub fn levels(&self, defaults: &Defaults) -> Result<[[f32; 256]; 3], ModelError> {
        let factor = match (self.flag("do_rescale", true)?, self.value("rescale_factor")) {
            (false, _) => 1.0,
            (true, None) => 1.0 / 255.0,
            (true, Some(value)) => value
                .as_f64()
                .filter(|factor| *factor > 0.0)
                .ok_or_else(|| self.unsupported("rescale_factor", value, "write a positive number"))?,
        };
        let inverse = (1.0 / factor) as f32;
        let (mean, deviation) = match self.flag("do_normalize", true)? {
            true => (self.channels("image_mean", defaults.mean)?, self.channels("image_std", defaults.deviation)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        if let Some(zero) = deviation.iter().find(|value| **value <= 0.0) {
            return Err(self.unsupported("image_std", zero, "write positive numbers"));
        }
        Ok(std::array::from_fn(|channel| {
            std::array::from_fn(|level| (level as f32 - mean[channel] * inverse) / (deviation[channel] * inverse))
        }))
    }

    pub fn channels(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3], ModelError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let numbers: Option<Vec<f32>> =
            value.as_array().and_then(|list| list.iter().map(|number| number.as_f64().map(|n| n as f32)).collect());
        numbers
            .and_then(|numbers| <[f32; 3]>::try_from(numbers).ok())
            .ok_or_else(|| self.unsupported(key, value, "write three numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::{Activation, Stack};
    use super::*;

    const TOWER: VisionTower = VisionTower {
        stack: Stack {
            hidden: 8,
            intermediate: 8,
            layers: 1,
            heads: 1,
            epsilon: 1e-5,
            activation: Activation::QuickGelu,
        },
        side: 8,
        patch: 4,
    };

    fn load(json: &str, defaults: &Defaults) -> Result<ImageProcessor, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(PREPROCESSOR), json).unwrap();
        ImageProcessor::load(directory.path(), &TOWER, defaults)
    }

    fn grey(width: u32, height: u32) -> Vec<u8> {
        vec![100; (width * height * 3) as usize]
    }

    #[test]
    fn a_size_may_be_a_number_a_rectangle_or_a_shortest_edge() {
        assert_eq!(load(r#"{"size": 10, "crop_size": 8}"#, &CLIP).unwrap().target, Target::ShortestEdge(10));
        let json = r#"{"size": {"shortest_edge": 9}, "crop_size": {"width": 8, "height": 8}}"#;
        assert_eq!(load(json, &CLIP).unwrap().target, Target::ShortestEdge(9));
        assert_eq!(load(r#"{"size": 8}"#, &SIGLIP).unwrap().target, Target::Exact { width: 8, height: 8 });
        let json = r#"{"size": {"width": 8, "height": 8}, "resample": 2}"#;
        assert_eq!(load(json, &SIGLIP).unwrap().filter, Filter::Bilinear);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_file_and_key() {
        for (json, key) in [
            (r#"{"size": 8, "resample": 1}"#, "resample = 1"),
            (r#"{"size": {"longest_edge": 8}}"#, "size = "),
            (r#"{"size": {"shortest_edge": 0}}"#, "size.shortest_edge = 0"),
            (r#"{"size": 8, "do_pad": true}"#, "do_pad = true"),
            (r#"{"size": 8, "do_resize": false}"#, "do_resize = false"),
            (r#"{"size": 8, "image_mean": [0.5]}"#, "image_mean = [0.5]"),
            (r#"{"size": 8, "image_processor_type": "ViTImageProcessor"}"#, "image_processor_type"),
            (r#"{"size": 16}"#, "16 x 16"),
        ] {
            let refusal = load(json, &SIGLIP).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains(PREPROCESSOR), "{json}: {refusal}");
        }
    }

    #[test]
    fn without_its_own_file_the_settings_come_from_the_processor_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(PROCESSOR);
        std::fs::write(&file, r#"{"image_processor": {"size": 8}}"#).unwrap();
        assert!(ImageProcessor::load(directory.path(), &TOWER, &SIGLIP).is_ok());
        std::fs::write(&file, "{}").unwrap();
        let refusal = ImageProcessor::load(directory.path(), &TOWER, &SIGLIP).unwrap_err().to_string();
        assert!(refusal.contains("image_processor"), "{refusal}");
    }

    #[test]
    fn a_centre_larger_than_the_picture_gets_a_black_margin() {
        let processor =
            load(r#"{"size": 4, "crop_size": 8, "do_normalize": false, "do_rescale": false}"#, &CLIP).unwrap();
        let bytes = grey(4, 4);
        let pixels = processor.process(Picture { width: 4, height: 4, rgb: &bytes }).unwrap();
        let rows: Vec<&[f32]> = pixels.values[..64].chunks(8).collect();
        assert_eq!(rows[1], [0.0; 8]);
        assert_eq!(rows[2], [0.0, 0.0, 100.0, 100.0, 100.0, 100.0, 0.0, 0.0]);
        assert_eq!(pixels.cost, 4);
    }

    fn load_any(json: &str) -> Result<ImageProcessor, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(PREPROCESSOR), json).unwrap();
        ImageProcessor::load_any_side(directory.path(), &RESNET, 32)
    }

    #[test]
    fn a_kept_share_enlarges_before_the_cut_and_large_pictures_are_not_cut() {
        let small = load_any(r#"{"size": 224, "feature_extractor_type": "ConvNextFeatureExtractor"}"#).unwrap();
        assert_eq!((small.target, small.crop), (Target::ShortestEdge(256), Some((224, 224))));
        assert_eq!((small.side, small.patches), (224, 49));
        let other = load_any(r#"{"size": {"shortest_edge": 64}, "crop_pct": 0.9}"#).unwrap();
        assert_eq!(other.target, Target::ShortestEdge(71));
        let large = load_any(r#"{"size": {"shortest_edge": 384}}"#).unwrap();
        assert_eq!((large.target, large.crop), (Target::Exact { width: 384, height: 384 }, None));
    }

    #[test]
    fn the_named_processor_decides_what_is_left_out() {
        let vit = load_any(r#"{"image_processor_type": "ViTImageProcessor"}"#).unwrap();
        assert_eq!((vit.target, vit.filter), (Target::Exact { width: 224, height: 224 }, Filter::Bilinear));
        let bit = load_any(r#"{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}"#).unwrap();
        assert_eq!((bit.target, bit.crop), (Target::ShortestEdge(256), Some((224, 224))));
        for (json, key) in [
            (r#"{"size": {"width": 8, "height": 8}}"#, "size"),
            (r#"{"crop_pct": 0}"#, "crop_pct = 0"),
            (r#"{"do_center_crop": true}"#, "do_center_crop = true"),
            (r#"{"image_processor_type": "SiglipImageProcessor"}"#, "ConvNextImageProcessor, ViTImageProcessor"),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": {"width": 8, "height": 9}}"#, "only squares"),
        ] {
            let refusal = load_any(json).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains(PREPROCESSOR), "{json}: {refusal}");
        }
    }

    #[test]
    fn empty_short_and_absurdly_long_pictures_are_bad_inputs() {
        let processor = load(r#"{"size": 8, "crop_size": 8}"#, &CLIP).unwrap();
        let bytes = grey(1, 1_000_000);
        for picture in [
            Picture { width: 0, height: 4, rgb: &[] },
            Picture { width: 4, height: 4, rgb: &bytes[..47] },
            Picture { width: 1, height: 1_000_000, rgb: &bytes },
        ] {
            assert!(matches!(processor.process(picture), Err(ModelError::Input { .. })));
        }
    }
}
