//! `assay bench model`: prefill and decode of a generator by itself, in each number format, beside Hugging Face transformers.
//!
//! Every case runs in a process of its own, in turns, so that memory is its own and a slow moment of the machine hits all.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::memory::peak_mebibytes;
use super::process::{Scratch, median_by, said, torch_dtype};
use super::random_model::RandomModel;
use crate::kv::{BLOCK, BlockId, KvStore};
use crate::model::{self, Ceilings, Generator, Precision, SequenceStep, Step, Trace};

/// The same work in Python.
const REFERENCE: &str = include_str!("reference.py");

/// What to measure.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A model directory, a GGUF file, or hf://org/name[@revision]; without it one with random weights.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The random model.
    #[arg(long, value_enum, default_value = "llama3")]
    random: RandomModel,
    /// Number formats to compare.
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16,q8_0,q4k")]
    dtypes: Vec<Precision>,
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Prompts of the prefill, and sequences that decode side by side.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens that each sequence decodes.
    #[arg(long, default_value_t = 32)]
    decode: usize,
    /// How often each case is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A Python with torch and transformers, to measure these on the same weights, too.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Measure once in this process; used by the command itself.
    #[arg(long, hide = true)]
    once: bool,
}

/// One case, measured once.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    case: String,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    /// Of the weights as they are held, and the process's peak after loading; both 0 where nobody counts them.
    held_mebibytes: f64,
    loaded_mebibytes: f64,
    /// Of a GPU's large matrix products in the same format, and of its large copies; 0 on the CPU, and where it is not
    /// known how much is multiplied or read.
    prefill_share: f64,
    decode_share: f64,
}

/// Measures every case and prints medians and ratios.
pub fn model(args: &ModelArgs) -> Result<()> {
    if args.prompt == 0 || args.batch == 0 || args.decode == 0 || args.rounds == 0 || args.dtypes.is_empty() {
        bail!("--prompt, --batch, --decode and --rounds must be at least 1, and --dtypes name at least one");
    }
    if args.once {
        println!("{}", serde_json::to_string(&measure(args)?)?);
        return Ok(());
    }
    let scratch = Scratch::new("model")?;
    let directory = args.random.unless_given(args.model.as_deref(), &scratch)?;
    let mut rounds: Vec<Vec<Measured>> = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        let mut cases = Vec::new();
        if let Some(python) = &args.python {
            cases.push(in_python(python, &directory, args)?);
        }
        for dtype in &args.dtypes {
            cases.push(in_own_process(*dtype, &directory, args)?);
        }
        rounds.push(cases);
    }
    let medians: Vec<Measured> = (0..rounds[0].len()).map(|case| median(&rounds, case)).collect();
    if args.json {
        for case in &medians {
            println!("{}", serde_json::to_string(case)?);
        }
    } else {
        print_table(&medians);
    }
    Ok(())
}

fn median(rounds: &[Vec<Measured>], case: usize) -> Measured {
    let middle = |value: fn(&Measured) -> f64| median_by(rounds.iter().map(|cases| value(&cases[case])));
    Measured {
        case: rounds[0][case].case.clone(),
        prefill_tokens_per_second: middle(|case| case.prefill_tokens_per_second),
        decode_tokens_per_second: middle(|case| case.decode_tokens_per_second),
        held_mebibytes: middle(|case| case.held_mebibytes),
        loaded_mebibytes: middle(|case| case.loaded_mebibytes),
        prefill_share: middle(|case| case.prefill_share),
        decode_share: middle(|case| case.decode_share),
    }
}

