//! Advertisements: headline, body, call to action, and the markup of the page that they lead to.
//!
//! It tells the facts of a thing, and makes what a reviewer must find: a page about another thing, a price that the page
//! does not keep, markup that does not close. Invariant: the flags name exactly what was made.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::taxonomy::categories;
use super::brand::{capitalised, one};
use super::facts::Facts;
use super::wording::condition;
use crate::domain::Ad;

const CALLS: [&str; 8] = [
    "Shop now",
    "See the offer",
    "Order today",
    "Find yours",
    "Learn more",
    "Add to basket",
    "Get it now",
    "Reserve one",
];

const HOOKS: [&str; 8] =
    ["Meet", "Treat yourself to", "Say hello to", "Fall for", "The one:", "Finally:", "Now in:", "You deserve"];

/// What a reviewer must find, as jobs/ad-annotation.output.json names it.
const FLAWS: [&str; 3] = ["mismatch", "misleading_price", "broken_markup"];

/// An advertisement with its flags.
pub(super) struct Advert {
    pub ad: Ad,
    pub flags: Vec<&'static str>,
}

pub(super) fn advert(facts: &Facts, random: &mut impl Rng) -> Advert {
    let flags: Vec<&str> = FLAWS.into_iter().filter(|_| random.random_bool(0.1)).collect();
    let (noun, headline) = headline(facts, random);
    let (low, high) = facts.category.price;
    let price = f64::from(random.random_range(low * 100..high * 100)) / 100.0;
    let body = body(facts, price, random);
    let is_wrong = |flag: &str| flags.contains(&flag);
    let page_price = if is_wrong("misleading_price") { price * random.random_range(1.3..2.0) } else { price };
    let other = categories().choose(random).filter(|other| is_wrong("mismatch") && other.path != facts.category.path);
    let flags = flags.iter().copied().filter(|flag| *flag != "mismatch" || other.is_some()).collect();
    let shown = match other {
        Some(other) => Shown { thing: one(&other.nouns, random), category: other.path, purpose: other.purpose },
        None => Shown { thing: noun, category: facts.category.path, purpose: facts.category.purpose },
    };
    let page = page(facts, &shown, page_price, random);
    let page = if is_wrong("broken_markup") { broken(&page) } else { page };
    let call_to_action = Some(one(&CALLS, random).to_owned());
    Advert { ad: Ad { headline, body, call_to_action, landing_page: Some(page) }, flags }
}

fn headline(facts: &Facts, random: &mut impl Rng) -> (&'static str, String) {
    let noun = one(&facts.category.nouns, random);
    let colour = facts.colour_in_text.map(|colour| format!("{colour} ")).unwrap_or_default();
    let headline = match (&facts.brand, random.random_range(0..3)) {
        (Some(brand), 0) => format!("{} the {colour}{noun} by {brand}", one(&HOOKS, random)),
        (Some(brand), 1) => format!("{brand}: a {colour}{noun} to keep"),
        (Some(brand), _) => format!("{brand} {colour}{noun}"),
        (None, _) => format!("{} a {colour}{noun}", one(&HOOKS, random)),
    };
    (noun, headline)
}

fn body(facts: &Facts, price: f64, random: &mut impl Rng) -> String {
    let mut sentences = vec![facts.category.purpose.to_owned(), condition(facts.condition, random).to_owned()];
    if facts.names_material {
        sentences.push(format!("Made of {}", facts.material.0));
    }
    sentences.push(format!("{} {price:.2}", one(&["Now only", "For", "Yours for", "From"], random)));
    if random.random_bool(0.5) {
        sentences.swap(0, 1);
    }
    sentences.iter().map(|sentence| format!("{sentence}.")).collect::<Vec<_>>().join(" ")
}

/// What the page is about.
struct Shown {
    thing: &'static str,
    category: &'static str,
    purpose: &'static str,
}

/// A page with the usual furniture around the part that matters, in one of three makes.
fn page(facts: &Facts, shown: &Shown, price: f64, random: &mut impl Rng) -> String {
    let shop = escaped(facts.brand.as_deref().unwrap_or("Corner Shop"));
    let thing = escaped(&capitalised(shown.thing));
    let (category, purpose) = (escaped(shown.category), escaped(shown.purpose));
    let used = escaped(condition(facts.condition, random));
    let head = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{thing} | {shop}</title>\
         <script>window.dataLayer=[];</script><style>h1{{font-size:2em}}</style></head><body>\
         <nav><a href=\"/\">{shop}</a> <a href=\"/basket\">Basket (0)</a></nav>"
    );
    let middle = match random.random_range(0..3) {
        0 => format!(
            "<main><h1>{thing}</h1><p>{purpose}. {used}.</p><ul><li>{category}</li><li>Price: {price:.2}</li></ul></main>"
        ),
        1 => format!(
            "<article itemscope><h1 itemprop=\"name\">{thing}</h1><div class=\"crumbs\">{category}</div>\
             <table><tr><th>Condition</th><td>{used}</td></tr><tr><th>Price</th><td>{price:.2}</td></tr></table>\
             <p>{purpose}.</p></article>"
        ),
        _ => format!(
            "<div class=\"banner\">Free delivery over 50</div><section><h2>{thing}</h2><p>{used}.</p><p>{purpose}.</p>\
             <b>{price:.2}</b><small>{category}</small></section>"
        ),
    };
    format!("{head}{middle}<footer>{shop} Ltd. Terms and privacy. Cookies.</footer></body></html>")
}

/// Elements that never close, and an attribute that does not end.
fn broken(page: &str) -> String {
    page.replace("</h1>", "").replace("</p>", "").replace("</section>", "<div class=\"").replace("</body></html>", "")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
