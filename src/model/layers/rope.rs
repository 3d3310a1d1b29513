//! Rotary position embedding (Su et al., 2021) with the scalings and axes that the families use.
//!
//! Angles are worked out per step on the CPU, in f32 from f64 frequencies, and shared by all layers.

use std::f64::consts::TAU;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

use crate::model::api::ModelError;

/// Which components form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// 0 and 1, 2 and 3, and so on.
    Adjacent,
    /// The first of the lower half with the first of the upper half, and so on.
    Halves,
}

/// Which of the three position axes a frequency follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Axes {
    /// Positions have one axis.
    One,
    /// Runs of frequencies: so many for time, then for height, then for width (Qwen2.5-VL).
    Sections([usize; 3]),
    /// Time, height and width take turns while height and width have frequencies left, then time (Qwen3-VL).
    Interleaved([usize; 3]),
}

/// The rotation of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// `[head_dim / 2]`, radians per position.
    frequencies: Vec<f64>,
    pairing: Pairing,
    /// The axis of each frequency.
    axes: Vec<usize>,
}

/// What config.json says of the rotation, in either dialect: `rope_parameters`, or `rope_theta` beside `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeSettings {
    pub rope_theta: Option<f64>,
    pub rope_scaling: Option<RopeKind>,
    pub rope_parameters: Option<RopeKind>,
}

/// The inner object of both dialects.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeKind {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    old_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    mrope_section: Option<[usize; 3]>,
    mrope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f64>,
}

impl RopeSettings {
    /// The same, with axes taking turns whatever the file says.
    pub fn by_turns(mut self) -> Self {
        for kind in [&mut self.rope_parameters, &mut self.rope_scaling].into_iter().flatten() {
            kind.mrope_interleaved = Some(true);
        }
        self
    }

    /// Whether frequencies are shared out among several axes.
    pub fn has_sections(&self) -> bool {
        let kinds = [&self.rope_parameters, &self.rope_scaling];
        kinds.into_iter().flatten().any(|kind| kind.mrope_section.is_some())
    }
}

