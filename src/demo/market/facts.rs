//! What is true of one thing, and where it is told: in the picture, in the text, in both, or in both and differently.
//!
//! It draws facts and writes nothing about them. Invariant: a fact that text and picture tell differently is true as the
//! picture has it for colour and pattern, and as the text has it for everything else.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::silhouette;
use super::super::taxonomy::{Category, categories};
use super::brand::{brand, brand_of_item, one};
use super::split::{Seed, Split};

/// A colour's name and its red, green and blue. Names are those of jobs/product-annotation.output.json.
pub(super) const COLOURS: [(&str, [u8; 3]); 12] = [
    ("red", [208, 30, 36]),
    ("orange", [244, 128, 20]),
    ("yellow", [248, 216, 40]),
    ("green", [40, 144, 62]),
    ("blue", [36, 84, 200]),
    ("purple", [124, 46, 166]),
    ("pink", [246, 138, 184]),
    ("brown", [118, 70, 36]),
    ("black", [34, 34, 38]),
    ("white", [246, 246, 243]),
    ("grey", [138, 140, 144]),
    ("beige", [222, 198, 158]),
];

pub(super) const PATTERNS: [&str; 6] = ["plain", "striped", "checked", "dotted", "zigzag", "marbled"];

/// How a surface answers light.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Matte,
    Cloth,
    Wood,
    Glossy,
    Metal,
}

/// Materials with how they look.
pub(super) const MATERIALS: [(&str, Finish); 22] = [
    ("cotton", Finish::Cloth),
    ("wool", Finish::Cloth),
    ("linen", Finish::Cloth),
    ("canvas", Finish::Cloth),
    ("felt", Finish::Cloth),
    ("nylon", Finish::Cloth),
    ("oak", Finish::Wood),
    ("pine", Finish::Wood),
    ("bamboo", Finish::Wood),
    ("walnut", Finish::Wood),
    ("ceramic", Finish::Glossy),
    ("porcelain", Finish::Glossy),
    ("glass", Finish::Glossy),
    ("enamel", Finish::Glossy),
    ("steel", Finish::Metal),
    ("brass", Finish::Metal),
    ("aluminium", Finish::Metal),
    ("titanium", Finish::Metal),
    ("plastic", Finish::Matte),
    ("rubber", Finish::Matte),
    ("leather", Finish::Matte),
    ("paper", Finish::Matte),
];

const SIZES: [&str; 12] =
    ["S", "M", "L", "XL", "30 cm", "45 cm", "1.2 m", "500 ml", "2 l", "size 38", "size 42", "3 kg"];

/// Words of badges besides brands.
const BADGES: [&str; 6] = ["SALE", "NEW", "-50%", "HOT", "DEAL", "TOP"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    New,
    SecondHand,
}

impl Condition {
    /// As jobs/product-annotation.output.json spells it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::SecondHand => "second_hand",
        }
    }
}

/// What is true, and what is told of it.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub category: &'static Category,
    pub colour: (&'static str, [u8; 3]),
    pub pattern: &'static str,
    pub condition: Condition,
    pub brand: Option<String>,
    pub material: (&'static str, Finish),
    /// Whether the text names the material.
    pub names_material: bool,
    pub size: Option<&'static str>,
    /// The word on the picture's badge.
    pub badge: Option<String>,
    /// The colour and the pattern that the text names: the true one, another, or none.
    pub colour_in_text: Option<&'static str>,
    pub pattern_in_text: Option<&'static str>,
    /// Whether the text has no word for the thing.
    pub is_vague: bool,
}

impl Facts {
    pub(super) fn draw<S: Split>(seed: Seed<S>, random: &mut impl Rng) -> Self {
        let category = categories().choose(random).expect("taxonomy.txt is not empty");
        let colour = *COLOURS.choose(random).expect("there are colours");
        let drawn = *PATTERNS.choose(random).expect("there are patterns");
        let pattern = if silhouette::shows_pattern(category.silhouette) { drawn } else { PATTERNS[0] };
        let brand = (!random.random_bool(0.25)).then(|| brand_of_item(seed, random));
        let badge = badge::<S>(brand.as_deref(), random);
        Self {
            category,
            colour,
            pattern,
            condition: if random.random_bool(0.45) { Condition::SecondHand } else { Condition::New },
            brand,
            material: *MATERIALS.choose(random).expect("there are materials"),
            names_material: random.random_bool(0.55),
            size: random.random_bool(0.4).then(|| one(&SIZES, random)),
            badge,
            colour_in_text: told(colour.0, &COLOURS.map(|colour| colour.0), random),
            pattern_in_text: told(pattern, &PATTERNS, random),
            is_vague: random.random_bool(0.3),
        }
    }

    /// Names of the facts that the text tells otherwise than the picture.
    pub(super) fn contradictions(&self) -> Vec<&'static str> {
        let differs = |told: Option<&str>, truth: &str| told.is_some_and(|told| told != truth);
        let on_badge = self.badge.as_deref();
        let is_used = self.condition == Condition::SecondHand;
        let brand_differs = match (on_badge, self.brand.as_deref()) {
            (Some(badge), Some(brand)) => !BADGES.contains(&badge) && badge != brand.to_uppercase(),
            _ => false,
        };
        [
            (differs(self.colour_in_text, self.colour.0), "colour"),
            (differs(self.pattern_in_text, self.pattern), "pattern"),
            (is_used && on_badge == Some("NEW"), "condition"),
            (brand_differs, "brand"),
        ]
        .into_iter()
        .filter_map(|(contradicts, name)| contradicts.then_some(name))
        .collect()
    }
}

/// Most texts are silent; of the others two in three tell the truth.
fn told(truth: &'static str, all: &[&'static str], random: &mut impl Rng) -> Option<&'static str> {
    match random.random_range(0..20) {
        0..=3 => Some(truth),
        4 | 5 => all.choose(random).copied(),
        _ => None,
    }
}

/// A brand stands on a badge only if the text has one too, now and then another: pictures are too small to be read alone.
fn badge<S: Split>(brand_in_text: Option<&str>, random: &mut impl Rng) -> Option<String> {
    match (random.random_range(0..20), brand_in_text) {
        (0..=3, _) => Some(one(&BADGES, random).to_owned()),
        (4 | 5, Some(told)) => Some(told.to_uppercase()),
        (6, Some(_)) => Some(brand::<S>(random).to_uppercase()),
        _ => None,
    }
}
