//! What scores products for a user: embeddings, popularity, chance, and the truth.
//!
//! The content-based recommender is one and the same for every embedding, after Rocchio (1971): the profile of a user is the
//! mean of the vectors of what the user clicked on minus the mean of those of what the user was shown and left alone, and
//! a product's score is its dot product with the profile. It has no weight to choose, and what all vectors have in common
//! drops out. Invariant: no score depends on what is held out.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::market::{Interaction, MarketTruth, Taste};
use super::vectors::Embeddings;

/// What is known of a user.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct History<'a> {
    /// Counts the users.
    pub number: u64,
    pub user: &'a str,
    pub clicked: Vec<&'a str>,
    /// Shown, and not clicked on.
    pub passed: Vec<&'a str>,
}

/// Scores products for a user; the higher, the sooner they are shown.
pub(super) trait Recommender {
    /// One score for each of the products.
    fn scores(&self, history: &History<'_>, products: &[&str]) -> Vec<f64>;
}

/// By what the user has clicked on, and what these products look like to a model.
#[derive(Debug)]
pub(super) struct ContentBased<'a> {
    pub embeddings: &'a Embeddings,
}

impl ContentBased<'_> {
    fn profile(&self, history: &History<'_>) -> Vec<f64> {
        let mut profile = vec![0.0; self.embeddings.dimensions()];
        for (products, sign) in [(&history.clicked, 1.0), (&history.passed, -1.0)] {
            for id in products {
                for (sum, value) in profile.iter_mut().zip(self.embeddings.of(id)) {
                    *sum += sign * f64::from(*value) / products.len() as f64;
                }
            }
        }
        profile
    }
}

impl Recommender for ContentBased<'_> {
    fn scores(&self, history: &History<'_>, products: &[&str]) -> Vec<f64> {
        let profile = self.profile(history);
        let dot = |id: &&str| profile.iter().zip(self.embeddings.of(id)).map(|(a, b)| a * f64::from(*b)).sum();
        products.iter().map(dot).collect()
    }
}

/// The same for every user. Nobody has clicked on a cold product, so it inherits the past click rates of its candidate
/// categories: their mean.
#[derive(Debug)]
pub(super) struct Popularity<'a> {
    rates: HashMap<&'a str, f64>,
}

impl<'a> Popularity<'a> {
    /// `categories` are the candidates of each product.
    pub fn new(categories: &HashMap<&'a str, &'a [String]>, past: &[Interaction]) -> Self {
        let mut shown: HashMap<&str, (f64, f64)> = HashMap::new();
        let mut all = (0.0, 0.0);
        for one in past {
            let click = f64::from(u8::from(one.clicked));
            all = (all.0 + click, all.1 + 1.0);
            for category in categories.get(one.asset_id.as_str()).copied().into_iter().flatten() {
                let counts = shown.entry(category).or_default();
                *counts = (counts.0 + click, counts.1 + 1.0);
            }
        }
        // A category that was never shown has the rate of all.
        let rate = |category: &String| {
            let (clicks, views) = shown.get(category.as_str()).copied().unwrap_or(all);
            clicks / f64::max(views, 1.0)
        };
        let mean =
            |candidates: &[String]| candidates.iter().map(rate).sum::<f64>() / f64::max(candidates.len() as f64, 1.0);
        Self { rates: categories.iter().map(|(id, candidates)| (*id, mean(candidates))).collect() }
    }
}

impl Recommender for Popularity<'_> {
    fn scores(&self, _: &History<'_>, products: &[&str]) -> Vec<f64> {
        products.iter().map(|id| self.rates.get(id).copied().unwrap_or(0.0)).collect()
    }
}

/// A random order for each user.
#[derive(Debug)]
pub(super) struct Chance {
    pub seed: u64,
}

impl Recommender for Chance {
    fn scores(&self, history: &History<'_>, products: &[&str]) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(history.number);
        products.iter().map(|_| random.random()).collect()
    }
}

/// What nobody can know: the odds by which the clicks were drawn. Only luck is above it.
#[derive(Debug)]
pub(super) struct Oracle<'a> {
    pub tastes: HashMap<&'a str, &'a Taste>,
    pub truths: HashMap<&'a str, &'a MarketTruth>,
}