impl Rope {
    /// Reads the settings of a text decoder. `default_theta` is the family's; `file` and `section` are named by errors.
    pub fn read(
        settings: &RopeSettings,
        default_theta: f64,
        head_dim: usize,
        pairing: Pairing,
        (file, section): (&Path, &str),
    ) -> std::result::Result<Self, ModelError> {
        let name = if settings.rope_parameters.is_some() { "rope_parameters" } else { "rope_scaling" };
        let key = |inner: &str| format!("{section}{name}.{inner}");
        let kind = settings.rope_parameters.clone().or_else(|| settings.rope_scaling.clone()).unwrap_or_default();
        let theta = kind.rope_theta.or(settings.rope_theta).unwrap_or(default_theta);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ModelError::malformed(
                file,
                format!("{section}head_dim {head_dim} cannot be rotated: it is odd"),
            ));
        }
        if let Some(part) = kind.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(ModelError::unsupported(file, &key("partial_rotary_factor"), part, "only 1.0 is"));
        }
        let pairs = head_dim / 2;
        let mut frequencies: Vec<f64> =
            (0..pairs).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64)).collect();
        match kind.rope_type.as_deref().or(kind.old_type.as_deref()).unwrap_or("default") {
            "default" | "mrope" => {}
            "linear" => {
                let factor = needed(kind.factor, &key("factor"), file)?;
                frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            "llama3" => {
                let scaling = Llama3 {
                    factor: needed(kind.factor, &key("factor"), file)?,
                    low: needed(kind.low_freq_factor, &key("low_freq_factor"), file)?,
                    high: needed(kind.high_freq_factor, &key("high_freq_factor"), file)?,
                    context: needed(
                        kind.original_max_position_embeddings,
                        &key("original_max_position_embeddings"),
                        file,
                    )?,
                };
                frequencies.iter_mut().for_each(|frequency| *frequency = scaling.apply(*frequency));
            }
            other => {
                let advice = "default, linear, llama3 and mrope are";
                return Err(ModelError::unsupported(file, &key("rope_type"), other, advice));
            }
        }
        let axes = match kind.mrope_section {
            None => Axes::One,
            Some(sections) if sections.iter().sum::<usize>() != pairs => {
                let detail = format!("{} {sections:?} does not sum up to {pairs}", key("mrope_section"));
                return Err(ModelError::malformed(file, detail));
            }
            Some(sections) if kind.mrope_interleaved == Some(true) => Axes::Interleaved(sections),
            Some(sections) => Axes::Sections(sections),
        };
        Ok(Self { axes: axes.of_frequencies(pairs), frequencies, pairing })
    }

    /// Reads the settings of a vision tower: half of the pairs follow the first of `axes`, half the second, with the same
    /// frequencies.
    pub fn read_axial(
        settings: &RopeSettings,
        head_dim: usize,
        pairing: Pairing,
        axes: [usize; 2],
        (file, section): (&Path, &str),
    ) -> std::result::Result<Self, ModelError> {
        const THETA: f64 = 10_000.0;
        let name = if settings.rope_parameters.is_some() { "rope_parameters" } else { "rope_scaling" };
        let kind = settings.rope_parameters.clone().or_else(|| settings.rope_scaling.clone()).unwrap_or_default();
        let theta = kind.rope_theta.or(settings.rope_theta).unwrap_or(THETA);
        if head_dim == 0 || !head_dim.is_multiple_of(4) {
            let detail = format!("{section}heads of {head_dim} cannot be rotated on two axes: no multiple of 4");
            return Err(ModelError::malformed(file, detail));
        }
        match kind.rope_type.as_deref().or(kind.old_type.as_deref()).unwrap_or("axial") {
            "axial" | "default" => {}
            other => {
                let key = format!("{section}{name}.rope_type");
                return Err(ModelError::unsupported(file, &key, other, "axial and default are"));
            }
        }
        let half = head_dim / 4;
        let each: Vec<f64> = (0..half).map(|pair| theta.powf(-(pair as f64) / half as f64)).collect();
        let axes = axes.into_iter().flat_map(|axis| vec![axis; half]).collect();
        Ok(Self { frequencies: [each.as_slice(), each.as_slice()].concat(), pairing, axes })
    }

    /// The same with each frequency divided by its own factor.
    pub fn slowed(mut self, factors: &[f32]) -> Self {
        for (frequency, factor) in self.frequencies.iter_mut().zip(factors) {
            *frequency /= f64::from(*factor);
        }
        self
    }

    /// Cosines and sines, `[rows, head_dim / 2]` each, for positions on the three axes.
    pub fn angles(&self, positions: &[[u32; 3]], dtype: DType, device: &Device) -> Result<Angles> {
        let size = (positions.len(), self.frequencies.len());
        let mut cosines = Vec::with_capacity(size.0 * size.1);
        let mut sines = Vec::with_capacity(size.0 * size.1);
        for position in positions {
            for (frequency, axis) in self.frequencies.iter().zip(&self.axes) {
                // The reference multiplies in f32; so must we, or late positions differ.
                let angle = position[*axis] as f32 * *frequency as f32;
                let (sine, cosine) = angle.sin_cos();
                cosines.push(cosine);
                sines.push(sine);
            }
        }
        let tensor = |values| Tensor::from_vec(values, size, device)?.to_dtype(dtype);
        Ok(Angles { cosines: tensor(cosines)?, sines: tensor(sines)?, pairing: self.pairing })
    }
}

/// The rotation of one step's rows.
#[derive(Debug, Clone)]
pub struct Angles {
    cosines: Tensor,
    sines: Tensor,
    pairing: Pairing,
}

