//! Who clicked on what: users with latent tastes over a market in which most items have been seen by nobody.
//!
//! It knows truths, no texts and no pictures: whatever predicts these clicks must have understood the content. Invariant: no
//! interaction of the past touches a cold item, and every interaction held out touches one.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::super::taxonomy::categories;
use super::facts::{COLOURS, PATTERNS};
use super::item::{MarketItem, MarketTruth};
use super::split::{Seed, Split};
use crate::domain::AssetKind;

/// What a user likes; nobody is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taste {
    pub user: String,
    /// Full paths.
    pub categories: Vec<String>,
    pub colours: Vec<String>,
    pub patterns: Vec<String>,
    pub condition: Option<String>,
}

/// A user was shown an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interaction {
    pub user: String,
    pub asset_id: String,
    pub clicked: bool,
    /// Seconds since the Unix epoch (UTC).
    pub time: i64,
}

/// A cold-start study.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Study {
    pub tastes: Vec<Taste>,
    /// What is known: items that are not cold.
    pub past: Vec<Interaction>,
    /// What is to be predicted: cold items.
    pub held_out: Vec<Interaction>,
}

/// Items shown to each user, before and in what is held out.
const SHOWN: usize = 30;

impl Taste {
    /// The log odds of a click.
    pub(in super::super) fn affinity(&self, truth: &MarketTruth) -> f64 {
        let has = |liked: &[String], value: &str| f64::from(u8::from(liked.iter().any(|liked| liked == value)));
        let in_branch = self.categories.iter().any(|liked| branch(liked) == branch(&truth.category));
        let condition = self.condition.as_ref().map_or(0.0, |liked| if *liked == truth.condition { 0.6 } else { -1.0 });
        2.0 * has(&self.categories, &truth.category)
            + 0.8 * f64::from(u8::from(in_branch))
            + 1.6 * has(&self.colours, &truth.colour)
            + 0.9 * has(&self.patterns, &truth.pattern)
            + condition
            - 3.2
    }
}

impl Study {
    /// One user for every eight products, at least eight.
    pub(super) fn draw<S: Split>(seed: Seed<S>, items: &[MarketItem]) -> Self {
        let products: Vec<&MarketItem> = items.iter().filter(|item| item.truth.kind == AssetKind::Product).collect();
        let (cold, warm): (Vec<&MarketItem>, Vec<&MarketItem>) = products.iter().partition(|item| item.is_cold);
        let mut study = Self::default();
        for number in 0..(products.len() / 8).max(8) {
            // From the end, so that no item has the same stream.
            let mut random = seed.stream(u64::MAX - number as u64);
            let taste = taste(number, &mut random);
            study.past.extend(shown(&taste, &warm, &mut random));
            study.held_out.extend(shown(&taste, &cold, &mut random));
            study.tastes.push(taste);
        }
        study
    }
}

fn taste(number: usize, random: &mut ChaCha8Rng) -> Taste {
    let some = |all: &[&str], most: usize, random: &mut ChaCha8Rng| -> Vec<String> {
        let wanted = random.random_range(1..=most);
        all.choose_multiple(random, wanted).map(|name| (*name).to_owned()).collect()
    };
    // A person is at home in one or two branches, not in leaves at random.
    let home: Vec<&str> =
        categories().choose_multiple(random, 2).filter_map(|category| branch(category.path)).collect();
    let near: Vec<&str> = categories()
        .iter()
        .map(|category| category.path)
        .filter(|path| home.iter().any(|home| branch(path) == Some(home)))
        .collect();
    Taste {
        user: format!("user-{number:05}"),
        categories: some(&near, 6, random),
        colours: some(&COLOURS.map(|colour| colour.0), 3, random),
        patterns: some(&PATTERNS, 2, random),
        condition: random.random_bool(0.5).then(|| (*["new", "second_hand"].choose(random).expect("two")).to_owned()),
    }
}

fn branch(path: &str) -> Option<&str> {
    path.split(" > ").next()
}

/// Half of what a user is shown are things of the branches that the user likes, as a shop would do it.
fn shown(taste: &Taste, items: &[&MarketItem], random: &mut ChaCha8Rng) -> Vec<Interaction> {
    let near = |item: &&&MarketItem| taste.categories.iter().any(|liked| branch(liked) == branch(&item.truth.category));
    let mut chosen: Vec<&MarketItem> = items.iter().filter(near).copied().collect();
    chosen.shuffle(random);
    chosen.truncate(SHOWN / 2);
    let others = items.choose_multiple(random, SHOWN).filter(|item| !chosen.iter().any(|one| one.id == item.id));
    let others: Vec<&MarketItem> = others.copied().take(SHOWN - SHOWN / 2).collect();
    chosen.extend(others);
    let mut interactions: Vec<Interaction> = chosen.into_iter().map(|item| interaction(taste, item, random)).collect();
    interactions.sort_by(|one, other| (one.time, &one.asset_id).cmp(&(other.time, &other.asset_id)));
    interactions
}

fn interaction(taste: &Taste, item: &MarketItem, random: &mut ChaCha8Rng) -> Interaction {
    let chance = 1.0 / (1.0 + (-taste.affinity(&item.truth)).exp());
    let time = item.event_time + random.random_range(60..600_000);
    Interaction { user: taste.user.clone(), asset_id: item.id.clone(), clicked: random.random_bool(chance), time }
}
