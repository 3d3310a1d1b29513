//! Brands out of random syllables, and names that look like brands and are none.
//!
//! It knows splits, no texts. Invariant: a brand belongs to the split that it was drawn for, and to no other.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::split::{Seed, Split};

const OPENINGS: [&str; 44] = [
    "ba", "bel", "bri", "cal", "cor", "da", "dun", "el", "fa", "fjel", "gal", "gre", "ha", "hol", "il", "jo", "ka",
    "kes", "kil", "la", "lum", "ma", "mon", "na", "nor", "o", "or", "pa", "pel", "quil", "ra", "ros", "sa", "sor",
    "ta", "thi", "um", "va", "ves", "wex", "wil", "ya", "zel", "zu",
];

const MIDDLES: [&str; 28] = [
    "ba", "bri", "co", "da", "de", "di", "fo", "ga", "ko", "la", "le", "li", "lo", "ma", "me", "mi", "na", "ni", "no",
    "ra", "ri", "ro", "sa", "so", "ta", "ti", "ve", "vi",
];

const ENDINGS: [&str; 32] = [
    "by", "combe", "don", "dor", "fold", "gard", "ham", "haven", "ka", "kin", "la", "lan", "lo", "mark", "more", "na",
    "nell", "now", "ra", "rin", "ro", "sen", "son", "sby", "ta", "ton", "tra", "va", "vik", "wick", "wood", "worth",
];

/// Only in tests.
const UNHEARD: [&str; 16] =
    ["aux", "blo", "chu", "dwe", "euf", "glim", "hyp", "jux", "klee", "mye", "oum", "phe", "psy", "snot", "tsi", "xan"];

/// What stands before or after a brand of two words.
const SECOND_WORDS: [&str; 12] =
    ["& Co", "Atelier", "Blu", "Fine", "Goods", "Hill", "House", "Living", "Nord", "Studio", "Works", "& Sons"];

/// Towns: capitalised like brands, and never one.
const TOWNS: [&str; 14] = [
    "Ghent", "Leeds", "Lyon", "Porto", "Turin", "Basel", "Bergen", "Cork", "Dresden", "Aarhus", "Utrecht", "Girona",
    "Malmo", "Bristol",
];

/// A brand for an item: in a split with house brands mostly one of these.
pub(super) fn brand_of_item<S: Split>(seed: Seed<S>, random: &mut impl Rng) -> String {
    /// Far from the streams of items and of users.
    const STREAMS: u64 = 1 << 63;
    match S::HOUSE_BRANDS {
        0 => brand::<S>(random),
        _ if random.random_bool(0.3) => brand::<S>(random),
        // Squared, so that some have more than others.
        many => {
            let place: f64 = random.random::<f64>().powi(2) * many as f64;
            brand::<S>(&mut seed.stream(STREAMS + place as u64))
        }
    }
}

/// A brand of the split. Its letters are ASCII.
pub(super) fn brand<S: Split>(random: &mut impl Rng) -> String {
    loop {
        let brand = any::<S>(random);
        if S::has_tenth(tenth(&brand)) {
            return brand;
        }
    }
}

fn any<S: Split>(random: &mut impl Rng) -> String {
    let mut word = one(&OPENINGS, random).to_owned();
    for _ in 0..random.random_range(0..=2) {
        word.push_str(one(&MIDDLES, random));
    }
    if S::NEW_SYLLABLES && random.random_bool(0.5) {
        word.push_str(one(&UNHEARD, random));
    }
    // Every tenth is no pronounceable word, so that reading it is the only way to know it.
    match random.random_bool(0.1) {
        true => (0..random.random_range(2..5)).for_each(|_| word.push(char::from(random.random_range(b'a'..=b'z')))),
        false => word.push_str(one(&ENDINGS, random)),
    }
    let word = capitalised(&word);
    match random.random_bool(0.15) {
        true => format!("{word} {}", one(&SECOND_WORDS, random)),
        false => word,
    }
}

/// Which tenth of the brand space a brand lies in: FNV-1a of its lower-case letters, because the standard hasher may
/// change with a compiler.
fn tenth(brand: &str) -> u64 {
    let hash = brand
        .to_lowercase()
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    hash % 10
}

/// The name of a town.
pub(super) fn town(random: &mut impl Rng) -> &'static str {
    one(&TOWNS, random)
}

pub(super) fn one<'a>(choices: &[&'a str], random: &mut impl Rng) -> &'a str {
    choices.choose(random).copied().unwrap_or_default()
}

pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::split::{Shop, Test, Training, Validation};
    use super::*;

    #[test]
    fn a_shop_has_brands_that_come_again() {
        let seed = Seed::<Shop>::new(9).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<String> = (0..200).map(|_| brand_of_item(seed, &mut random)).collect();
        let different: HashSet<&String> = drawn.iter().collect();
        assert!((40..90).contains(&different.len()), "{}", different.len());
    }

    #[test]
    fn no_brand_is_drawn_for_two_splits() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let training: HashSet<String> = (0..4000).map(|_| brand::<Training>(&mut random)).collect();
        let validation: HashSet<String> = (0..1000).map(|_| brand::<Validation>(&mut random)).collect();
        let test: HashSet<String> = (0..1000).map(|_| brand::<Test>(&mut random)).collect();
        assert!(training.len() > 3_000, "brands repeat: {}", training.len());
        assert!(training.is_disjoint(&validation) && training.is_disjoint(&test) && validation.is_disjoint(&test));
        assert!(test.iter().any(|brand| brand.to_lowercase().contains("xan")));
        assert!(training.iter().all(|brand| brand.is_ascii() && !TOWNS.contains(&brand.as_str())));
    }
}