impl Recommender for Oracle<'_> {
    fn scores(&self, history: &History<'_>, products: &[&str]) -> Vec<f64> {
        let taste = self.tastes.get(history.user);
        let odds = |id: &&str| Some(taste?.affinity(self.truths.get(id)?));
        products.iter().map(|id| odds(id).unwrap_or(0.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(vectors: &[(&str, [f32; 2])]) -> Embeddings {
        let ids: Vec<&str> = vectors.iter().map(|(id, _)| *id).collect();
        let read = vectors.iter().map(|(id, vector)| ((*id).to_owned(), vector.to_vec())).collect();
        Embeddings::new(read, &ids).unwrap()
    }

    fn interaction(asset_id: &str, clicked: bool) -> Interaction {
        Interaction { user: "user".to_owned(), asset_id: asset_id.to_owned(), clicked, time: 0 }
    }

    #[test]
    fn a_profile_is_the_mean_of_what_was_clicked_minus_the_mean_of_what_was_passed() {
        let embeddings = embeddings(&[("a", [1.0, 0.0]), ("b", [0.0, 2.0]), ("c", [-5.0, 0.0])]);
        let recommender = ContentBased { embeddings: &embeddings };
        let history = History { clicked: vec!["a", "b"], passed: vec!["c"], ..History::default() };
        assert_eq!(recommender.profile(&history), [1.5, 0.5]);
        assert_eq!(recommender.scores(&history, &["a", "b", "c"]), [1.5, 0.5, -1.5]);
    }

    #[test]
    fn a_user_without_any_click_is_shown_what_is_unlike_the_passed() {
        let embeddings = embeddings(&[("a", [1.0, 0.0]), ("b", [0.0, 1.0])]);
        let recommender = ContentBased { embeddings: &embeddings };
        let history = History { passed: vec!["b"], ..History::default() };
        assert_eq!(recommender.scores(&history, &["a", "b"]), [0.0, -1.0]);
        assert_eq!(recommender.scores(&History::default(), &["a", "b"]), [0.0, 0.0]);
    }

    #[test]
    fn what_all_vectors_have_in_common_changes_no_order() {
        let products = ["a", "b", "c", "d"];
        let plain: [[f64; 2]; 4] = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]];
        let order = |offset: f64| {
            let history = History { clicked: vec!["a"], passed: vec!["b"], ..History::default() };
            // Unit vectors over a third, common component of weight `offset`.
            let vectors = products.iter().zip(plain).map(|(id, [x, y])| {
                let rest = (1.0 - x * x - y * y).max(0.0).sqrt();
                ((*id).to_owned(), [x, y, rest, offset].map(|value| value as f32).to_vec())
            });
            let embeddings = Embeddings::new(vectors.collect(), &products).unwrap();
            let scores = ContentBased { embeddings: &embeddings }.scores(&history, &products);
            super::super::metrics::rank(products.into_iter().zip(scores))
        };
        assert_eq!(order(0.0), order(3.0));
    }

    #[test]
    fn a_cold_product_inherits_the_click_rates_of_its_candidate_categories() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (mugs, both, lamps, new) =
            (names(&["Mugs"]), names(&["Mugs", "Lamps"]), names(&["Lamps"]), names(&["Boats"]));
        let categories = HashMap::from([("a", &mugs[..]), ("b", &lamps[..]), ("cold", &both[..]), ("other", &new[..])]);
        let past = [interaction("a", true), interaction("a", true), interaction("b", false), interaction("b", true)];
        let scores = Popularity::new(&categories, &past).scores(&History::default(), &["a", "b", "cold", "other"]);
        // Mugs 2 of 2, lamps 1 of 2; boats were never shown, so they have the rate of all: 3 of 4.
        assert_eq!(scores, [1.0, 0.5, 0.75, 0.75]);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed_and_differs_between_users_and_seeds() {
        let products = ["a", "b", "c"];
        let scores = |seed, number| Chance { seed }.scores(&History { number, ..History::default() }, &products);
        assert_eq!(scores(1, 1), scores(1, 1));
        assert_ne!(scores(1, 1), scores(1, 2));
        assert_ne!(scores(1, 1), scores(2, 1));
    }
}
