//! One thing of the market: its message, its pictures and the truth about it.
//!
//! It puts facts, texts and pictures together. Invariant: an item depends on its seed and its number alone, not on how many
//! others there are.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::record::{Record, message_of};
use super::super::taxonomy;
use super::advert::{Advert, advert};
use super::facts::{Condition, Facts};
use super::photo::Photo;
use super::split::{Seed, Split};
use super::wording;
use crate::domain::{AssetKind, Content, Price, Product};

/// What is true of an asset, under the names of jobs/product-annotation.toml and of the public benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MarketTruth {
    pub id: String,
    pub kind: AssetKind,
    pub split: String,
    /// The full path.
    pub category: String,
    /// Null where neither text nor picture names one.
    pub brand: Option<String>,
    /// `new` or `second_hand`; the text has it.
    pub condition: String,
    /// Only the picture has it for certain.
    pub colour: String,
    /// Only the picture has it for certain.
    pub pattern: String,
    /// Null where the text does not name it.
    pub material: Option<String>,
    /// The word on the picture's badge.
    pub badge: Option<String>,
    /// Of an advertisement.
    pub call_to_action: Option<String>,
    /// Of an advertisement: what a reviewer must find.
    pub policy_flags: Vec<String>,
    /// Fields that text and picture tell differently.
    pub contradictions: Vec<String>,
    pub ground_truth_category: String,
    /// Empty where there is none.
    pub ground_truth_brand: String,
    pub ground_truth_is_secondhand: bool,
}

/// One generated asset.
#[derive(Debug, Clone, PartialEq)]
pub struct MarketItem {
    /// The record key, for example `test-product-000042`.
    pub id: String,
    pub content: Content,
    /// In message order, the main one first.
    pub photos: Vec<Photo>,
    /// Seconds since the Unix epoch (UTC).
    pub event_time: i64,
    pub truth: MarketTruth,
    /// Whether nobody has seen it yet.
    pub is_cold: bool,
}

impl MarketItem {
    /// The record that enqueues it. `place` turns a picture's file name into its url.
    pub(in super::super) fn record(&self, place: &dyn Fn(&str) -> String) -> Record {
        let media = self.photos.iter().map(|photo| json!({ "url": place(&photo.name), "role": photo.role })).collect();
        let value = message_of(&self.content, &self.id, media, self.event_time);
        Record { kind: self.truth.kind, key: self.id.clone(), value, timestamp: self.event_time * 1000 }
    }
}

/// 1 March 2026, 08:00 UTC.
const OPENING: i64 = 1_772_352_000;

/// The share of items that nobody has seen yet.
const COLD: f64 = 0.8;

pub(super) fn item<S: Split>(seed: Seed<S>, number: usize) -> MarketItem {
    let mut random = seed.stream(number as u64 + 1);
    let facts = Facts::draw(seed, &mut random);
    let kind = if random.random_bool(0.75) { AssetKind::Product } else { AssetKind::Ad };
    let id = format!("{}-{kind}-{number:06}", S::NAME);
    let (content, flags) = match kind {
        AssetKind::Product => (Content::Product(product(&facts, &mut random)), Vec::new()),
        AssetKind::Ad => {
            let Advert { ad, flags } = advert(&facts, &mut random);
            (Content::Ad(ad), flags)
        }
    };
    let truth = truth::<S>(&id, &facts, &content, &flags);
    let photos = photos::<S>(&id, kind, &facts, &mut random);
    let event_time = OPENING + number as i64 * 41 + random.random_range(0..600);
    MarketItem { id, content, photos, event_time, truth, is_cold: random.random_bool(COLD) }
}

fn truth<S: Split>(id: &str, facts: &Facts, content: &Content, flags: &[&str]) -> MarketTruth {
    let call_to_action = match content {
        Content::Product(_) => None,
        Content::Ad(ad) => ad.call_to_action.clone(),
    };
    let kind = if matches!(content, Content::Product(_)) { AssetKind::Product } else { AssetKind::Ad };
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    MarketTruth {
        id: id.to_owned(),
        kind,
        split: S::NAME.to_owned(),
        category: facts.category.path.to_owned(),
        brand: facts.brand.clone(),
        condition: facts.condition.as_str().to_owned(),
        colour: facts.colour.0.to_owned(),
        pattern: facts.pattern.to_owned(),
        material: facts.names_material.then(|| facts.material.0.to_owned()),
        badge: facts.badge.clone(),
        call_to_action,
        policy_flags: owned(flags),
        contradictions: owned(&facts.contradictions()),
        ground_truth_category: facts.category.path.to_owned(),
        ground_truth_brand: facts.brand.clone().unwrap_or_default(),
        ground_truth_is_secondhand: facts.condition == Condition::SecondHand,
    }
}

fn product(facts: &Facts, random: &mut ChaCha8Rng) -> Product {
    let title = wording::title(facts, random);
    let description = wording::description(facts, &title, random);
    let (low, high) = facts.category.price;
    let share = if facts.condition == Condition::SecondHand { 0.55 } else { 1.0 };
    let cents = (f64::from(random.random_range(low * 100..high * 100)) * share).round();
    let markets = [("en-GB", "GBP"), ("en-US", "USD"), ("en-AU", "AUD"), ("en-IE", "EUR"), ("en-CA", "CAD")];
    let (locale, currency) = markets.choose(random).copied().expect("there are markets");
    let mut attributes = BTreeMap::from([("sku".to_owned(), format!("{:08X}", random.random::<u32>()))]);
    attributes.extend(facts.size.map(|size| ("size".to_owned(), size.to_owned())));
    Product {
        title,
        description,
        attributes,
        candidate_categories: taxonomy::candidates(facts.category, random),
        locale: Some(locale.to_owned()),
        price: Some(Price { amount: cents / 100.0, currency: currency.to_owned() }),
    }
}

fn photos<S: Split>(id: &str, kind: AssetKind, facts: &Facts, random: &mut ChaCha8Rng) -> Vec<Photo> {
    let main = Photo {
        name: String::new(),
        role: if kind == AssetKind::Product { "main" } else { "creative" },
        silhouette: facts.category.silhouette,
        colour: shade(facts.colour, random),
        pattern: facts.pattern,
        finish: facts.material.1,
        badge: facts.badge.clone(),
        is_close: false,
        seed: Seed::<S>::of_picture(random),
    };
    let detail = (kind == AssetKind::Product && random.random_bool(0.12)).then(|| Photo {
        role: "detail",
        badge: None,
        is_close: true,
        seed: Seed::<S>::of_picture(random),
        ..main.clone()
    });
    let named = |photo: Photo| Photo { name: format!("{id}-{}.jpg", photo.role), ..photo };
    [Some(main), detail].into_iter().flatten().map(named).collect()
}

/// The colour as this thing has it. A tint would make another colour of a neutral one, so those only get lighter or darker.
fn shade((name, colour): (&str, [u8; 3]), random: &mut ChaCha8Rng) -> [u8; 3] {
    let shift: i16 = random.random_range(-10..=10);
    let is_neutral = ["grey", "white", "black", "beige"].contains(&name);
    colour.map(|channel| {
        let shift = if is_neutral { shift } else { random.random_range(-12..=12) };
        (i16::from(channel) + shift).clamp(0, 255) as u8
    })
}
