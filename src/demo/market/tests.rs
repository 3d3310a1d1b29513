//! What holds of the generated catalogue as a whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use serde_json::Value;

use super::facts::{COLOURS, PATTERNS};
use super::wording::{NEW, SECOND_HAND};
use super::{Extras, Market, Seed, Split, Test, Training, Validation};
use crate::domain::{AssetKind, Content};

fn market<S: Split>(number: u64, items: usize) -> Market<S> {
    Market::generate(Seed::new(number).unwrap(), items)
}

/// Every file under a folder with its bytes, with the folder's own name taken out.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let bytes = match std::str::from_utf8(&bytes) {
                Ok(text) => text.replace(&folder.canonicalize().unwrap().display().to_string(), "").into_bytes(),
                Err(_) => bytes,
            };
            found.insert(path.strip_prefix(folder).unwrap().display().to_string(), bytes);
        }
    }
    found
}

fn written<S: Split>(number: u64, items: usize) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    market::<S>(number, items).write(folder.path(), Extras { masks: true, faults: false }).unwrap();
    files(folder.path())
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_or_split_gives_others() {
    let first = written::<Training>(3, 24);
    assert_eq!(first, written::<Training>(3, 24));
    let pictures = first.keys().filter(|name| name.starts_with("media/")).count();
    let masks = first.keys().filter(|name| name.starts_with("masks/")).count();
    assert!(pictures >= 24 && pictures == masks);
    for name in ["labels.jsonl", "interactions/past.jsonl", "topics/products/0.jsonl", "topics/ads/3.jsonl"] {
        assert!(first.contains_key(name), "{name}");
    }
    let contents = |files: BTreeMap<String, Vec<u8>>| -> HashSet<Vec<u8>> {
        files
            .into_iter()
            .filter(|(name, bytes)| name.starts_with("media/") && !bytes.is_empty())
            .map(|file| file.1)
            .collect()
    };
    let first = contents(first);
    for other in [written::<Training>(4, 24), written::<Validation>(3, 24), written::<Test>(3, 24)] {
        assert!(first.is_disjoint(&contents(other)));
    }
}

#[test]
fn a_smaller_catalogue_is_the_beginning_of_a_larger_one() {
    assert_eq!(market::<Test>(7, 20).items, market::<Test>(7, 200).items[..20]);
}

#[test]
fn products_alone_are_those_of_the_whole_catalogue() {
    let products = Market::<Test>::products(Seed::new(7).unwrap(), 20);
    let whole = market::<Test>(7, 40).items;
    let expected: Vec<_> = whole.into_iter().filter(|item| item.truth.kind == AssetKind::Product).take(20).collect();
    assert_eq!(products.items, expected);
}

#[test]
fn splits_share_no_brand_and_each_says_its_name() {
    fn brands<S: Split>() -> BTreeSet<String> {
        market::<S>(1, 1500).truths().filter_map(|truth| truth.brand.clone()).collect()
    }
    let (training, validation, test) = (brands::<Training>(), brands::<Validation>(), brands::<Test>());
    assert!(training.len() > 900, "{}", training.len());
    assert!(training.is_disjoint(&validation) && training.is_disjoint(&test) && validation.is_disjoint(&test));
    assert!(market::<Test>(1, 3).truths().all(|truth| truth.split == "test" && truth.id.starts_with("test-")));
}

fn text(content: &Content) -> String {
    match content {
        Content::Product(product) => format!("{}\n{}", product.title, product.description),
        Content::Ad(ad) => format!("{}\n{}\n{}", ad.headline, ad.body, ad.landing_page.as_deref().unwrap_or_default()),
    }
}

#[test]
fn every_fact_occurs_and_is_told_where_it_should_be() {
    let market = market::<Training>(5, 2000);
    let truths: Vec<_> = market.truths().collect();
    let share =
        |is: &dyn Fn(usize) -> bool| (0..truths.len()).filter(|at| is(*at)).count() as f64 / truths.len() as f64;
    for (colour, _) in COLOURS {
        assert!(share(&|at| truths[at].colour == colour) > 0.05, "{colour}");
    }
    for pattern in PATTERNS {
        assert!(share(&|at| truths[at].pattern == pattern) > 0.08, "{pattern}");
    }
    assert!((0.2..0.3).contains(&share(&|at| truths[at].brand.is_none())));
    assert!((0.38..0.52).contains(&share(&|at| truths[at].ground_truth_is_secondhand)));
    assert!((0.45..0.65).contains(&share(&|at| truths[at].material.is_some())));
    assert!((0.2..0.4).contains(&share(&|at| truths[at].badge.is_some())));
    for field in ["colour", "pattern", "condition", "brand"] {
        let found = share(&|at| truths[at].contradictions.iter().any(|name| name == field));
        assert!((0.002..0.2).contains(&found), "{field}: {found}");
    }
    let categories: HashSet<&str> = truths.iter().map(|truth| truth.category.as_str()).collect();
    assert!(categories.len() >= 40 && categories.iter().all(|path| path.split(" > ").count() == 3));
}

