//! Ranking metrics: recall@10 and NDCG@10 of one ranking, their mean and its standard error over users.
//!
//! It knows no user, no product and no embedding. Gains are binary; the discount is that of Järvelin and Kekäläinen (2002)
//! with base 2. Invariant: both metrics lie in [0, 1], and a ranking with all that is relevant in front has an NDCG of 1.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::hash::Hash;

use serde::Serialize;

/// Ranks that count.
pub(super) const CUTOFF: usize = 10;

/// What a ranking is worth to one user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quality {
    /// Relevant items among the first ten, divided by all relevant items.
    pub recall: f64,
    /// Discounted gain of the first ten, divided by that of the best possible ranking.
    pub ndcg: f64,
}

/// Candidates from the highest score to the lowest; equal scores in the order of the candidates themselves.
pub(super) fn rank<T: Ord>(scored: impl IntoIterator<Item = (T, f64)>) -> Vec<T> {
    let mut scored: Vec<(T, f64)> = scored.into_iter().collect();
    scored.sort_by(|one, other| descending(one.1, other.1).then_with(|| one.0.cmp(&other.0)));
    scored.into_iter().map(|(candidate, _)| candidate).collect()
}

/// Minus zero equals zero here.
fn descending(one: f64, other: f64) -> Ordering {
    other.partial_cmp(&one).unwrap_or_else(|| other.total_cmp(&one))
}

/// Judges a ranking without repetitions; none when nothing is relevant.
pub(super) fn quality<T: Eq + Hash>(ranking: &[T], relevant: &HashSet<T>) -> Option<Quality> {
    if relevant.is_empty() {
        return None;
    }
    let hits: Vec<usize> = (0..ranking.len().min(CUTOFF)).filter(|rank| relevant.contains(&ranking[*rank])).collect();
    let gain: f64 = hits.iter().map(|rank| discount(*rank)).sum();
    let ideal: f64 = (0..relevant.len().min(CUTOFF)).map(discount).sum();
    Some(Quality { recall: hits.len() as f64 / relevant.len() as f64, ndcg: gain / ideal })
}

/// The gain of a relevant item at a rank that counts from 0.
fn discount(rank: usize) -> f64 {
    1.0 / (rank as f64 + 2.0).log2()
}

/// A mean over users with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub mean: f64,
    /// The standard deviation of the sample divided by the root of its size; 0 for a single value.
    pub standard_error: f64,
}

impl Estimate {
    /// None for no values.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        match values.len() {
            0 => None,
            1 => Some(Self { mean, standard_error: 0.0 }),
            _ => Some(Self { mean, standard_error: (squares / (count - 1.0) / count).sqrt() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{hash_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn relevant(items: &[u32]) -> HashSet<u32> {
        items.iter().copied().collect()
    }

    #[test]
    fn a_hand_computed_ranking_has_the_expected_recall_and_ndcg() {
        // Hits at the ranks 1 and 3 of three relevant items: (1/log2(2) + 1/log2(4)) / (1/log2(2) + 1/log2(3) + 1/log2(4)).
        let found = quality(&[7, 1, 8, 2], &relevant(&[7, 8, 9])).unwrap();
        assert!((found.recall - 2.0 / 3.0).abs() < 1e-12);
        assert!((found.ndcg - 1.5 / 2.130_929_753_571_457_5).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn a_hit_at_rank_eleven_does_not_count() {
        let ranking: Vec<u32> = (0..20).collect();
        assert_eq!(quality(&ranking, &relevant(&[10])).unwrap(), Quality { recall: 0.0, ndcg: 0.0 });
        // 1/log2(11) of a possible 1.
        let last = quality(&ranking, &relevant(&[9])).unwrap();
        assert!(last.recall == 1.0 && (last.ndcg - 0.289_064_826_317_887_9).abs() < 1e-12, "{last:?}");
    }

    #[test]
    fn a_perfect_ranking_has_an_ndcg_of_one_whatever_the_number_of_relevant_items() {
        let ranking: Vec<u32> = (0..30).collect();
        for count in 1..30 {
            let found = quality(&ranking, &(0..count).collect()).unwrap();
            assert!((found.ndcg - 1.0).abs() < 1e-12, "{count}: {found:?}");
            assert_eq!(found.recall, f64::from(count.min(10)) / f64::from(count));
        }
    }

    #[test]
    fn a_user_for_whom_nothing_is_relevant_has_no_quality() {
        assert_eq!(quality(&[1, 2], &relevant(&[])), None);
    }

    #[test]
    fn equal_scores_are_ranked_by_the_id() {
        let scored = [("c", 0.5), ("b", 0.0), ("a", -0.0), ("d", 0.5), ("e", 0.7)];
        assert_eq!(rank(scored), ["e", "c", "d", "a", "b"]);
        let mut turned = scored;
        turned.reverse();
        assert_eq!(rank(turned), rank(scored));
    }

    #[test]
    fn an_estimate_is_the_mean_with_the_standard_error_of_a_sample() {
        // Variance 5/3 of four values: the root of 5/12.
        let found = Estimate::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!(found.mean == 2.5 && (found.standard_error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-12, "{found:?}");
        assert_eq!(Estimate::of(&[0.3]).unwrap(), Estimate { mean: 0.3, standard_error: 0.0 });
        assert_eq!(Estimate::of(&[]), None);
    }

    proptest! {
        #[test]
        fn metrics_lie_between_zero_and_one(scores in vec(-1.0..1.0_f64, 0..60), clicked in hash_set(0..60_usize, 1..40)) {
            let found = quality(&rank(scores.into_iter().enumerate()), &clicked).unwrap();
            prop_assert!((0.0..=1.0).contains(&found.recall) && (0.0..=1.0).contains(&found.ndcg), "{:?}", found);
            prop_assert_eq!(found.recall == 0.0, found.ndcg == 0.0);
        }

        #[test]
        fn a_relevant_item_further_in_front_never_lowers_the_ndcg(order in Just((0..20_usize).collect::<Vec<_>>()).prop_shuffle(),
                                                                  at in 1..20_usize) {
            let clicked: HashSet<usize> = (0..5).collect();
            let mut raised = order.clone();
            if clicked.contains(&raised[at]) && !clicked.contains(&raised[at - 1]) {
                raised.swap(at, at - 1);
            }
            let (before, after) = (quality(&order, &clicked).unwrap(), quality(&raised, &clicked).unwrap());
            prop_assert!(after.ndcg >= before.ndcg && after.recall >= before.recall);
        }
    }
}
