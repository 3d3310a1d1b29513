//! Mean and percentiles of a few numbers. Knows nothing of what they measure.

use serde::Serialize;

/// A summary of numbers; there is none of no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub count: usize,
    pub mean: f64,
    /// By nearest rank: the smallest number that at least half of all do not exceed.
    pub p50: f64,
    /// By nearest rank.
    pub p99: f64,
}

impl Summary {
    pub(super) fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { count: sorted.len(), mean, p50: percentile(&sorted, 50), p99: percentile(&sorted, 99) })
    }
}

fn percentile(sorted: &[f64], hundredths: usize) -> f64 {
    let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numbers_that_were_given() {
        let summary = Summary::of((1..=200).rev().map(f64::from)).unwrap();
        assert_eq!(summary, Summary { count: 200, mean: 100.5, p50: 100.0, p99: 198.0 });
        assert_eq!(Summary::of([7.0].into_iter()).unwrap(), Summary { count: 1, mean: 7.0, p50: 7.0, p99: 7.0 });
        assert_eq!(Summary::of(std::iter::empty()), None);
    }
}
