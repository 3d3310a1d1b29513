//! The categories of the generated catalogue.
//!
//! They lie in `taxonomy.txt`. This file knows neither texts nor pictures; every category names a silhouette,
//! and a test in `silhouette` holds the two together.

use std::sync::LazyLock;

use rand::Rng;
use rand::seq::IndexedRandom;

/// One leaf of the demo's three-level taxonomy.
#[derive(Debug, Clone, PartialEq)]
pub struct Category {
    /// For example `Home & Garden > Kitchen > Mugs`.
    pub path: &'static str,
    /// Words that a shop uses for one such thing.
    pub nouns: Vec<&'static str>,
    /// What the thing is good for, without a full stop.
    pub purpose: &'static str,
    /// Lowest and highest price in whole units of a currency.
    pub price: (u32, u32),
    /// The name of its outline in `silhouettes.txt`.
    pub silhouette: &'static str,
}

impl Category {
    fn parse(line: &'static str) -> Option<Self> {
        let mut fields = line.split('|').map(str::trim);
        let (path, nouns) = (fields.next()?, list(fields.next()?));
        let purpose = fields.next()?;
        let (low, high) = fields.next()?.split_once('-')?;
        let price = (low.parse().ok()?, high.parse().ok()?);
        Some(Self { path, nouns, purpose, price, silhouette: fields.next()? })
    }

    /// The level above the leaf, for example `Home & Garden > Kitchen`.
    fn parent(&self) -> &'static str {
        self.path.rsplit_once(" > ").map_or(self.path, |(parent, _)| parent)
    }
}

fn list(field: &'static str) -> Vec<&'static str> {
    field.split(';').map(str::trim).collect()
}

static CATEGORIES: LazyLock<Vec<Category>> = LazyLock::new(|| {
    let lines = include_str!("taxonomy.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| Category::parse(line).expect("taxonomy.txt is part of the program and tested")).collect()
});

/// Every leaf category, in a fixed order.
pub fn categories() -> &'static [Category] {
    &CATEGORIES
}

/// Four to eight paths in random order, `truth` among them; its neighbours in the tree come more often than others.
pub(super) fn candidates(truth: &Category, random: &mut impl Rng) -> Vec<String> {
    let mut paths = vec![truth.path];
    let near: Vec<&Category> = categories().iter().filter(|other| other.parent() == truth.parent()).collect();
    let wanted = random.random_range(4..=8);
    while paths.len() < wanted {
        let pool_is_near = random.random_bool(0.4);
        let other = if pool_is_near { near.choose(random).map(|near| near.path) } else { None };
        let path = other.or_else(|| categories().choose(random).map(|any| any.path)).unwrap_or(truth.path);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let position = random.random_range(0..paths.len());
    paths.swap(0, position);
    paths.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn there_are_at_least_forty_categories_of_three_levels_and_none_twice() {
        let paths: HashSet<_> = categories().iter().map(|category| category.path).collect();
        assert!(paths.len() >= 40, "only {} categories", paths.len());
        assert_eq!(paths.len(), categories().len());
        assert!(paths.iter().all(|path| path.split(" > ").count() == 3));
    }

    #[test]
    fn every_category_has_words_and_a_sensible_price() {
        for category in categories() {
            assert!(!category.nouns.is_empty(), "{}", category.path);
            assert!(category.price.0 < category.price.1, "{}", category.path);
        }
    }

    #[test]
    fn the_true_category_is_always_among_the_candidates_and_no_candidate_comes_twice() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for category in categories() {
            let candidates = candidates(category, &mut random);
            assert!((4..=8).contains(&candidates.len()));
            assert!(candidates.iter().any(|path| path == category.path));
            assert_eq!(candidates.iter().collect::<HashSet<_>>().len(), candidates.len());
        }
    }
}