fn print_table(cases: &[Measured]) {
    println!(
        "{:<18} {:>14} {:>14} {:>9} {:>11} {:>12} {:>12}   ratios to {}",
        "case", "prefill tok/s", "decode tok/s", "held MiB", "loaded MiB", "of products", "of copies", cases[0].case
    );
    for case in cases {
        let Measured { case: name, prefill_tokens_per_second: prefill, decode_tokens_per_second: decode, .. } = case;
        let memory = |mebibytes: f64| if mebibytes > 0.0 { format!("{mebibytes:.0}") } else { "-".to_owned() };
        let share = |share: f64| if share > 0.0 { format!("{:.0} %", 100.0 * share) } else { "-".to_owned() };
        println!(
            "{name:<18} {prefill:>14.0} {decode:>14.1} {:>9} {:>11} {:>12} {:>12}   prefill {:.2}, decode {:.2}",
            memory(case.held_mebibytes),
            memory(case.loaded_mebibytes),
            share(case.prefill_share),
            share(case.decode_share),
            prefill / cases[0].prefill_tokens_per_second,
            decode / cases[0].decode_tokens_per_second,
        );
    }
}

fn in_own_process(dtype: Precision, directory: &Path, args: &ModelArgs) -> Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--log", "warn", "bench", "model", "--once", "--device", &args.device, "--model"]).arg(directory);
    command.args(["--dtypes", dtype.name()]).args(sizes(args));
    said(command, dtype.name())
}

fn in_python(python: &Path, directory: &Path, args: &ModelArgs) -> Result<Measured> {
    let mut command = Command::new(python);
    command.args(["-c", REFERENCE]).arg(directory).args(sizes(args));
    command.args(["--dtype", torch_dtype(args.dtypes[0], &args.device)]);
    command.args(["--device", &args.device, "--threads", &rayon::current_num_threads().to_string()]);
    said(command, &python.display().to_string())
}

fn sizes(args: &ModelArgs) -> Vec<String> {
    [("--prompt", args.prompt), ("--batch", args.batch), ("--decode", args.decode)]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value.to_string()])
        .collect()
}

fn measure(args: &ModelArgs) -> Result<Measured> {
    let directory = args.model.as_deref().context("--once needs --model")?;
    let before = peak_mebibytes().unwrap_or_default();
    let device = model::open_device(&args.device)?;
    let loaded = model::load(directory, args.dtypes[0], &device)?;
    let loaded_mebibytes = peak_mebibytes().map_or(0.0, |peak| peak - before);
    let held_mebibytes = loaded.held.bytes() as f64 / f64::from(1 << 20);
    let amounts = if device.is_cpu() { None } else { Amounts::of(&loaded, args) };
    let mut generator = match loaded.generator {
        Some(parts) => parts.generator,
        None => bail!("{}: {} writes nothing; name a model that generates", directory.display(), loaded.architecture),
    };
    let mut batch = Batch::new(generator.as_mut(), args)?;
    // The first steps pay for pages and threads.
    batch.prefill(generator.as_mut(), 0)?;
    let started = Instant::now();
    for sequence in 0..args.batch {
        batch.prefill(generator.as_mut(), sequence)?;
    }
    let prefill = started.elapsed().as_secs_f64();
    batch.decode(generator.as_mut(), 0)?;
    let started = Instant::now();
    for step in 1..=args.decode {
        batch.decode(generator.as_mut(), step)?;
    }
    let decode = started.elapsed().as_secs_f64();
    drop((batch, generator));
    let (prefill_share, decode_share) = match amounts {
        Some(amounts) => {
            let ceilings = Ceilings::measure(args.dtypes[0], &device)?;
            eprintln!("{ceilings}");
            amounts.shares(prefill / args.batch as f64, decode / args.decode as f64, ceilings)
        }
        None => (0.0, 0.0),
    };
    Ok(Measured {
        case: args.dtypes[0].name().to_owned(),
        prefill_tokens_per_second: (args.batch * args.prompt) as f64 / prefill,
        decode_tokens_per_second: (args.batch * args.decode) as f64 / decode,
        held_mebibytes,
        loaded_mebibytes,
        prefill_share,
        decode_share,
    })
}

/// What a prefill multiplies and a decode step reads, at least.
struct Amounts {
    /// Floating-point operations of one prompt: two a weight and token, and attention's.
    prefill_operations: f64,
    /// Of the weights and of the cached keys and values.
    decode_bytes: f64,
}

