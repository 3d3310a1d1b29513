//! One layer of a text decoder: attention and feed-forward, each behind its norm and added to what came in.

use candle_core::{Result, Tensor};

use super::options::{DecoderOptions, FeedForwardOptions, LayerOptions, QkNorm};
use crate::kv::KvStore;
use crate::model::api::ModelError;
use crate::model::layers::{
    Angles, Arrangement, AttentionPlan, DevicePlan, Experts, GatedFeedForward, Linear, RmsNorm, arrange, attend,
};
use crate::model::trace::Trace;
use crate::model::weights::Scope;

/// What all layers of a step share.
pub struct StepContext<'a> {
    pub plan: AttentionPlan<'a>,
    pub angles: Angles,
    /// Where kernels of our own attend.
    pub kernels: Option<DevicePlan>,
    /// `[1, rows, 1]`
    pub temperatures: Option<Tensor>,
}

/// One layer.
pub struct Layer {
    index: usize,
    attention_norm: RmsNorm,
    attention: SelfAttention,
    forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

enum FeedForward {
    Dense(GatedFeedForward),
    Experts(Experts),
}

impl Layer {
    /// Reads the layer below `scope`.
    pub fn load(scope: &Scope<'_>, options: &DecoderOptions, index: usize) -> std::result::Result<Self, ModelError> {
        let layer = options.layers[index];
        let norm = |name: &str| RmsNorm::load(&scope.at(name), options.hidden, options.epsilon);
        let forward = scope.at(options.feed_forward_name);
        Ok(Self {
            index,
            attention_norm: norm("input_layernorm")?,
            attention: SelfAttention::load(&scope.at("self_attn"), options, index)?,
            forward_norm: norm("post_attention_layernorm")?,
            feed_forward: match layer.feed_forward {
                FeedForwardOptions::Dense { width } => FeedForward::Dense(GatedFeedForward::load(
                    &forward,
                    options.hidden,
                    width,
                    options.biases.feed_forward,
                )?),
                FeedForwardOptions::Experts(sizes) => FeedForward::Experts(Experts::load(&forward, sizes)?),
            },
        })
    }

    /// The first half: `[rows, hidden]` to `[rows, heads * head_dim]`; keys and values of all rows are cached.
    pub fn attend(
        &self,
        input: &Tensor,
        context: &StepContext<'_>,
        cache: &mut KvStore,
        trace: &mut Trace,
    ) -> Result<Tensor> {
        self.attention.forward(&self.attention_norm.forward(input)?, context, cache, trace)
    }

    /// The second half: what came in and what was attended, of all rows or of the same few, to `[rows, hidden]`.
    pub fn finish(&self, input: &Tensor, attended: &Tensor, trace: &mut Trace) -> Result<Tensor> {
        let (hidden, normed) = self.forward_norm.after_adding(input, &self.attention.output.forward(attended)?)?;
        hidden + self.feed_forward.forward(&normed, self.index, trace)?
    }
}

impl FeedForward {
    fn forward(&self, input: &Tensor, layer: usize, trace: &mut Trace) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(input),
            Self::Experts(experts) => experts.forward(input, layer, trace),
        }
    }
}

/// Grouped-query attention (Ainslie et al., 2023).
struct SelfAttention {
    layer: usize,
    options: LayerOptions,
    /// Outputs of queries, then keys, then values.
    inward: Linear,
    output: Linear,
    norms: HeadNorms,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

enum HeadNorms {
    None,
    BeforeRotation { query: RmsNorm, key: RmsNorm },
    AfterRotation(RmsNorm),
}

impl SelfAttention {
    fn load(scope: &Scope<'_>, options: &DecoderOptions, index: usize) -> std::result::Result<Self, ModelError> {
        let layer = options.layers[index];
        let DecoderOptions { hidden, heads, kv_heads, head_dim, epsilon, biases, .. } = options;
        let norms = match options.qk_norm {
            QkNorm::Weighted => HeadNorms::BeforeRotation {
                query: RmsNorm::load(&scope.at("q_norm"), *head_dim, *epsilon)?,
                key: RmsNorm::load(&scope.at("k_norm"), *head_dim, *epsilon)?,
            },
            QkNorm::Plain if layer.rotated => {
                HeadNorms::AfterRotation(RmsNorm::plain(*head_dim, *epsilon, scope.activations(), scope.device())?)
            }
            QkNorm::Plain | QkNorm::None => HeadNorms::None,
        };
        let (query, key) = (heads * head_dim, kv_heads * head_dim);
        let parts = [("q_proj", query), ("k_proj", key), ("v_proj", key)];
        let output = scope.at("o_proj");
        Ok(Self {
            layer: index,
            options: layer,
            inward: Linear::load_joined(scope, &parts, *hidden, biases.query_key_value)?,
            output: match biases.attention_output {
                true => Linear::load_with_bias(&output, query, *hidden)?,
                false => Linear::load(&output, query, *hidden)?,
            },
            norms,
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
        })
    }

