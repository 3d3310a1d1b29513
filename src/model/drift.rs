//! How far a number format leads a generator away from f32: next-token distributions and routers, token by token.
//!
//! The measure of distributions is the Kullback-Leibler divergence of the format's from f32's, in nats, after every token
//! of a prompt. Routers are compared by which experts they choose. This file knows no format: it compares what it sees.

use crate::kv::{BLOCK, BlockId};
use crate::model::api::{Features, Generator, ModelError, Prompt, SequenceStep, Step};
use crate::model::trace::Trace;

/// Tokens of a prompt in one step.
const CHUNK: usize = 256;
/// What the router of a layer shows; its layer follows.
const ROUTER: &str = "text.router_logits_";

/// What a generator says after each token of a prompt.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Logarithms of probabilities, one row a token.
    rows: Vec<Vec<f32>>,
    decisions: Vec<Decision>,
}

/// What a router decides for a token.
#[derive(Debug, Clone, PartialEq)]
struct Decision {
    layer: usize,
    token: usize,
    /// In order of the experts.
    chosen: Vec<usize>,
    /// From the lowest logit that was chosen to the highest that was not.
    margin: f32,
}

/// The sum of what was compared so far.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    pub tokens: usize,
    divergence: f64,
    /// The largest divergence after one token.
    pub largest: f64,
    /// After how many tokens the likeliest next token is the same.
    pub same_likeliest: usize,
    /// Decisions of routers, and how many of them differ.
    pub decisions: usize,
    pub rerouted: usize,
    /// How many of these are no consequence of another one: nothing that the token sees was routed otherwise before.
    pub first_rerouted: usize,
    /// The largest margin, in f32, of those.
    pub widest_margin: f32,
}

/// Runs the prompt alone and keeps what is to be compared.
pub fn observe(generator: &mut dyn Generator, prompt: &Prompt) -> Result<Observed, ModelError> {
    let shape = generator.shape().clone();
    let length = prompt.ids.len();
    let blocks: Vec<BlockId> = (0..length.div_ceil(BLOCK) as u32).map(BlockId).collect();
    let mut cache = generator.cache(blocks.len())?;
    let see = |image: &crate::model::api::PromptImage| generator.see(&image.input, &mut Trace::off());
    let features: Vec<Features> = prompt.images.iter().map(see).collect::<Result<_, _>>()?;
    let mut observed = Observed::default();
    for past in (0..length).step_by(CHUNK) {
        let new = CHUNK.min(length - past);
        let positions: Vec<[u32; 3]> = (past..past + new).map(|index| prompt.position(index)).collect();
        let step = Step {
            tokens: &prompt.ids[past..past + new],
            positions: &positions,
            sequences: &[SequenceStep { new, past, blocks: &blocks }],
            splices: &prompt.splices(past..past + new, 0, &features),
            logits: &(0..new).collect::<Vec<_>>(),
            hidden: &[],
        };
        // Only routers are looked at, and only where there are some.
        let mut trace = if shape.experts.is_some() { Trace::on() } else { Trace::off() };
        let output = generator.step(&step, &mut cache, &mut trace)?;
        let logits = output.logits.into_host()?;
        observed.rows.extend(logits.chunks(shape.vocabulary).map(log_probabilities));
        let active = shape.experts.map_or(0, |(active, _)| active);
        for (name, logits) in trace.into_tensors() {
            let Some(layer) = name.strip_prefix(ROUTER).and_then(|layer| layer.parse().ok()) else { continue };
            for (row, logits) in logits.to_vec2::<f32>()?.iter().enumerate() {
                observed.decisions.push(Decision::of(layer, past + row, logits, active));
            }
        }
    }
    Ok(observed)
}

impl Drift {
    /// Compares what two generators say after the same prompt.
    pub fn add(&mut self, reference: &Observed, other: &Observed) {
        for (p, q) in reference.rows.iter().zip(&other.rows) {
            let divergence = divergence(p, q);
            self.tokens += 1;
            self.divergence += divergence;
            self.largest = self.largest.max(divergence);
            self.same_likeliest += usize::from(highest(p, 1) == highest(q, 1));
        }
        self.decisions += reference.decisions.len();
        let both = reference.decisions.iter().zip(&other.decisions);
        let rerouted: Vec<&Decision> =
            both.filter(|(before, after)| before.chosen != after.chosen).map(|(before, _)| before).collect();
        self.rerouted += rerouted.len();
        let sees = |later: &Decision, before: &Decision| before.layer < later.layer && before.token <= later.token;
        for first in rerouted.iter().filter(|decision| !rerouted.iter().any(|other| sees(decision, other))) {
            self.first_rerouted += 1;
            self.widest_margin = self.widest_margin.max(first.margin);
        }
    }

    /// The divergence of a token, in nats.
    pub fn mean(&self) -> f64 {
        self.divergence / self.tokens.max(1) as f64
    }
}

impl Decision {
    fn of(layer: usize, token: usize, logits: &[f32], active: usize) -> Self {
        let chosen = highest(logits, active);
        let lowest = chosen.iter().map(|expert| logits[*expert]).fold(f32::INFINITY, f32::min);
        let others = logits.iter().enumerate().filter(|(expert, _)| !chosen.contains(expert));
        let margin = lowest - others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        Self { layer, token, chosen, margin }
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    logits.iter().map(|logit| (f64::from(logit - highest) - sum.ln()) as f32).collect()
}

/// Sum of `p * ln(p / q)`, never negative but for rounding.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let parts = p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q)));
    parts.sum::<f64>().max(0.0)
}

