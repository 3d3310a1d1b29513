//! `assay model try`: one answer of a generator on the terminal, token by token.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::config::hub_options;
use crate::media::{self, DecodeLimits, Picture};
use crate::model::{self, Ended, Message, Part, Precision, Role, TextStream};

/// Limits of a picture that somebody names on the command line.
const LIMITS: DecodeLimits = DecodeLimits { pixels: 100_000_000, side: 32_768, allocation: 800_000_000 };

/// What to ask which model.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or hf://org/name[@revision].
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What to ask.
    #[arg(long)]
    prompt: String,
    /// A picture to show before the prompt; may be given several times.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// What the system message says.
    #[arg(long)]
    system: Option<String>,
    /// The number format of the weights: f32, f16, bf16, q8_0 or q4k.
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// Where to compute: cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The most tokens of the answer.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
}

/// Prints the answer while it is written. Blocking.
pub fn run(args: &TryArgs) -> Result<()> {
    let pictures: Vec<Picture> = args.images.iter().map(|file| picture(file)).collect::<Result<_>>()?;
    let device = model::open_device(&args.device)?;
    let path = model::locate(&args.model, &hub_options())?;
    let loaded = model::load(&path, args.dtype, &device)?;
    let Some(mut parts) = loaded.generator else {
        bail!("{}: {} writes nothing; name a model that generates", args.model.display(), loaded.architecture);
    };
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(Message { role: Role::System, parts: vec![Part::Text(system)] });
    }
    let shown = pictures
        .iter()
        .map(|picture| Part::Image(model::Picture { width: picture.width, height: picture.height, rgb: &picture.rgb }));
    messages.push(Message { role: Role::User, parts: shown.chain([Part::Text(&args.prompt)]).collect() });
    let prompt = parts.processor.prompt(&messages)?;
    let mut out = std::io::stdout().lock();
    let mut stream = TextStream::default();
    let mut broken = None;
    let processor = parts.processor.as_ref();
    let ended = model::answer(parts.generator.as_mut(), &prompt, args.max_tokens, |id| {
        let text = stream.push(id, processor)?;
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            broken = Some(error);
            return Ok(false);
        }
        Ok(true)
    })?;
    if let Some(error) = broken {
        // Whoever read the answer has seen enough.
        return if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) };
    }
    writeln!(out, "{}", stream.finish(processor)?)?;
    if ended == Ended::Length {
        eprintln!("the answer was cut after {} tokens; --max-tokens allows more", args.max_tokens);
    }
    Ok(())
}

fn picture(file: &Path) -> Result<Picture> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    media::decode(&bytes, &LIMITS).with_context(|| file.display().to_string())
}
