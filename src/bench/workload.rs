//! What `assay bench engine` asks: requests of given sizes with made-up texts and pictures, the same for a seed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::Value;

use crate::engine::{Generation, Image, OutputSchema, Pooling, Sampling};
use crate::model::ChatProcessor;

const DEFAULT: &str = include_str!("annotation_workload.toml");
const DEFAULT_SCHEMA: &str = include_str!("../../jobs/product-annotation.output.json");
/// Texts are drawn from its words.
const WORDS: &str = include_str!("../../jobs/product-annotation.toml");
const CATEGORIES: [&str; 4] = [
    "Home & Garden > Kitchen & Dining > Mugs",
    "Home & Garden > Decor > Vases",
    "Apparel & Accessories > Clothing > Shirts",
    "Toys & Games > Puzzles",
];

/// A workload file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    pub assets: usize,
    instruction_tokens: usize,
    prompt_tokens: usize,
    pub answer_tokens: usize,
    #[serde(default)]
    pub pictures: usize,
    #[serde(default = "default_side")]
    picture_side: u32,
    schema: Option<String>,
    #[serde(default)]
    embed: bool,
    #[serde(default)]
    seed: u64,
    #[serde(skip)]
    schema_value: Value,
}

fn default_side() -> u32 {
    336
}

impl Workload {
    /// Reads a workload file, or the one that is built in.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let text = match file {
            Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
            None => DEFAULT.to_owned(),
        };
        let name = file.map_or("the built-in workload".to_owned(), |file| file.display().to_string());
        let mut workload: Self = toml::from_str(&text).with_context(|| name.clone())?;
        if workload.assets == 0 || workload.prompt_tokens == 0 || workload.answer_tokens == 0 {
            bail!("{name}: assets, prompt_tokens and answer_tokens must be at least 1");
        }
        let schema = match (&workload.schema, file) {
            (Some(schema), Some(file)) => {
                let path = file.parent().unwrap_or(Path::new("")).join(schema);
                std::fs::read_to_string(&path).with_context(|| format!("{name}: schema: {}", path.display()))?
            }
            _ => DEFAULT_SCHEMA.to_owned(),
        };
        workload.schema_value = serde_json::from_str(&schema).with_context(|| format!("{name}: schema"))?;
        Ok(workload)
    }

    /// One generation for each asset. `processor` counts tokens; `model` is the name that the engine knows.
    pub fn generations(&self, model: &str, processor: &dyn ChatProcessor) -> Result<Vec<Generation>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let instruction: Option<Arc<str>> = match self.instruction_tokens {
            0 => None,
            tokens => Some(text(tokens, processor, &mut random)?.into()),
        };
        let schema = Arc::new(self.schema_value.clone());
        let choices = vec![("candidate_categories".to_owned(), CATEGORIES.map(str::to_owned).to_vec())];
        (0..self.assets)
            .map(|_| {
                Ok(Generation {
                    model: model.into(),
                    instruction: instruction.clone(),
                    images: (0..self.pictures).map(|_| Arc::new(picture(self.picture_side, &mut random))).collect(),
                    prompt: text(self.prompt_tokens, processor, &mut random)?,
                    output: Some(OutputSchema { schema: schema.clone(), choices: choices.clone() }),
                    sampling: Sampling::default(),
                    max_tokens: self.answer_tokens,
                    deadline: None,
                    pooling: self.embed.then_some(Pooling::Mean),
                })
            })
            .collect()
    }
}

/// Words until there are so many tokens, or a few more.
fn text(tokens: usize, processor: &dyn ChatProcessor, random: &mut ChaCha8Rng) -> Result<String> {
    let words: Vec<&str> = WORDS.split_whitespace().filter(|word| word.len() > 2).collect();
    let mut text = String::new();
    let mut count = 0;
    while count < tokens {
        // Counting is as dear as what is counted, so it is done now and then.
        for _ in 0..((tokens - count) / 4).max(1) {
            text.push_str(words[random.random_range(0..words.len())]);
            text.push(' ');
        }
        count = processor.text(&text)?.ids.len();
    }
    Ok(text)
}

fn picture(side: u32, random: &mut ChaCha8Rng) -> Image {
    let rgb = (0..side * side * 3).map(|_| random.random()).collect();
    Image { width: side, height: side, rgb }
}
