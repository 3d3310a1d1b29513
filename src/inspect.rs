//! `assay model inspect`: what a model directory is and what it would cost, without loading its weights.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;

use anyhow::Result;

use crate::config::hub_options;
use crate::model::{self, GeneratorShape, Held, HeldTensor, Outline, Precision};

/// Parts of a model by what the tensors' names contain; the first that fits counts.
const PARTS: [(&str, &[&str]); 8] = [
    ("vision tower", &["vision", "visual"]),
    ("routed experts", &[".experts."]),
    ("routers", &[".router."]),
    ("norms", &["norm", "LayerNorm"]),
    ("attention", &["attn", "attention"]),
    ("embeddings", &["embed"]),
    ("head", &["lm_head"]),
    ("feed-forward", &["mlp", "feed_forward", "intermediate", "output.dense", "shared_expert"]),
];
const OTHER: &str = "other";

/// Prints what the model at `location` is when it is held as `precision`.
pub fn run(location: &Path, precision: Precision) -> Result<()> {
    let path = model::locate(location, &hub_options())?;
    print!("{}", Report { outline: &model::outline(&path, precision)?, precision });
    Ok(())
}

struct Report<'a> {
    outline: &'a Outline,
    precision: Precision,
}

impl Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outline { architecture, held, stored, unread, encoder, generator } = self.outline;
        let shape = generator.as_ref().map(|parts| parts.generator.shape());
        let mut line = |name: &str, value: &dyn Display| writeln!(out, "{name:<17}{value}");
        line("architecture", architecture)?;
        line("parameters", &parameters(held, shape))?;
        line(
            "stored as",
            &stored
                .iter()
                .map(|(format, count)| format!("{} in {format}", short(*count)))
                .collect::<Vec<_>>()
                .join(", "),
        )?;
        line("held as", &format!("{}: {}", self.precision.name(), mebibytes(held.bytes())))?;
        for (part, (count, bytes)) in parts(held) {
            line(&format!("  {part}"), &format!("{:>12}  {} parameters", mebibytes(bytes), short(count)))?;
        }
        if let Some(shape) = shape {
            let bytes = kv_bytes(shape);
            let (format, other) = match shape.cached_bytes {
                2 => ("f16", "twice as many in f32"),
                _ => ("f32", "half of it in 16 bits"),
            };
            let GeneratorShape { layers, kv_heads, head_dim, context, .. } = shape;
            line(
                "KV cache",
                &format!(
                    "{bytes} bytes a token in {format} ({layers} layers, {kv_heads} heads of {head_dim}); {other}, on a GPU"
                ),
            )?;
            line("context", &format!("{context} tokens: {} of cache in {format}", mebibytes(bytes * context)))?;
        }
        if let Some(parts) = encoder {
            let takes = match (parts.encoder.takes_texts(), parts.encoder.takes_images()) {
                (true, true) => "texts and pictures",
                (true, false) => "texts",
                _ => "pictures",
            };
            line("embeds", &format!("{takes}, to {} numbers", parts.encoder.dimensions()))?;
        }
        if let Some(parts) = generator {
            match parts.processor.picture_unit() {
                Some((unit, tokens)) => line("pictures", &format!("{tokens} prompt token(s) for each {unit}"))?,
                None => line("pictures", &"none: the model takes texts only")?,
            }
        }
        let coarser: Vec<&HeldTensor> = held.0.iter().filter(|tensor| tensor.instead_of.is_some()).collect();
        if let Some(first) = coarser.first() {
            let detail = format!(
                "{} maps are wider formats, because blocks do not divide their rows; {first} is one",
                coarser.len()
            );
            line("not quantised", &detail)?;
        }
        match &unread[..] {
            [] => line("unsupported", &"nothing: every stored tensor is used"),
            [first, ..] => {
                line("unsupported", &format!("{} stored tensors are not looked at; {first} is one", unread.len()))
            }
        }
    }
}

/// Total, and what a token passes through.
fn parameters(held: &Held, shape: Option<&GeneratorShape>) -> String {
    let total = held.parameters();
    let Some((active, of)) = shape.and_then(|shape| shape.experts) else { return short(total) };
    let routed: usize =
        held.0.iter().filter(|tensor| part(&tensor.name) == PARTS[1].0).map(|tensor| tensor.parameters).sum();
    format!(
        "{}, of which a token sees {} ({active} of {of} experts)",
        short(total),
        short(total - routed + routed / of * active)
    )
}

fn part(name: &str) -> &'static str {
    let found = PARTS.iter().find(|(_, marks)| marks.iter().any(|mark| name.contains(mark)));
    found.map_or(OTHER, |(part, _)| part)
}

/// Parameters and bytes of each part.
fn parts(held: &Held) -> BTreeMap<&'static str, (usize, usize)> {
    let mut parts = BTreeMap::new();
    for tensor in &held.0 {
        let (count, bytes): &mut (usize, usize) = parts.entry(part(&tensor.name)).or_default();
        *count += tensor.parameters;
        *bytes += tensor.bytes;
    }
    parts
}

/// Keys and values of one token in all layers.
fn kv_bytes(shape: &GeneratorShape) -> usize {
    2 * shape.layers * shape.kv_heads * shape.head_dim * shape.cached_bytes
}

fn short(count: usize) -> String {
    match count {
        1_000_000_000.. => format!("{:.2} billion", count as f64 / 1e9),
        1_000_000.. => format!("{:.1} million", count as f64 / 1e6),
        _ => count.to_string(),
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, precision: Precision) -> String {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/models").join(name);
        Report { outline: &model::outline(&directory, precision).unwrap(), precision }.to_string()
    }

    #[test]
    fn a_mixture_of_experts_shows_its_active_parameters_and_what_a_tile_costs() {
        let report = report("llama4-a", Precision::F32);
        // 8 layers of 4 experts of [64, 2 * width] and [width, 64], of which a token sees one.
        for part in [
            "Llama4ForConditionalGeneration",
            "869696,",
            "1 of 4 experts",
            "tile of 84 x 84",
            "every stored tensor is used",
        ] {
            assert!(report.contains(part), "{part} is missing in\n{report}");
        }
        // 8 layers of 2 heads of 16, keys and values, four bytes each.
        assert!(report.contains("2048 bytes a token"), "{report}");
    }

    #[test]
    fn what_blocks_do_not_divide_is_said() {
        let report = report("bert-minilm", Precision::Q4K);
        for part in ["BertModel", "embeds           texts, to 72 numbers", "not quantised"] {
            assert!(report.contains(part), "{part} is missing in\n{report}");
        }
    }
}
