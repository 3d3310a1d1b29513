//! Judges recommenders by what users clicked on among products that nobody had clicked on before.
//!
//! It knows no embedding and prints nothing. Two sets of candidates: all cold products, and those that the user was shown.
//! Invariant: every recommender ranks the same candidates for the same users.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::super::market::{Interaction, Study};
use super::metrics::{Estimate, Quality, quality, rank};
use super::recommender::{History, Recommender};

/// A user with at least one click among what is held out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct User<'a> {
    pub history: History<'a>,
    /// Cold products that the user was shown.
    pub shown: HashSet<&'a str>,
    /// Those that the user clicked on.
    pub clicked: HashSet<&'a str>,
}

/// The users of a study, in its order.
pub(super) fn users(study: &Study) -> Vec<User<'_>> {
    let (past, held_out) = (ByUser::of(&study.past), ByUser::of(&study.held_out));
    let names = study.tastes.iter().map(|taste| taste.user.as_str());
    let users = names.enumerate().map(|(number, user)| {
        let (clicked, passed) = (past.items(user, true), past.items(user, false));
        let found: HashSet<&str> = held_out.items(user, true).into_iter().collect();
        let shown = found.iter().copied().chain(held_out.items(user, false)).collect();
        User { history: History { number: number as u64, user, clicked, passed }, shown, clicked: found }
    });
    users.filter(|user| !user.clicked.is_empty()).collect()
}

struct ByUser<'a>(HashMap<&'a str, Vec<&'a Interaction>>);

impl<'a> ByUser<'a> {
    fn of(interactions: &'a [Interaction]) -> Self {
        let mut found: HashMap<&str, Vec<&Interaction>> = HashMap::new();
        for one in interactions {
            found.entry(one.user.as_str()).or_default().push(one);
        }
        Self(found)
    }

    /// What a user was shown, and clicked on or not.
    fn items(&self, user: &str, clicked: bool) -> Vec<&'a str> {
        let mine = self.0.get(user).into_iter().flatten().filter(|one| one.clicked == clicked);
        mine.map(|one| one.asset_id.as_str()).collect()
    }
}

/// What a recommender's rankings are worth, user by user.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judged {
    /// Among all cold products.
    pub among_all: Vec<Quality>,
    /// Among the cold products that the user was shown.
    pub among_shown: Vec<Quality>,
}

/// Lets a recommender rank `cold` for each user.
pub(super) fn judge(recommender: &dyn Recommender, users: &[User<'_>], cold: &[&str]) -> Judged {
    let mut judged = Judged { among_all: Vec::new(), among_shown: Vec::new() };
    for user in users {
        let ranking = rank(cold.iter().copied().zip(recommender.scores(&user.history, cold)));
        let shown: Vec<&str> = ranking.iter().copied().filter(|id| user.shown.contains(id)).collect();
        judged.among_all.extend(quality(&ranking, &user.clicked));
        judged.among_shown.extend(quality(&shown, &user.clicked));
    }
    judged
}

/// Means over users of one set of candidates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Figures {
    #[serde(rename = "recall@10")]
    pub recall: Estimate,
    #[serde(rename = "ndcg@10")]
    pub ndcg: Estimate,
    /// The NDCG of this system minus that of the first, user by user.
    #[serde(rename = "ndcg@10_against_first")]
    pub against_first: Estimate,
}

impl Figures {
    /// None without users. `first` judges the same users in the same order.
    pub fn of(found: &[Quality], first: &[Quality]) -> Option<Self> {
        let mean = |values: Vec<f64>| Estimate::of(&values);
        Some(Self {
            recall: mean(found.iter().map(|one| one.recall).collect())?,
            ndcg: mean(found.iter().map(|one| one.ndcg).collect())?,
            against_first: mean(found.iter().zip(first).map(|(one, first)| one.ndcg - first.ndcg).collect())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::market::Taste;
    use super::*;

    /// Scores products by their place in the alphabet, the last letter highest.
    struct Backwards;

    impl Recommender for Backwards {
        fn scores(&self, _: &History<'_>, products: &[&str]) -> Vec<f64> {
            products.iter().map(|id| id.bytes().map(f64::from).sum()).collect()
        }
    }

    fn interaction(user: &str, asset_id: &str, clicked: bool) -> Interaction {
        Interaction { user: user.to_owned(), asset_id: asset_id.to_owned(), clicked, time: 0 }
    }

    fn taste(user: &str) -> Taste {
        let (categories, colours, patterns) = (Vec::new(), Vec::new(), Vec::new());
        Taste { user: user.to_owned(), categories, colours, patterns, condition: None }
    }

    fn study() -> Study {
        Study {
            tastes: vec![taste("one"), taste("two"), taste("three")],
            past: vec![interaction("one", "w", true), interaction("one", "v", false), interaction("three", "w", false)],
            held_out: vec![
                interaction("one", "a", true),
                interaction("one", "b", false),
                interaction("two", "b", false),
                interaction("three", "c", true),
            ],
        }
    }

    #[test]
    fn users_without_clicks_on_cold_products_are_left_out() {
        let study = study();
        let users = users(&study);
        let names: Vec<&str> = users.iter().map(|user| user.history.user).collect();
        assert_eq!(names, ["one", "three"]);
        assert_eq!((&users[0].history.clicked[..], &users[0].history.passed[..]), (&["w"][..], &["v"][..]));
        assert_eq!((users[0].shown.len(), users[0].clicked.len()), (2, 1));
        assert_eq!((users[1].history.number, users[1].history.clicked.len()), (2, 0));
    }

    #[test]
    fn a_user_s_clicks_are_looked_for_among_all_cold_products_and_among_those_that_were_shown() {
        let study = study();
        let letters: Vec<String> = ('a'..='n').map(String::from).collect();
        let cold: Vec<&str> = letters.iter().map(String::as_str).collect();
        let judged = judge(&Backwards, &users(&study), &cold);
        // "a" is last of fourteen, and second of the two that were shown; "c" is twelfth, and the only one shown.
        assert_eq!(judged.among_all, [Quality { recall: 0.0, ndcg: 0.0 }; 2]);
        assert_eq!(judged.among_shown[0], Quality { recall: 1.0, ndcg: 1.0 / 3.0_f64.log2() });
        assert_eq!(judged.among_shown[1], Quality { recall: 1.0, ndcg: 1.0 });
    }

    #[test]
    fn differences_are_taken_user_by_user() {
        let of = |values: [f64; 2]| values.map(|ndcg| Quality { recall: 0.5, ndcg });
        let figures = Figures::of(&of([0.1, 0.9]), &of([0.3, 1.1])).unwrap();
        assert!((figures.against_first.mean + 0.2).abs() < 1e-12);
        assert!(figures.against_first.standard_error < 1e-12 && figures.ndcg.standard_error > 0.3);
        assert_eq!(Figures::of(&[], &[]), None);
    }
}
