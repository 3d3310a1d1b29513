//! A mixture of experts as Llama 4 has it: a router picks for each token, a shared expert sees all of them.
//!
//! An expert runs only for its tokens, all of a step together; on a CUDA device, where they are 16-bit, all experts run in
//! one product and the host does not learn who went where. A token's score scales the expert's input, not its output.
//! Router weights and scores stay in f32, whatever the experts are held as: a near tie decided otherwise changes all
//! that follows. Invariant: a token's result does not depend on where the others go.

use candle_core::{DType, Result, Tensor};

use super::gated::{GatedFeedForward, gated};
use super::linear::Linear;
use crate::model::api::ModelError;
use crate::model::kernels::{Argument, Grid, Kernel, is_narrow, launch, suffix, unwritten};
use crate::model::trace::Trace;
use crate::model::weights::{Matrix, Scope};

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
    routed: Routed,
    shared: GatedFeedForward,
}

#[derive(Debug, Clone)]
enum Routed {
    OneByOne(Vec<Expert>),
    /// `[experts, 2 * width, hidden]` and `[experts, hidden, width]`, for kernels of our own.
    Together {
        gate_up: Tensor,
        down: Tensor,
    },
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
            Ok((gate_up, down))
        });
        let routed = Routed::new(routed.collect::<std::result::Result<_, ModelError>>()?, scope.activations())?;
        let shared = GatedFeedForward::load(&scope.at("shared_expert"), hidden, width, false)?;
        Ok(Self { sizes, router, routed, shared })
    }

    /// `[rows, hidden]` to `[rows, hidden]`. Shows `text.router_logits_i`.
    pub fn forward(&self, input: &Tensor, layer: usize, trace: &mut Trace) -> Result<Tensor> {
        let logits = input.to_dtype(DType::F32)?.matmul(&self.router.t()?)?;
        trace.show(format_args!("text.router_logits_{layer}"), &logits);
        let shared = self.shared.forward(input)?;
        let experts = match &self.routed {
            Routed::OneByOne(experts) => experts,
            Routed::Together { gate_up, down } => return shared + self.together(input, &logits, gate_up, down)?,
        };
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
        for (expert, chosen) in experts.iter().zip(&chosen).filter(|(_, chosen)| !chosen.rows.is_empty()) {
            let own = scaled.narrow(0, first, chosen.rows.len())?;
            parts.push(expert.forward(&own, self.sizes.width)?);
            first += chosen.rows.len();
        }
        shared.index_add(&rows, &Tensor::cat(&parts, 0)?, 0)
    }

    /// What the routed experts add to `[rows, hidden]`, on the device alone.
    fn together(&self, input: &Tensor, logits: &Tensor, gate_up: &Tensor, down: &Tensor) -> Result<Tensor> {
        let ExpertSizes { hidden, width, experts, active } = self.sizes;
        let (device, dtype, rows) = (input.device(), input.dtype(), input.dim(0)?);
        let assignments = rows * active;
        let chosen = unwritten(assignments, DType::U32, device)?;
        let scores = unwritten(assignments, DType::F32, device)?;
        let (logits, input) = (logits.contiguous()?, input.contiguous()?);
        let [a, e, s] = [&logits, &chosen, &scores].map(Argument::Tensor);
        let arguments = [a, e, s, Argument::Count(rows), Argument::Count(experts), Argument::Count(active)];
        launch(device, Kernel::Experts, "route_rows", Grid::new((rows.div_ceil(4), 1), 128), &arguments)?;

        // Small tiles where most experts have few rows, or the products would be of nothing.
        let tile_rows = if assignments <= 16 * experts { 16 } else { 64 };
        let tile_count = assignments / tile_rows + experts.min(assignments);
        let order = unwritten(assignments, DType::U32, device)?;
        let tiles = unwritten((tile_count, 3), DType::U32, device)?;
        let [o, t] = [&order, &tiles].map(Argument::Tensor);
        let counts = [assignments, experts, tile_rows, tile_count].map(Argument::Count);
        let grid = Grid { blocks: (1, 1), threads: 1024, shared_bytes: 4 * experts };
        launch(device, Kernel::Experts, "sort_assignments", grid, &[&[e, o, t][..], &counts].concat())?;

        let name = format!("multiply_experts_{tile_rows}_{}", suffix(dtype)?);
        let multiply = |input: &Tensor, weights: &Tensor, scores: Argument<'_>, share: usize| {
            let (_, outputs, inputs) = weights.dims3()?;
            let out = unwritten((assignments, outputs), dtype, device)?;
            let [i, w, target] = [input, weights, &out].map(Argument::Tensor);
            let sizes = [share, outputs, inputs].map(Argument::Count);
            let grid = Grid::new((outputs.div_ceil(64), tile_count), 128);
            launch(device, Kernel::Experts, &name, grid, &[&[i, w, o, t, scores, target][..], &sizes].concat())?;
            Ok::<_, candle_core::Error>(out)
        };
        // The product is linear, so a score may scale what comes out before it is rounded instead of what goes in.
        let between = gated(&multiply(&input, gate_up, s, active)?, width)?;
        let out = multiply(&between, down, Argument::Nothing, 1)?;
        if active == 1 { Ok(out) } else { out.reshape((rows, active, hidden))?.sum(1) }
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

impl Routed {
    /// Of each expert's gate and up in one, and down; for activations of format `dtype`.
    fn new(experts: Vec<(Matrix, Matrix)>, dtype: DType) -> std::result::Result<Self, ModelError> {
        // The kernels read 16 bytes of a weight's row at a time.
        let serves = |weight: &Tensor| {
            let inputs = weight.dims().last().copied().unwrap_or_default();
            weight.device().is_cuda() && weight.dtype() == dtype && is_narrow(dtype) && inputs.is_multiple_of(8)
        };
        let dense = |matrix: &Matrix| match matrix {
            Matrix::Dense(weight) if serves(weight) => Some(weight.clone()),
            _ => None,
        };
        let all: Option<Vec<(Tensor, Tensor)>> =
            experts.iter().map(|(gate_up, down)| Some((dense(gate_up)?, dense(down)?))).collect();
        if let Some(all) = all {
            let (gate_up, down): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            drop(experts);
            return Ok(Self::Together { gate_up: Tensor::stack(&gate_up, 0)?, down: Tensor::stack(&down, 0)? });
        }
        let expert =
            |(gate_up, down)| Ok(Expert { gate_up: Linear::new(gate_up, None)?, down: Linear::new(down, None)? });
        Ok(Self::OneByOne(experts.into_iter().map(expert).collect::<std::result::Result<_, ModelError>>()?))
    }
}

impl Expert {
    fn forward(&self, input: &Tensor, width: usize) -> Result<Tensor> {
        self.down.forward(&gated(&self.gate_up.forward(input)?, width)?)
    }
}