    /// `[rows, hidden]` to `[rows, heads * head_dim]`, before the output map.
    fn forward(
        &self,
        input: &Tensor,
        context: &StepContext<'_>,
        cache: &mut KvStore,
        trace: &mut Trace,
    ) -> Result<Tensor> {
        let (index, options) = (self.layer, self.options);
        let all = self.inward.forward(input)?;
        let plan = &context.plan;
        // What is done in one go shows nothing of what lies between.
        if !trace.is_on() {
            let arrangement = self.arrangement(context);
            if let Some(kernels) = &context.kernels {
                let queries = kernels.arrange(&all, &arrangement, cache, index)?;
                return kernels.attend(&queries, cache, index, options.chunked);
            }
            if cache.host(index).is_some() {
                let queries = arrange(&all, &arrangement, cache, index, &plan.slots)?;
                return attend(&queries, cache, index, plan, plan.segments(options.chunked));
            }
        }
        let mut query = self.split(&all, 0, self.heads)?;
        let mut key = self.split(&all, self.heads, self.kv_heads)?;
        let value = self.split(&all, self.heads + self.kv_heads, self.kv_heads)?;
        if let HeadNorms::BeforeRotation { query: query_norm, key: key_norm } = &self.norms {
            query = query_norm.forward(&query)?;
            key = key_norm.forward(&key)?;
        }
        if options.rotated {
            query = context.angles.rotate(&query)?;
            key = context.angles.rotate(&key)?;
        } else if let Some(temperatures) = &context.temperatures {
            query = query.broadcast_mul(temperatures)?;
        }
        if let HeadNorms::AfterRotation(norm) = &self.norms {
            query = norm.forward(&query)?;
            key = norm.forward(&key)?;
        }
        trace.show(format_args!("text.attn_{index}.q"), &query);
        trace.show(format_args!("text.attn_{index}.k"), &key);
        trace.show(format_args!("text.attn_{index}.v"), &value);
        cache.write(index, &key, &value, &plan.slots)?;
        let out = attend(&query, cache, index, plan, plan.segments(options.chunked))?;
        if trace.is_on() {
            let (rows, width) = out.dims2()?;
            trace.show(
                format_args!("text.attn_{index}.out"),
                &out.reshape((rows, width / self.head_dim, self.head_dim))?,
            );
        }
        Ok(out)
    }

    fn arrangement<'a>(&'a self, context: &'a StepContext<'_>) -> Arrangement<'a> {
        let rotated = self.options.rotated;
        Arrangement {
            angles: rotated.then_some(&context.angles),
            temperatures: context.temperatures.as_ref().filter(|_| !rotated),
            norms: match &self.norms {
                HeadNorms::None => None,
                HeadNorms::BeforeRotation { query, key } => Some((query, key)),
                HeadNorms::AfterRotation(norm) => Some((norm, norm)),
            },
            norms_first: matches!(self.norms, HeadNorms::BeforeRotation { .. }),
        }
    }

    /// Some of the heads that lie side by side in `[rows, all heads * head_dim]`, as `[heads, rows, head_dim]`.
    fn split(&self, all: &Tensor, first: usize, heads: usize) -> Result<Tensor> {
        let rows = all.dim(0)?;
        let part = all.narrow(1, first * self.head_dim, heads * self.head_dim)?;
        part.reshape((rows, heads, self.head_dim))?.transpose(0, 1)?.contiguous()
    }
}
