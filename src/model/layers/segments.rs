//! Attention within segments of packed rows, for towers that see: no mask, no cache, no order.
//!
//! Rows of several pictures, tiles or windows lie one after the other; each row sees all rows of its own segment and no
//! other. Scores are in f32. Invariant: scores of at most [`SCORES`] values exist at a time, however large the picture is.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::linear::Linear;
use super::rope::Angles;

/// Scores that may exist at a time: 32 MiB of them.
const SCORES: usize = 8 << 20;

/// How a tower's rows lie and where they are in the picture.
pub struct Sight {
    /// The rotation of each row.
    pub angles: Angles,
    /// Consecutive ranges that cover all rows.
    pub segments: Vec<Range<usize>>,
}

/// Self-attention of a vision tower: one wide map to queries, keys and values, one map back.
#[derive(Debug, Clone)]
pub struct SegmentAttention {
    /// `[rows, hidden]` to `[rows, 3 * hidden]`: queries, keys, values, each head after head.
    pub inward: Linear,
    pub outward: Linear,
    pub heads: usize,
}

impl SegmentAttention {
    /// `[rows, hidden]` to `[rows, hidden]`; each row sees its segment.
    pub fn forward(&self, input: &Tensor, sight: &Sight) -> Result<Tensor> {
        let fused = self.inward.forward(input)?;
        let (rows, width) = fused.dims2()?;
        let fused = fused.reshape((rows, 3, self.heads, width / (3 * self.heads)))?.permute((1, 2, 0, 3))?;
        let rotated = |part: usize| {
            // The angles are in f32, and a rounded rotation would blur far positions.
            sight.angles.rotate(&fused.get(part)?.to_dtype(DType::F32)?)?.to_dtype(input.dtype())
        };
        let values = fused.get(2)?.contiguous()?;
        self.outward.forward(&attend(&rotated(0)?, &rotated(1)?, &values, &sight.segments)?)
    }
}

/// Softmax attention of prepared heads, each `[heads, rows, width]`, within `segments`. The result is
/// `[rows, heads * width]`.
pub fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, segments: &[Range<usize>]) -> Result<Tensor> {
    attend_within(queries, keys, values, segments, SCORES)
}

fn attend_within(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    segments: &[Range<usize>],
    scores: usize,
) -> Result<Tensor> {
    let (heads, rows, width) = queries.dims3()?;
    let queries = (queries * (width as f64).powf(-0.5))?;
    let mut mixed = Vec::new();
    for run in runs(segments, (scores / heads.max(1)).max(1)) {
        let length = run.rows.len() / run.count;
        // Segments of one length are so many heads more.
        let part = |tensor: &Tensor| {
            tensor.narrow(1, run.rows.start, run.rows.len())?.contiguous()?.reshape((heads * run.count, length, width))
        };
        let (queries, keys, values) = (part(&queries)?, part(keys)?, part(values)?);
        let keys = keys.t()?;
        let step = (scores / (heads * run.count * length)).clamp(1, length);
        let parts: Vec<Tensor> = (0..length)
            .step_by(step)
            .map(|from| one(&queries.narrow(1, from, step.min(length - from))?, &keys, &values))
            .collect::<Result<_>>()?;
        let joined = if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(&parts, 1)? };
        mixed.push(joined.reshape((heads, run.rows.len(), width))?);
    }
    let mixed = if mixed.len() == 1 { mixed[0].clone() } else { Tensor::cat(&mixed, 1)? };
    mixed.transpose(0, 1)?.contiguous()?.reshape((rows, heads * width))
}

/// `queries` `[batch, m, width]`, already scaled, `keys` `[batch, width, n]`, `values` `[batch, n, width]`.
fn one(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let scores = queries.contiguous()?.matmul(keys)?.to_dtype(DType::F32)?;
    let shares = candle_nn::ops::softmax_last_dim(&scores)?;
    shares.to_dtype(values.dtype())?.matmul(values)
}

/// Consecutive segments of one length.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    rows: Range<usize>,
    count: usize,
}

/// Gathers neighbours of one length while the pairs of rows that see each other stay within `pairs`.
fn runs(segments: &[Range<usize>], pairs: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for segment in segments.iter().filter(|segment| !segment.is_empty()) {
        let length = segment.len();
        match runs.last_mut() {
            Some(run) if run.rows.len() == run.count * length && (run.count + 1) * length * length <= pairs => {
                run.rows.end = segment.end;
                run.count += 1;
            }
            _ => runs.push(Run { rows: segment.clone(), count: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn heads(seed: usize, rows: usize) -> Tensor {
        let values: Vec<f32> =
            (0..2 * rows * 4).map(|index| ((index * 37 + seed * 11) % 23) as f32 / 7.0 - 1.5).collect();
        Tensor::from_vec(values, (2, rows, 4), &Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_near(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.dims(), expected.dims());
        for (a, b) in values(found).iter().zip(values(expected)) {
            assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        }
    }

    #[test]
    fn a_segment_among_others_sees_what_it_sees_alone() {
        let (queries, keys, values) = (heads(1, 9), heads(2, 9), heads(3, 9));
        let segments = [0..3, 3..6, 6..7, 7..9];
        let together = attend(&queries, &keys, &values, &segments).unwrap();
        for segment in segments {
            let part = |tensor: &Tensor| tensor.narrow(1, segment.start, segment.len()).unwrap();
            let whole = 0..segment.len();
            let alone = attend(&part(&queries), &part(&keys), &part(&values), std::slice::from_ref(&whole)).unwrap();
            assert_near(&together.narrow(0, segment.start, segment.len()).unwrap(), &alone);
        }
    }

    #[test]
    fn little_room_for_scores_changes_no_result() {
        let (queries, keys, values) = (heads(1, 9), heads(2, 9), heads(3, 9));
        for segments in [std::slice::from_ref(&(0..9)), &[0..3, 3..6, 6..9][..]] {
            let at_once = attend(&queries, &keys, &values, segments).unwrap();
            for scores in [1, 36, 60] {
                assert_near(&attend_within(&queries, &keys, &values, segments, scores).unwrap(), &at_once);
            }
        }
    }

    #[test]
    fn neighbours_of_one_length_are_computed_together_within_the_bound() {
        let run = |rows, count| Run { rows, count };
        let segments = [0..4, 4..8, 8..12, 12..14, 14..14, 14..16];
        assert_eq!(runs(&segments, 1000), [run(0..12, 3), run(12..16, 2)]);
        assert_eq!(runs(&segments, 32), [run(0..8, 2), run(8..12, 1), run(12..16, 2)]);
        assert_eq!(runs(&segments, 1).len(), 5);
    }
}