impl Amounts {
    /// None where not every token sees every weight, or blocks of integers are multiplied.
    fn of(loaded: &model::Loaded, args: &ModelArgs) -> Option<Self> {
        let size = match args.dtypes[0] {
            Precision::F32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
            Precision::Q8_0 | Precision::Q4K => return None,
        };
        let shape = loaded.generator.as_ref()?.generator.shape();
        if shape.experts.is_some() {
            return None;
        }
        let layers = loaded.held.0.iter().filter(|tensor| tensor.name.contains("layers."));
        let (parameters, bytes) =
            layers.fold((0, 0), |(parameters, bytes), tensor| (parameters + tensor.parameters, bytes + tensor.bytes));
        let head = shape.vocabulary * shape.hidden * size;
        // Each token meets half of the prompt on average, with products for scores and for values.
        let heads = args.prompt as f64 * (shape.layers * shape.hidden) as f64 * 2.0 * args.prompt as f64;
        let context = args.prompt + args.decode / 2;
        let cached = args.batch * context * 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.cached_bytes;
        Some(Self {
            prefill_operations: 2.0 * parameters as f64 * args.prompt as f64 + heads,
            decode_bytes: (bytes + head + cached) as f64,
        })
    }

    /// Of the device's ceilings, given the seconds of one prompt and of one decode step.
    fn shares(&self, prefill: f64, decode: f64, ceilings: Ceilings) -> (f64, f64) {
        let products = self.prefill_operations / prefill / ceilings.operations_per_second;
        (products, self.decode_bytes / decode / ceilings.bytes_per_second)
    }
}

/// Sequences of equal length and the token that each goes on with.
struct Batch {
    prompts: Vec<Vec<u32>>,
    next: Vec<u32>,
    tables: Vec<Vec<BlockId>>,
    cache: KvStore,
    vocabulary: usize,
}

impl Batch {
    fn new(generator: &mut dyn Generator, args: &ModelArgs) -> Result<Self> {
        let vocabulary = generator.shape().vocabulary;
        let blocks = (args.prompt + args.decode + 1).div_ceil(BLOCK);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let prompts = (0..args.batch)
            .map(|_| (0..args.prompt).map(|_| random.random_range(3..vocabulary as u32)).collect())
            .collect();
        let table =
            |sequence: usize| (sequence * blocks..(sequence + 1) * blocks).map(|id| BlockId(id as u32)).collect();
        Ok(Self {
            prompts,
            next: vec![0; args.batch],
            tables: (0..args.batch).map(table).collect(),
            cache: generator.cache(blocks * args.batch)?,
            vocabulary,
        })
    }

    fn prefill(&mut self, generator: &mut dyn Generator, sequence: usize) -> Result<()> {
        let tokens = &self.prompts[sequence];
        let positions: Vec<[u32; 3]> = (0..tokens.len() as u32).map(|position| [position; 3]).collect();
        let step = Step {
            tokens,
            positions: &positions,
            sequences: &[SequenceStep { new: tokens.len(), past: 0, blocks: &self.tables[sequence] }],
            splices: &[],
            logits: &[tokens.len() - 1],
            hidden: &[],
        };
        let output = generator.step(&step, &mut self.cache, &mut Trace::off())?;
        self.next[sequence] = output.logits.likeliest(&[None], self.vocabulary)?[0].token;
        Ok(())
    }

    fn decode(&mut self, generator: &mut dyn Generator, step: usize) -> Result<()> {
        let past = self.prompts[0].len() + step;
        let positions = vec![[past as u32; 3]; self.next.len()];
        let sequences: Vec<SequenceStep<'_>> =
            self.tables.iter().map(|blocks| SequenceStep { new: 1, past, blocks }).collect();
        let rows: Vec<usize> = (0..self.next.len()).collect();
        let step = Step {
            tokens: &self.next,
            positions: &positions,
            sequences: &sequences,
            splices: &[],
            logits: &rows,
            hidden: &[],
        };
        let output = generator.step(&step, &mut self.cache, &mut Trace::off())?;
        let best = output.logits.likeliest(&vec![None; rows.len()], self.vocabulary)?;
        self.next = best.into_iter().map(|best| best.token).collect();
        Ok(())
    }
}
