//! Attention by tensor operations over gathered keys and values: any device.

use candle_core::{D, DType, Error, Result, Tensor};

use super::plan::{AttentionPlan, Segment};
use crate::kv::KvStore;

/// See [`super::attend`]. One small product a segment; memory is bounded by the longest segment's scores.
pub fn attend(
    queries: &Tensor,
    cache: &KvStore,
    layer: usize,
    plan: &AttentionPlan<'_>,
    segments: &[Segment],
) -> Result<Tensor> {
    let parts: Vec<Tensor> = segments
        .iter()
        .map(|segment| {
            let keys = segment.first_key..segment.position + segment.rows.len();
            let table = plan.tables[segment.sequence];
            let slots: Option<Vec<u32>> = keys.map(|position| cache.slot(table, position)).collect();
            let slots = slots.ok_or_else(|| Error::Msg("a block table ends before its sequence".to_owned()))?;
            let gathered = cache.gather(layer, &slots)?;
            let (keys, values) = gathered.ok_or_else(|| Error::Msg("the cache lies in no tensor".to_owned()))?;
            one(&queries.narrow(1, segment.rows.start, segment.rows.len())?, &keys, &values)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

/// `queries` `[heads, n, d]`, `keys` and `values` `[m, kv_heads, d]`; the last query sees all keys.
fn one(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (heads, rows, width) = queries.dims3()?;
    let (count, kv_heads, _) = keys.dims3()?;
    let group = heads / kv_heads;
    // Scaled before the product: 16 bits do not hold the scores of large queries.
    let queries = (queries.contiguous()? * (width as f64).powf(-0.5))?.reshape((kv_heads, group * rows, width))?;
    let keys = keys.permute((1, 2, 0))?.contiguous()?;
    let scores = queries.matmul(&keys)?.to_dtype(DType::F32)?;
    let first = count - rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| (0..count).map(move |key| if key > first + row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    let mask = Tensor::from_vec(mask, (1, 1, rows, count), queries.device())?;
    let scores = scores.reshape((kv_heads, group, rows, count))?.broadcast_add(&mask)?;
    let highest = scores.max_keepdim(D::Minus1)?;
    let shares = scores.broadcast_sub(&highest)?.exp()?;
    let shares = shares.broadcast_div(&shares.sum_keepdim(D::Minus1)?)?;
    let shares = shares.reshape((kv_heads, group * rows, count))?.to_dtype(values.dtype())?;
    let mixed = shares.matmul(&values.transpose(0, 1)?.contiguous()?)?;
    mixed.reshape((heads, rows, width))?.transpose(0, 1)?.contiguous()?.reshape((rows, heads * width))
}
