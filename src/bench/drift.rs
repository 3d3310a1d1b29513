//! `assay model drift`: how far each number format leads a model's next-token distributions and routers away from f32.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::process::Scratch;
use super::random_model::{RandomModel, VOCABULARY};
use crate::model::{self, ChatProcessor, Drift, GeneratorParts, Message, Observed, Part, Precision, Prompt, Role};

/// What is asked when nobody says otherwise.
const PROMPTS: &str = include_str!("prompts.txt");
/// Of the random model: ids drawn from all of its embeddings, of which its small tokenizer would use a few.
const RANDOM_PROMPTS: usize = 8;
const RANDOM_LENGTH: usize = 64;

/// What to compare.
#[derive(Debug, Args)]
pub struct DriftArgs {
    /// A model directory, a GGUF file, or hf://org/name[@revision]; without it a random Llama 3 of 128 million parameters.
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Number formats to compare with f32.
    #[arg(long, value_delimiter = ',', default_value = "f16,bf16,q8_0,q4k")]
    dtypes: Vec<Precision>,
    /// A text file with one prompt a line; without it some questions about products.
    #[arg(long, value_name = "FILE", requires = "model")]
    prompts: Option<PathBuf>,
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Prints a line for each format. Blocking.
pub fn drift(args: &DriftArgs) -> Result<()> {
    let scratch = Scratch::new("drift")?;
    let directory = RandomModel::Llama3.unless_given(args.model.as_deref(), &scratch)?;
    let mut exact = generator(&directory, Precision::F32, &args.device)?;
    let prompts = match args.model {
        Some(_) => prompts(args.prompts.as_deref(), exact.processor.as_ref())?,
        None => random_prompts(),
    };
    let reference = observe(&mut exact, &prompts)?;
    drop(exact);
    println!(
        "{:<6} {:>7} {:>9} {:>11} {:>15}   routed otherwise",
        "held", "tokens", "mean KL", "largest KL", "same likeliest"
    );
    for dtype in &args.dtypes {
        let mut other = generator(&directory, *dtype, &args.device)?;
        let mut drift = Drift::default();
        for (reference, other) in reference.iter().zip(observe(&mut other, &prompts)?) {
            drift.add(reference, &other);
        }
        print_line(*dtype, &drift);
    }
    Ok(())
}

fn print_line(dtype: Precision, drift: &Drift) {
    let same = 100.0 * drift.same_likeliest as f64 / drift.tokens.max(1) as f64;
    let Drift { tokens, largest, decisions, rerouted, first_rerouted, widest_margin, .. } = drift;
    let routed = match (decisions, rerouted) {
        (0, _) => "-".to_owned(),
        (_, 0) => format!("0 of {decisions}"),
        _ => format!("{rerouted} of {decisions}; {first_rerouted} by themselves, f32 margins to {widest_margin:.1e}"),
    };
    println!("{:<6} {tokens:>7} {:>9.1e} {largest:>11.1e} {same:>13.1} %   {routed}", dtype.name(), drift.mean());
}

fn generator(directory: &Path, dtype: Precision, device: &str) -> Result<GeneratorParts> {
    let loaded = model::load(directory, dtype, &model::open_device(device)?)?;
    match loaded.generator {
        Some(parts) => Ok(parts),
        None => bail!("{}: {} writes nothing; name a model that generates", directory.display(), loaded.architecture),
    }
}

fn observe(parts: &mut GeneratorParts, prompts: &[Prompt]) -> Result<Vec<Observed>> {
    prompts.iter().map(|prompt| Ok(model::observe(parts.generator.as_mut(), prompt)?)).collect()
}

/// As a user's message each, or as plain texts for a model without a template.
fn prompts(file: Option<&Path>, processor: &dyn ChatProcessor) -> Result<Vec<Prompt>> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None => PROMPTS.to_owned(),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        bail!("there is no prompt; write one a line");
    }
    let prompt = |line: &&str| {
        let message = Message { role: Role::User, parts: vec![Part::Text(line)] };
        Ok(processor.prompt(&[message]).or_else(|_| processor.text(line))?)
    };
    lines.iter().map(prompt).collect()
}

fn random_prompts() -> Vec<Prompt> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut ids = || (0..RANDOM_LENGTH).map(|_| random.random_range(3..VOCABULARY as u32)).collect();
    let positions: Vec<[u32; 3]> = (0..RANDOM_LENGTH as u32).map(|position| [position; 3]).collect();
    let prompt = |ids| Prompt { ids, positions: positions.clone(), position_offset: 0, images: Vec::new() };
    (0..RANDOM_PROMPTS).map(|_| prompt(ids())).collect()
}
