//! What shops and private sellers write about a product: title and description in several phrasings, with typos.
//!
//! It tells the facts it is given and invents no other. Invariant: the wordings of new and second-hand things never overlap,
//! every text tells the condition, and a brand is spelled as it is, somewhere in title or description.

use rand::Rng;

use super::brand::{capitalised, one, town};
use super::facts::{Condition, Facts};
use super::typos::with_typos;

pub(super) const NEW: [&str; 12] = [
    "Brand new, in its original packaging",
    "New and unused",
    "Fresh from the factory with full warranty",
    "Never opened, seal intact",
    "New, with the tags still on",
    "Straight from this season's collection",
    "Unworn, untouched, ready to ship",
    "Condition: new",
    "First hand, straight from our warehouse",
    "Unboxed only for the photograph, otherwise new",
    "Current model with a two-year guarantee",
    "New old stock, never sold before",
];

pub(super) const SECOND_HAND: [&str; 14] = [
    "Second-hand, with light traces of use",
    "Pre-owned but well looked after",
    "Used for one season, still in good order",
    "Gently used, from a smoke-free home",
    "From a house clearance, a few scratches",
    "Pre-loved and looking for its next owner",
    "Condition: used",
    "My grandmother had it for years; it shows a little",
    "Has seen some summers but works as it should",
    "Thrifted, one small mark on the side",
    "Worn a handful of times, selling because I moved",
    "Previously owned, cleaned and checked",
    "Vintage find with honest wear",
    "A little faded after two owners",
];

const CLOSINGS: [&str; 8] = [
    "Shipped within two days",
    "Free returns for thirty days",
    "A fine gift as well",
    "Questions are answered the same day",
    "Only a few left",
    "Smoke-free household",
    "No reservations, first come first served",
    "Payment by transfer or in cash",
];

const VAGUE: [&str; 10] = [
    "Everyday favourite",
    "A classic piece",
    "Something special for you",
    "Limited find",
    "Nice item, see photo",
    "As pictured",
    "Simple and good",
    "The one you were looking for",
    "Great gift idea",
    "Bargain",
];

/// A title: brand, noun, material, size, in changing order; of a vague text without the noun.
pub(super) fn title(facts: &Facts, random: &mut impl Rng) -> String {
    let noun = thing(facts, random);
    let named = match (brand_in_title(facts), random.random_range(0..6)) {
        (None, _) => noun,
        (Some(brand), 0 | 1) => format!("{brand} {noun}"),
        (Some(brand), 2) => format!("{noun} by {brand}"),
        (Some(brand), 3) => format!("{noun} from {brand}"),
        (Some(brand), 4) => format!("{brand} - {noun}"),
        (Some(brand), _) => format!("{noun}, {brand}"),
    };
    let size = facts.size.filter(|_| random.random_bool(0.5)).map(|size| format!(", {size}"));
    capitalised(&(named + &size.unwrap_or_default()))
}

/// The brand, if the title is the place to tell it: that of every third thing stands in the description.
fn brand_in_title(facts: &Facts) -> Option<&str> {
    facts.brand.as_deref().filter(|brand| !brand.len().is_multiple_of(3))
}

/// Noun with what adjectives the text has, or a phrase without any noun.
fn thing(facts: &Facts, random: &mut impl Rng) -> String {
    if facts.is_vague {
        return one(&VAGUE, random).to_owned();
    }
    let noun = one(&facts.category.nouns, random);
    let material = Some(facts.material.0).filter(|_| facts.names_material && random.random_bool(0.4));
    let words = [facts.colour_in_text, facts.pattern_in_text, material].into_iter().flatten();
    words.chain([noun]).collect::<Vec<_>>().join(" ")
}

/// A description: purpose, condition, what the title left out, in changing order.
pub(super) fn description(facts: &Facts, title: &str, random: &mut impl Rng) -> String {
    let mut sentences = vec![condition(facts.condition, random).to_owned()];
    if !facts.is_vague && random.random_bool(0.6) {
        sentences.push(facts.category.purpose.to_owned());
    }
    let missing = |word: &str| !title.contains(word);
    if let Some(brand) = facts.brand.as_deref().filter(|brand| missing(brand)) {
        let phrase = ["Made by", "A product of", "Brand:", "Genuine", "The label says"];
        sentences.push(format!("{} {brand}", one(&phrase, random)));
    }
    if facts.names_material && missing(facts.material.0) {
        let phrase = ["Made of", "Material:", "It is", "All"];
        sentences.push(format!("{} {}", one(&phrase, random), facts.material.0));
    }
    let adjectives = [facts.colour_in_text, facts.pattern_in_text].into_iter().flatten().filter(|word| missing(word));
    sentences.extend(adjectives.map(|word| format!("Colour and finish: {word}")));
    sentences.extend(facts.size.filter(|size| missing(size)).map(|size| format!("Size {size}")));
    if random.random_bool(0.35) {
        sentences.push(format!("Pick-up in {} is possible", town(random)));
    }
    if random.random_bool(0.4) {
        sentences.push(one(&CLOSINGS, random).to_owned());
    }
    shuffled(&mut sentences, random);
    let text = sentences.iter().map(|sentence| format!("{sentence}.")).collect::<Vec<_>>().join(" ");
    with_typos(&text, random)
}

/// A sentence about the condition.
pub(super) fn condition(condition: Condition, random: &mut impl Rng) -> &'static str {
    match condition {
        Condition::New => one(&NEW, random),
        Condition::SecondHand => one(&SECOND_HAND, random),
    }
}

fn shuffled(sentences: &mut [String], random: &mut impl Rng) {
    use rand::seq::SliceRandom;
    sentences.shuffle(random);
}
