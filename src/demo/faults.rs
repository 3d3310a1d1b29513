//! What goes wrong in real life, made on purpose: bad messages, bad pictures, removals and updates out of order.
//!
//! Each of the first four costs exactly one rejection; a tombstone and a late update cost none. This file writes nothing.

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Value, json};

use crate::domain::AssetKind;

use super::market::MarketItem;
use super::record::{Record, rfc3339};

/// The records to append, in this order, and the picture files they need.
pub(super) struct Faults {
    pub records: Vec<Record>,
    /// File name and content.
    pub pictures: Vec<(String, Vec<u8>)>,
}

/// `place` turns a picture's file name into its url.
pub(super) fn faults(items: &[MarketItem], place: &dyn Fn(&str) -> String) -> Faults {
    let after = items.iter().map(|item| item.event_time).max().unwrap_or(0) + 3_600;
    let mut records = vec![
        product("fault-schema", json!([]), after).without_title(),
        product("fault-missing-picture", media(place("nowhere.jpg")), after),
        product("fault-truncated-picture", media(place("truncated.png")), after),
        product("fault-bomb", media(place("bomb.png")), after),
    ];
    if let Some(item) = items.first() {
        records.push(updated(item, place, "newer state", after + 7_200));
        records.push(updated(item, place, "older state, arriving late", after + 3_600));
    }
    if let Some(item) = items.get(1) {
        let (key, timestamp) = (item.id.clone(), (after + 7_200) * 1000);
        records.push(Record { kind: item.truth.kind, key, value: Value::Null, timestamp });
    }
    let pictures = vec![("truncated.png".to_owned(), truncated(items)), ("bomb.png".to_owned(), bomb())];
    Faults { records, pictures }
}

fn media(url: String) -> Value {
    json!([{ "url": url, "role": "main" }])
}

fn product(id: &str, media: Value, event_time: i64) -> Record {
    let value = json!({
        "id": id,
        "title": "Deliberately faulty mug",
        "description": "Part of the demo: this asset must end as a rejection.",
        "attributes": {},
        "candidate_categories": ["Home & Garden > Kitchen > Mugs"],
        "media": media,
        "locale": "en-GB",
        "price": { "amount": 1.0, "currency": "GBP" },
        "event_time": rfc3339(event_time),
    });
    Record { kind: AssetKind::Product, key: id.to_owned(), value, timestamp: event_time * 1000 }
}

impl Record {
    fn without_title(mut self) -> Self {
        if let Some(fields) = self.value.as_object_mut() {
            fields.remove("title");
        }
        self
    }
}

fn updated(item: &MarketItem, place: &dyn Fn(&str) -> String, note: &str, event_time: i64) -> Record {
    let mut record = MarketItem { event_time, ..item.clone() }.record(place);
    let field = if record.kind == AssetKind::Product { "description" } else { "body" };
    record.value[field] = Value::from(format!("Updated: {note}."));
    record
}

/// The first third of a PNG: of a JPEG so cut, decoders show the upper third and call it a picture.
fn truncated(items: &[MarketItem]) -> Vec<u8> {
    let whole = items.iter().flat_map(|item| &item.photos).next();
    let mut bytes = whole.map_or_else(bomb, |photo| photo.mask());
    bytes.truncate(bytes.len() / 3);
    bytes
}

/// A PNG of a few bytes whose header claims 60,000 pixels a side: 10.8 GB when a decoder believes it.
pub(super) fn bomb() -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(Cursor::new(&mut bytes))
        .write_image(&[200, 30, 30], 1, 1, ExtendedColorType::Rgb8)
        .expect("a buffer in memory takes one pixel");
    // Signature (8), length (4), "IHDR" (4), width (4), height (4), five more bytes, then the checksum of "IHDR" and all that.
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let checksum = checksum(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// CRC-32 as PNG uses it (ISO 3309).
fn checksum(bytes: &[u8]) -> u32 {
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = (register >> 1) ^ if register & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    !register
}

#[cfg(test)]
mod tests {
    use image::ImageReader;

    use super::super::market::{Market, Seed, Test};
    use super::*;

    fn items() -> Vec<MarketItem> {
        Market::<Test>::generate(Seed::new(4).unwrap(), 5).items
    }

    fn made() -> Faults {
        faults(&items(), &|name| format!("file:///media/{name}"))
    }

    #[test]
    fn a_bomb_has_an_intact_header_of_sixty_thousand_pixels_a_side() {
        let bytes = bomb();
        assert!(bytes.len() < 200);
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap();
        assert_eq!(reader.into_dimensions().unwrap(), (60_000, 60_000));
    }

    #[test]
    fn a_truncated_picture_does_not_decode() {
        let faults = made();
        let (_, bytes) = faults.pictures.iter().find(|(name, _)| name == "truncated.png").unwrap();
        assert!(ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap().decode().is_err());
    }

    #[test]
    fn the_newer_state_of_an_updated_asset_comes_before_the_older() {
        let faults = made();
        let key = &items()[0].id;
        let times: Vec<&str> = faults
            .records
            .iter()
            .filter(|record| &record.key == key)
            .filter_map(|record| record.value["event_time"].as_str())
            .collect();
        assert_eq!(times.len(), 2);
        assert!(times[0] > times[1], "{times:?}");
    }

    #[test]
    fn one_record_is_a_tombstone_and_one_lacks_its_title() {
        let faults = made();
        assert_eq!(faults.records.iter().filter(|record| record.value.is_null()).count(), 1);
        let broken = faults.records.iter().find(|record| record.key == "fault-schema").unwrap();
        assert!(broken.value.get("title").is_none() && broken.value.get("id").is_some());
    }
}