#[test]
fn texts_name_the_brand_and_tell_new_from_second_hand() {
    for item in market::<Validation>(6, 800).items {
        let text = text(&item.content);
        let product = matches!(item.content, Content::Product(_));
        if let Some(brand) = &item.truth.brand {
            assert!(
                text.contains(&brand.replace('&', if product { "&" } else { "&amp;" })) || text.contains(brand),
                "{brand}: {text}"
            );
        }
        if !product {
            continue;
        }
        if let Some(material) = &item.truth.material {
            assert!(text.to_lowercase().contains(material), "{material}: {text}");
        }
        // A typo may have hit the wording, so the other wording's absence is what holds always.
        let (_, others) = if item.truth.ground_truth_is_secondhand {
            (&SECOND_HAND[..], &NEW[..])
        } else {
            (&NEW[..], &SECOND_HAND[..])
        };
        assert!(!others.iter().any(|words| text.contains(words)), "{text}");
    }
}

#[test]
fn advertisements_are_flagged_as_they_were_made() {
    let items = market::<Training>(8, 1500).items;
    let ads: Vec<_> = items.iter().filter(|item| item.truth.kind == AssetKind::Ad).collect();
    for item in &ads {
        let Content::Ad(ad) = &item.content else { panic!("an ad") };
        let page = ad.landing_page.as_deref().unwrap();
        let flagged = |flag: &str| item.truth.policy_flags.iter().any(|name| name == flag);
        assert_eq!(!page.ends_with("</html>"), flagged("broken_markup"), "{page}");
        assert_eq!(
            !page.contains(&item.truth.category.replace('&', "&amp;").replace('>', "&gt;")),
            flagged("mismatch"),
            "{page}"
        );
        assert_eq!(item.truth.call_to_action, ad.call_to_action);
    }
    for flag in ["broken_markup", "mismatch", "misleading_price"] {
        let found = ads.iter().filter(|item| item.truth.policy_flags.iter().any(|name| name == flag)).count();
        assert!(found * 20 > ads.len() && found * 5 < ads.len(), "{flag}: {found} of {}", ads.len());
    }
}

#[test]
fn messages_satisfy_their_schemas_and_labels_have_the_names_of_the_benchmark() {
    let files = written::<Test>(9, 60);
    let schemas = ["product", "ad"].map(|kind| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{kind}.schema.json"));
        jsonschema::validator_for(&serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).unwrap()
    });
    let mut messages = 0;
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("topics/")) {
        let schema = &schemas[usize::from(name.starts_with("topics/ads"))];
        for line in std::str::from_utf8(bytes).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let found: Vec<String> = schema.iter_errors(&record["value"]).map(|error| error.to_string()).collect();
            assert!(found.is_empty(), "{found:?} {line}");
            messages += 1;
        }
    }
    assert_eq!(messages, 60);
    let labels = std::str::from_utf8(&files["labels.jsonl"]).unwrap();
    for line in labels.lines() {
        let label: Value = serde_json::from_str(line).unwrap();
        assert_eq!(label["ground_truth_category"], label["category"]);
        assert_eq!(label["ground_truth_is_secondhand"], label["condition"] == "second_hand");
        assert_eq!(label["ground_truth_brand"].as_str().unwrap(), label["brand"].as_str().unwrap_or_default());
    }
}

#[test]
fn clicks_follow_tastes_and_cold_items_are_only_in_what_is_held_out() {
    let market = market::<Training>(10, 1200);
    let study = market.study();
    let cold: HashSet<&str> = market.items.iter().filter(|item| item.is_cold).map(|item| item.id.as_str()).collect();
    assert!(cold.len() > 840, "most items are unseen: {}", cold.len());
    assert!(study.past.iter().all(|one| !cold.contains(one.asset_id.as_str())) && !study.past.is_empty());
    assert!(study.held_out.iter().all(|one| cold.contains(one.asset_id.as_str())) && study.tastes.len() > 50);
    let truths: BTreeMap<&str, _> = market.truths().map(|truth| (truth.id.as_str(), truth)).collect();
    let tastes: BTreeMap<&str, _> = study.tastes.iter().map(|taste| (taste.user.as_str(), taste)).collect();
    let rate = |likes: bool| {
        let shown: Vec<_> = study
            .held_out
            .iter()
            .filter(|one| {
                tastes[one.user.as_str()].categories.contains(&truths[one.asset_id.as_str()].category) == likes
            })
            .collect();
        shown.iter().filter(|one| one.clicked).count() as f64 / shown.len() as f64
    };
    assert!(rate(true) > 3.0 * rate(false), "{} {}", rate(true), rate(false));
}
