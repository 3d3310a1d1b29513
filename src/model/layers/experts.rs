//! A mixture of experts as Llama 4 has it: a router picks for each token, a shared expert sees all of them.
//!
//! An expert runs only for its tokens, all of a step together. A token's score scales the expert's input, not its output.
//! Router weights and scores stay in f32, whatever the experts are held as: a near tie decided otherwise changes all
//! that follows. Invariant: a token's result does not depend on where the others go.

use candle_core::{DType, Result, Tensor};

use super::gated::{GatedFeedForward, gated};
use super::linear::Linear;
use crate::model::api::ModelError;
use crate::model::trace::Trace;
use crate::model::weights::Scope;

/// Sizes of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertSizes {
    pub hidden: usize,
    /// Width inside each expert, the shared one too.
    pub width: usize,
    pub experts: usize,
    /// How many experts see a token.
    pub active: usize,
}

/// Router, routed experts, shared expert.
#[derive(Debug, Clone)]
pub struct Experts {
    sizes: ExpertSizes,
    /// `[experts, hidden]`, f32.
    router: Tensor,
    routed: Vec<Expert>,
    shared: GatedFeedForward,
}

#[derive(Debug, Clone)]
struct Expert {
    /// Gate in the first half of the outputs, up in the second.
    gate_up: Linear,
    down: Linear,
}

impl Experts {
    /// Reads `router`, `experts` and `shared_expert` below `scope`.
    pub fn load(scope: &Scope<'_>, sizes: ExpertSizes) -> std::result::Result<Self, ModelError> {
        let ExpertSizes { hidden, width, experts, .. } = sizes;
        let router = scope.at("router").exact("weight", &[experts, hidden])?;
        let stacked = scope.at("experts");
        let routed = (0..experts).map(|index| {
            let gate_up = stacked.turned("gate_up_proj", (experts, index), (hidden, 2 * width))?;
            let down = stacked.turned("down_proj", (experts, index), (width, hidden))?;
            Ok(Expert { gate_up: Linear::new(gate_up, None)?, down: Linear::new(down, None)? })
        });
        let routed = routed.collect::<std::result::Result<_, ModelError>>()?;
        let shared = GatedFeedForward::load(&scope.at("shared_expert"), hidden, width, false)?;
        Ok(Self { sizes, router, routed, shared })
    }

    /// `[rows, hidden]` to `[rows, hidden]`. Shows `text.router_logits_i`.
    pub fn forward(&self, input: &Tensor, layer: usize, trace: &mut Trace) -> Result<Tensor> {
        let logits = input.to_dtype(DType::F32)?.matmul(&self.router.t()?)?;
        trace.show(format_args!("text.router_logits_{layer}"), &logits);
        let shared = self.shared.forward(input)?;
        let chosen = self.route(&logits.to_vec2()?);
        let rows: Vec<u32> = chosen.iter().flat_map(|chosen| &chosen.rows).copied().collect();
        let scores: Vec<f32> = chosen.iter().flat_map(|chosen| &chosen.scores).copied().collect();
        let count = rows.len();
        let scores = Tensor::from_vec(scores, (count, 1), input.device())?.to_dtype(input.dtype())?;
        let rows = Tensor::from_vec(rows, count, input.device())?;
        // Rows of one expert lie together, so each runs once.
        let scaled = input.index_select(&rows, 0)?.broadcast_mul(&scores)?;
        let mut first = 0;
        let mut parts = Vec::new();
        for (expert, chosen) in self.routed.iter().zip(&chosen).filter(|(_, chosen)| !chosen.rows.is_empty()) {
            let own = scaled.narrow(0, first, chosen.rows.len())?;
            parts.push(expert.forward(&own, self.sizes.width)?);
            first += chosen.rows.len();
        }
        shared.index_add(&rows, &Tensor::cat(&parts, 0)?, 0)
    }

    /// The rows and scores of each expert.
    fn route(&self, logits: &[Vec<f32>]) -> Vec<Chosen> {
        let mut chosen = vec![Chosen::default(); self.sizes.experts];
        for (row, logits) in logits.iter().enumerate() {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            // Of equal ones the first is taken. A NaN goes first, so that it shows in the result.
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            for expert in order.into_iter().take(self.sizes.active) {
                chosen[expert].rows.push(row as u32);
                chosen[expert].scores.push(1.0 / (1.0 + (-logits[expert]).exp()));
            }
        }
        chosen
    }
}

#[derive(Debug, Clone, Default)]
struct Chosen {
    rows: Vec<u32>,
    scores: Vec<f32>,
}

impl Expert {
    fn forward(&self, input: &Tensor, width: usize) -> Result<Tensor> {
        self.down.forward(&gated(&self.gate_up.forward(input)?, width)?)
    }
}
