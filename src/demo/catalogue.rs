//! Generates the demo's assets and the truth about them.
//!
//! Asset k draws from its own random stream, so it is the same whether ten or ten thousand assets are asked for. This
//! file does no I/O; `files` writes what it describes.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::domain::{Ad, AssetKind, Content, Price, Product};

use super::draw::{Encoding, Picture, Scene};
use super::silhouette;
use super::taxonomy::{self, BRANDS, COLOURS, CONDITIONS, PATTERNS, categories};
use super::wording::{self, Facts};

/// What is true of an asset, whether its text or its picture says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// The asset's id.
    pub id: String,
    pub kind: AssetKind,
    /// The full path, for example `Home & Garden > Kitchen > Mugs`.
    pub category: String,
    /// Told by the picture alone.
    pub colour: String,
    /// Told by the picture alone.
    pub pattern: String,
    /// Told by the text alone.
    pub brand: String,
    /// `new` or `second-hand`, told by the text alone.
    pub condition: String,
    /// Sometimes told by the text.
    pub material: String,
}

/// One generated asset: its message apart from the places of its pictures, the pictures, and the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The record key, for example `product-000042`.
    pub id: String,
    pub content: Content,
    /// In message order, the main one first.
    pub pictures: Vec<Picture>,
    /// Seconds since the Unix epoch (UTC).
    pub event_time: i64,
    pub truth: Truth,
}

impl Item {
    pub fn kind(&self) -> AssetKind {
        self.truth.kind
    }
}

/// A generated catalogue; pictures are drawn when it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    pub items: Vec<Item>,
    pub(super) faults: bool,
}

/// 1 March 2026, 08:00 UTC: the demo's shops open. Fixed, because the same seed must give the same messages.
const OPENING: i64 = 1_772_352_000;

/// Locales with their currencies; every text is English.
const MARKETS: [(&str, &str); 5] =
    [("en-GB", "GBP"), ("en-US", "USD"), ("en-AU", "AUD"), ("en-IE", "EUR"), ("en-CA", "CAD")];

impl Catalogue {
    /// `assets` products and ads, about three to one, all decided by `seed`.
    pub fn generate(seed: u64, assets: usize) -> Self {
        Self { items: (0..assets).map(|index| item(seed, index)).collect(), faults: false }
    }

    /// Adds what goes wrong in real life: a message that breaks its schema, a missing, a truncated and a bomb of a
    /// picture, and, when there are items enough, a tombstone and an asset that is updated twice out of order.
    pub fn with_faults(self) -> Self {
        Self { faults: true, ..self }
    }
}

fn item(seed: u64, index: usize) -> Item {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index as u64 + 1);
    let category = categories().choose(&mut random).expect("taxonomy.txt is not empty");
    let brand = BRANDS.choose(&mut random).expect("there are brands");
    let material = category.materials.choose(&mut random).expect("every category has materials");
    let colour = COLOURS.choose(&mut random).expect("there are colours");
    let drawn = PATTERNS.choose(&mut random).expect("there are patterns");
    let pattern = if silhouette::shows_pattern(category.silhouette) { *drawn } else { PATTERNS[0] };
    let facts = Facts { category, brand, material, second_hand: random.random_bool(0.4) };
    let kind = if random.random_bool(0.75) { AssetKind::Product } else { AssetKind::Ad };
    let id = format!("{kind}-{index:06}");
    let truth = Truth {
        id: id.clone(),
        kind,
        category: category.path.to_owned(),
        colour: colour.0.to_owned(),
        pattern: pattern.to_owned(),
        brand: (*brand).to_owned(),
        condition: CONDITIONS[usize::from(facts.second_hand)].to_owned(),
        material: (*material).to_owned(),
    };
    let content = match kind {
        AssetKind::Product => Content::Product(product(&facts, &mut random)),
        AssetKind::Ad => Content::Ad(ad(&facts, &mut random)),
    };
    let jitter: [i16; 3] = std::array::from_fn(|_| random.random_range(-10..=10));
    let tone = std::array::from_fn(|channel| (i16::from(colour.1[channel]) + jitter[channel]).clamp(0, 255) as u8);
    let scene = Scene { silhouette: category.silhouette, colour: tone, pattern, close: false, seed: random.random() };
    let pictures = pictures(&id, kind, scene, &mut random);
    let event_time = OPENING + index as i64 * 41 + random.random_range(0..600);
    Item { id, content, pictures, event_time, truth }
}