impl Angles {
    /// Cosines and sines, `[rows, head_dim / 2]` each, and whether neighbours are turned together.
    pub fn parts(&self) -> (&Tensor, &Tensor, bool) {
        (&self.cosines, &self.sines, self.pairing == Pairing::Adjacent)
    }

    /// Rotates `[heads, rows, head_dim]`.
    pub fn rotate(&self, heads: &Tensor) -> Result<Tensor> {
        let heads = heads.contiguous()?.unsqueeze(0)?;
        let rotated = match self.pairing {
            Pairing::Adjacent => candle_nn::rotary_emb::rope_i(&heads, &self.cosines, &self.sines)?,
            Pairing::Halves => candle_nn::rotary_emb::rope(&heads, &self.cosines, &self.sines)?,
        };
        rotated.squeeze(0)
    }
}

impl Axes {
    fn of_frequencies(&self, count: usize) -> Vec<usize> {
        match self {
            Self::One => vec![0; count],
            Self::Sections(sections) => {
                sections.iter().enumerate().flat_map(|(axis, length)| vec![axis; *length]).collect()
            }
            Self::Interleaved(sections) => (0..count)
                .map(|index| match index % 3 {
                    axis @ (1 | 2) if index < sections[axis] * 3 => axis,
                    _ => 0,
                })
                .collect(),
        }
    }
}

/// The scaling of Llama 3.1: long waves are stretched, short ones kept, with a ramp between.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f64) -> f64 {
        let wave = TAU / frequency;
        if wave > self.context / self.low {
            frequency / self.factor
        } else if wave < self.context / self.high {
            frequency
        } else {
            let share = (self.context / wave - self.low) / (self.high - self.low);
            (1.0 - share) * frequency / self.factor + share * frequency
        }
    }
}

fn needed(value: Option<f64>, key: &str, file: &Path) -> std::result::Result<f64, ModelError> {
    value
        .filter(|value| *value > 0.0)
        .ok_or_else(|| ModelError::malformed(file, format!("{key} must be a positive number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, head_dim: usize) -> std::result::Result<Rope, ModelError> {
        let settings: RopeSettings = serde_json::from_str(json).unwrap();
        Rope::read(&settings, 10_000.0, head_dim, Pairing::Halves, (Path::new("config.json"), "text_config."))
    }

    #[test]
    fn both_dialects_say_the_same() {
        let inner = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48"#;
        let new = read(&format!(r#"{{"rope_parameters": {{"rope_theta": 500000.0, {inner}}}}}"#), 16).unwrap();
        let old = read(&format!(r#"{{"rope_theta": 500000.0, "rope_scaling": {{{inner}}}}}"#), 16).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.frequencies[0], 1.0);
        assert!((new.frequencies[7] * 8.0 - 500_000_f64.powf(-14.0 / 16.0)).abs() < 1e-12);
        assert_eq!(read("{}", 16).unwrap().frequencies[1], 10_000_f64.powf(-2.0 / 16.0));
    }

    #[test]
    fn axes_are_shared_out_in_runs_or_by_turns() {
        assert_eq!(Axes::Sections([1, 2, 1]).of_frequencies(4), [0, 1, 1, 2]);
        assert_eq!(Axes::Interleaved([4, 2, 2]).of_frequencies(8), [0, 1, 2, 0, 1, 2, 0, 0]);
    }

    #[test]
    fn what_is_unknown_or_does_not_fit_is_refused_with_its_key() {
        for (json, key) in [
            (r#"{"rope_scaling": {"type": "yarn", "factor": 2.0}}"#, "text_config.rope_scaling.rope_type = yarn"),
            (r#"{"rope_parameters": {"rope_type": "linear"}}"#, "text_config.rope_parameters.factor"),
            (r#"{"rope_parameters": {"mrope_section": [1, 1, 1]}}"#, "mrope_section [1, 1, 1]"),
        ] {
            let refusal = read(json, 16).unwrap_err().to_string();
            assert!(refusal.contains(key) && refusal.contains("config.json"), "{refusal}");
        }
    }
}
