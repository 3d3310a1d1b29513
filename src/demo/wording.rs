//! What the demo's shops write: titles, descriptions, headlines and landing pages, in several phrasings.
//!
//! Texts say brand, condition and sometimes the material; they never say colour or pattern, which only the picture shows.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::taxonomy::Category;

/// The facts of a thing that a text may tell.
pub(super) struct Facts<'a> {
    pub category: &'static Category,
    pub brand: &'a str,
    pub material: &'a str,
    pub second_hand: bool,
}

const NEW: [&str; 6] = [
    "Brand new, in its original packaging",
    "New and unused",
    "Fresh from the factory with full warranty",
    "Unopened",
    "New, never used",
    "Straight from this season's collection",
];

const SECOND_HAND: [&str; 7] = [
    "Second-hand, with light traces of use",
    "Pre-owned but well looked after",
    "Used for one season, still in good order",
    "Gently used, from a smoke-free home",
    "From a house clearance, a few scratches",
    "Pre-loved and looking for a second owner",
    "Refurbished after a customer return",
];

const CLOSING: [&str; 6] = [
    "Shipped within two days",
    "Free returns for thirty days",
    "A fine gift as well",
    "Collection in person is possible",
    "Questions are answered the same day",
    "Only a few left",
];

const PRAISE: [&str; 7] = ["The", "Our favourite", "A timeless", "The everyday", "A sturdy", "The new", "A beloved"];

const CALLS: [&str; 6] = ["Shop now", "See the offer", "Order today", "Find yours", "Learn more", "Add to basket"];

fn one<'a>(choices: &[&'a str], random: &mut impl Rng) -> &'a str {
    choices.choose(random).copied().unwrap_or_default()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A product's title, for example `Hartwell enamel mug`.
pub(super) fn title(facts: &Facts<'_>, random: &mut impl Rng) -> String {
    let (brand, material, noun) = (facts.brand, facts.material, one(&facts.category.nouns, random));
    let title = match random.random_range(0..6) {
        0 => format!("{brand} {noun}"),
        1 => format!("{brand} {material} {noun}"),
        2 => format!("{noun} by {brand}"),
        3 => format!("{noun}, {material}, {brand}"),
        4 => format!("{brand} - {noun} made of {material}"),
        _ => format!("{material} {noun} from {brand}"),
    };
    capitalised(&title)
}

/// A product's description: its purpose, its condition, and now and then its material and a closing line.
pub(super) fn description(facts: &Facts<'_>, random: &mut impl Rng) -> String {
    let condition = one(if facts.second_hand { &SECOND_HAND } else { &NEW }, random).to_owned();
    let mut sentences = vec![facts.category.purpose.to_owned(), condition];
    if random.random_bool(0.5) {
        sentences.push(format!("Made of {}", facts.material));
    }
    if random.random_bool(0.3) {
        sentences.swap(0, 1);
    }
    if random.random_bool(0.5) {
        sentences.push(one(&CLOSING, random).to_owned());
    }
    sentences.iter().map(|sentence| format!("{sentence}.")).collect::<Vec<_>>().join(" ")
}

/// An advertisement's headline.
pub(super) fn headline(facts: &Facts<'_>, random: &mut impl Rng) -> String {
    let (brand, noun) = (facts.brand, one(&facts.category.nouns, random));
    let praise = one(&PRAISE, random);
    match random.random_range(0..4) {
        0 => format!("{praise} {noun} by {brand}"),
        1 => format!("{brand}: {} you will keep", plain_plural(facts)),
        2 => format!("{praise} {} {noun}", facts.material),
        _ => format!("Meet the {brand} {noun}"),
    }
}

fn plain_plural(facts: &Facts<'_>) -> String {
    facts.category.path.rsplit(" > ").next().unwrap_or_default().to_lowercase()
}

/// An advertisement's running text.
pub(super) fn body(facts: &Facts<'_>, random: &mut impl Rng) -> String {
    let condition = one(if facts.second_hand { &SECOND_HAND } else { &NEW }, random);
    let closing = one(&CLOSING, random);
    match random.random_bool(0.5) {
        true => format!("{}. {condition}. {closing}.", facts.category.purpose),
        false => format!("{}. Made of {}. {condition}.", facts.category.purpose, facts.material),
    }
}

/// The words on an advertisement's button.
pub(super) fn call_to_action(random: &mut impl Rng) -> &'static str {
    one(&CALLS, random)
}

/// The page an advertisement leads to, with the usual furniture around the one paragraph that matters.
pub(super) fn landing_page(headline: &str, body: &str, facts: &Facts<'_>) -> String {
    let (headline, body) = (escaped(headline), escaped(body));
    let (brand, category) = (escaped(facts.brand), escaped(facts.category.path));
    format!(
        "<!doctype html><html lang=\"en\"><head><title>{headline}</title><style>h1{{font-size:2em}}</style></head><body>\
         <nav><a href=\"/\">{brand}</a> <a href=\"/basket\">Basket</a></nav><h1>{headline}</h1><p>{body}</p>\
         <ul><li>{category}</li><li>Material: {}</li></ul><footer>{brand} Ltd. Terms and privacy.</footer></body></html>",
        escaped(facts.material)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::super::taxonomy::{COLOURS, PATTERNS, categories};
    use super::*;

    fn facts(second_hand: bool) -> Facts<'static> {
        Facts { category: &categories()[0], brand: "Kestrel & Co", material: "enamel", second_hand }
    }

    #[test]
    fn texts_never_tell_what_only_the_picture_shows() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for category in categories() {
            let facts = Facts { category, ..facts(true) };
            let text = format!(
                "{} {} {}",
                title(&facts, &mut random),
                description(&facts, &mut random),
                body(&facts, &mut random)
            );
            let lower = text.to_lowercase();
            let words: Vec<&str> = lower.split(|letter: char| !letter.is_alphabetic()).collect();
            let told = COLOURS.iter().map(|colour| colour.0).chain(PATTERNS).find(|word| words.contains(word));
            assert_eq!(told, None, "{text}");
        }
    }

    #[test]
    fn the_wording_of_new_and_second_hand_things_never_overlaps() {
        let mut random = ChaCha8Rng::seed_from_u64(6);
        for _ in 0..50 {
            let new = description(&facts(false), &mut random);
            let used = description(&facts(true), &mut random);
            assert!(
                NEW.iter().any(|words| new.contains(words)) && !SECOND_HAND.iter().any(|words| new.contains(words))
            );
            assert!(
                SECOND_HAND.iter().any(|words| used.contains(words)) && !NEW.iter().any(|words| used.contains(words))
            );
        }
    }

    #[test]
    fn a_landing_page_escapes_what_would_be_markup() {
        let page = landing_page("Cups < mugs", "Tea & coffee.", &facts(false));
        assert!(page.contains("<h1>Cups &lt; mugs</h1>") && page.contains("Tea &amp; coffee."));
    }
}