fn product(facts: &Facts<'_>, random: &mut ChaCha8Rng) -> Product {
    let title = wording::title(facts, random);
    let description = wording::description(facts, random);
    let (locale, currency) = MARKETS.choose(random).copied().expect("there are markets");
    let (low, high) = facts.category.price;
    let used = if facts.second_hand { 0.55 } else { 1.0 };
    let cents = (f64::from(random.random_range(low * 100..high * 100)) * used).round();
    let mut attributes = BTreeMap::from([("sku".to_owned(), format!("{:08X}", random.random::<u32>()))]);
    if random.random_bool(0.4) {
        attributes.insert("material".to_owned(), facts.material.to_owned());
    }
    Product {
        title,
        description,
        attributes,
        candidate_categories: taxonomy::candidates(facts.category, random),
        locale: Some(locale.to_owned()),
        price: Some(Price { amount: cents / 100.0, currency: currency.to_owned() }),
    }
}

fn ad(facts: &Facts<'_>, random: &mut ChaCha8Rng) -> Ad {
    let headline = wording::headline(facts, random);
    let body = wording::body(facts, random);
    let landing_page = wording::landing_page(&headline, &body, facts);
    let call_to_action = Some(wording::call_to_action(random).to_owned());
    Ad { headline, body, call_to_action, landing_page: Some(landing_page) }
}

fn pictures(id: &str, kind: AssetKind, scene: Scene, random: &mut ChaCha8Rng) -> Vec<Picture> {
    let role = if kind == AssetKind::Product { "main" } else { "creative" };
    let mut pictures = vec![picture(format!("{id}-{role}"), role, scene.clone(), random)];
    if kind == AssetKind::Product && random.random_bool(0.15) {
        let close = Scene { close: true, seed: random.random(), ..scene };
        pictures.push(picture(format!("{id}-detail"), "detail", close, random));
    }
    pictures
}

fn picture(stem: String, role: &'static str, scene: Scene, random: &mut ChaCha8Rng) -> Picture {
    let encoding = match random.random_range(0..20) {
        0 | 1 => Encoding::Png,
        2 => Encoding::WebP,
        _ => Encoding::Jpeg(random.random_range(60..=95)),
    };
    Picture { name: format!("{stem}.{}", encoding.extension()), role, scene, encoding }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_catalogue() {
        assert_eq!(Catalogue::generate(7, 60), Catalogue::generate(7, 60));
    }

    #[test]
    fn another_seed_gives_other_assets() {
        let (one, two) = (Catalogue::generate(7, 30), Catalogue::generate(8, 30));
        assert!(
            one.items.iter().zip(&two.items).all(|(one, two)| one.truth != two.truth || one.content != two.content)
        );
    }

    #[test]
    fn a_smaller_catalogue_is_the_beginning_of_a_larger_one() {
        assert_eq!(Catalogue::generate(7, 20).items, Catalogue::generate(7, 200).items[..20]);
    }

    #[test]
    fn about_three_quarters_are_products_and_every_category_occurs() {
        let catalogue = Catalogue::generate(1, 2000);
        let products = catalogue.items.iter().filter(|item| item.kind() == AssetKind::Product).count();
        assert!((1400..1600).contains(&products), "{products} of 2000");
        let seen: HashSet<_> = catalogue.items.iter().map(|item| &item.truth.category).collect();
        assert_eq!(seen.len(), categories().len());
    }

    #[test]
    fn texts_tell_the_brand_of_most_assets_and_file_names_are_unique() {
        let catalogue = Catalogue::generate(2, 300);
        let told = |item: &Item| match &item.content {
            Content::Product(product) => product.title.contains(&item.truth.brand),
            Content::Ad(ad) => ad.landing_page.as_ref().is_some_and(|page| page.contains("<nav>")),
        };
        assert!(catalogue.items.iter().all(told));
        let names: Vec<_> =
            catalogue.items.iter().flat_map(|item| &item.pictures).map(|picture| &picture.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn every_picture_decodes() {
        for picture in Catalogue::generate(3, 60).items.iter().flat_map(|item| &item.pictures) {
            let bytes = std::io::Cursor::new(picture.encode());
            let decoded = image::ImageReader::new(bytes).with_guessed_format().unwrap().decode().unwrap();
            assert!((160..=320).contains(&decoded.width()) && (160..=320).contains(&decoded.height()));
        }
    }
}