/// Where the `count` highest are, in order of place; of equal ones the first.
fn highest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let by_value = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, by_value);
    }
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::kit::Kit;
    use crate::model::registry::load;
    use crate::model::weights::{Precision, Weights};

    #[test]
    fn the_divergence_is_that_of_the_books() {
        let mut drift = Drift::default();
        let observed = |probabilities: &[f32]| Observed {
            rows: vec![probabilities.iter().map(|p| p.ln()).collect()],
            decisions: Vec::new(),
        };
        drift.add(&observed(&[0.5, 0.25, 0.25]), &observed(&[0.25, 0.5, 0.25]));
        assert!((drift.mean() - 0.25 * 2_f64.ln()).abs() < 1e-6);
        drift.add(&observed(&[0.5, 0.5]), &observed(&[0.5, 0.5]));
        assert_eq!((drift.tokens, drift.same_likeliest, drift.decisions), (2, 1, 0));
        assert!((drift.largest - 0.25 * 2_f64.ln()).abs() < 1e-6);
        assert_eq!(highest(&[1.0, 3.0, 3.0, 2.0], 1), [1]);
    }

    #[test]
    fn a_decision_that_follows_from_another_one_is_no_first_one() {
        let observed = |routers: [[[f32; 3]; 2]; 2]| {
            let all = routers.iter().enumerate().flat_map(|(layer, tokens)| {
                tokens.iter().enumerate().map(move |(token, logits)| Decision::of(layer, token, logits, 1))
            });
            Observed { rows: Vec::new(), decisions: all.collect() }
        };
        let reference = observed([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]], [[0.0, 0.0, 3.0], [0.0, 5.0, 0.0]]]);
        let other = observed([[[1.0, 0.0, 0.0], [0.0, 0.7, 0.8]], [[0.0, 4.0, 3.0], [0.0, 5.0, 6.0]]]);
        let mut drift = Drift::default();
        drift.add(&reference, &other);
        // The last one sees that its own token was routed otherwise in the layer before; the other token does not.
        assert_eq!((drift.decisions, drift.rerouted, drift.first_rerouted, drift.widest_margin), (4, 3, 2, 3.0));
    }

    const FORMATS: [Precision; 4] = [Precision::F16, Precision::Bf16, Precision::Q8_0, Precision::Q4K];

    /// Compares every generator of the kit in every format with itself in f32; says and hands out what came of it.
    fn drifts(kit: &Kit) -> Vec<(String, Precision, Drift)> {
        let mut drifts = Vec::new();
        for name in kit.models() {
            let cases = kit.cases(&name);
            if cases.is_empty() {
                continue;
            }
            let model = |precision| load(&kit.model(&name), precision, &Device::Cpu).unwrap().generator.unwrap();
            let mut exact = model(Precision::F32);
            let prompts: Vec<Prompt> = cases.iter().map(|case| kit.prompt(case, exact.processor.as_ref())).collect();
            let reference: Vec<Observed> =
                prompts.iter().map(|prompt| observe(exact.generator.as_mut(), prompt).unwrap()).collect();
            for precision in FORMATS {
                let mut other = model(precision);
                let mut drift = Drift::default();
                for (prompt, reference) in prompts.iter().zip(&reference) {
                    drift.add(reference, &observe(other.generator.as_mut(), prompt).unwrap());
                }
                let Drift { tokens, largest, decisions, rerouted, first_rerouted, widest_margin, .. } = drift;
                eprintln!(
                    "{name:<16} {:<5} KL {:.1e}, at most {largest:.1e}; {} of {tokens} likeliest the same; {rerouted} of {decisions} \
                     decisions differ, {first_rerouted} by themselves, margins to {widest_margin:.1e}",
                    precision.name(),
                    drift.mean(),
                    drift.same_likeliest,
                );
                drifts.push((name.clone(), precision, drift));
            }
        }
        drifts
    }

    #[test]
    fn every_format_stays_near_f32_and_routes_otherwise_at_near_ties_alone() {
        for (name, precision, drift) in drifts(&Kit::own()) {
            let (divergence, margin) = match precision {
                Precision::F32 | Precision::F16 => (1e-4, 0.0),
                Precision::Bf16 => (5e-2, 0.1),
                Precision::Q8_0 => (0.5, 0.5),
                Precision::Q4K => (0.7, 1.0),
            };
            assert!(drift.mean() <= divergence, "{name} {precision:?}: {}", drift.mean());
            assert!(drift.widest_margin <= margin, "{name} {precision:?}: {}", drift.widest_margin);
        }
    }

    /// Whichever kit it is, because nothing is rounded that was not rounded before.
    #[test]
    fn the_format_that_a_model_is_stored_in_changes_no_decision() {
        let kit = Kit::find();
        for (name, precision, drift) in drifts(&kit) {
            let (stored, _) = Weights::open(&kit.model(&name), Precision::F32, &Device::Cpu).unwrap().stored();
            if stored.len() == 1 && stored.keys().all(|format| format.to_lowercase() == precision.name()) {
                assert!(drift.mean() < 1e-9, "{name} {precision:?}: {}", drift.mean());
                assert_eq!(drift.rerouted, 0, "{name} {precision:?}");
            }
        }
    }
}
