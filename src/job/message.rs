//! From the bytes of a record to an asset, by way of the message's JSON Schema.
//!
//! It knows no job and no topic. Invariant: an asset that comes out of here satisfies schemas/{kind}.schema.json, and
//! whatever bytes come in, the answer is an asset or an error that names the field; never a panic.

use std::collections::BTreeMap;

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use super::event_time::parse_event_time;
use super::json::{BorrowedJson, Fields, Json};
use super::violation::{Violation, quoted, shortened};
use crate::domain::{Ad, Asset, AssetKind, Content, MediaReference, Price, Product};

const MOST_VIOLATIONS: usize = 5;
const MOST_ID_CHARACTERS: usize = 512;

/// Decodes the messages of one kind. Make one per job and keep it: the schema is compiled once.
#[derive(Debug)]
pub struct MessageDecoder {
    kind: AssetKind,
    schema: Value,
    validator: Validator<BorrowedJson>,
}

impl MessageDecoder {
    pub fn new(kind: AssetKind) -> Self {
        let text = match kind {
            AssetKind::Product => include_str!("../../schemas/product.schema.json"),
            AssetKind::Ad => include_str!("../../schemas/ad.schema.json"),
        };
        let schema: Value = serde_json::from_str(text).expect("the schema is part of the program and a test reads it");
        let validator = jsonschema::options_for::<BorrowedJson>()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .build(&schema)
            .expect("the schema is part of the program and a test compiles it");
        Self { kind, schema, validator }
    }

    pub fn kind(&self) -> AssetKind {
        self.kind
    }

    /// Reads one JSON object, nested at most 128 deep. An optional field that is null counts as left out.
    pub fn decode(&self, payload: &[u8]) -> Result<Asset, MessageError> {
        if payload.is_empty() {
            let detail = "it is empty; a record that removes an asset has a null value, not an empty one".to_owned();
            return Err(MessageError::Malformed { detail });
        }
        let message: Json<'_> = serde_json::from_slice(payload)
            .map_err(|error| MessageError::Malformed { detail: shortened_error(&error) })?;
        if !self.validator.is_valid(&message) {
            return Err(self.violations(&message));
        }
        let Json::Object(fields) = message else { return Err(self.violations(&message)) };
        into_asset(fields, self.kind)
    }

    fn violations(&self, message: &Json<'_>) -> MessageError {
        let violations = self
            .validator
            .iter_errors(message)
            .take(MOST_VIOLATIONS)
            .map(|error| Violation::of(&error, &self.schema))
            .collect();
        MessageError::Violations { violations, asset_id: readable_id(message) }
    }
}

/// The record key, when there is one, must be the asset's id: tombstones and compaction go by the key.
pub fn check_key(asset: &Asset, key: Option<&str>) -> Result<(), MessageError> {
    match key {
        Some(key) if key != asset.id => {
            Err(MessageError::KeyMismatch { key: shortened(key), asset_id: asset.id.clone() })
        }
        _ => Ok(()),
    }
}

/// Why a message is no asset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the message is not JSON: {detail}")]
    Malformed { detail: String },
    /// The first few broken rules; at least one.
    #[error("{}", violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; "))]
    Violations { violations: Vec<Violation>, asset_id: Option<String> },
    #[error("/id is {asset_id:?} but the record's key is {key:?}; send the id as the key, or no key")]
    KeyMismatch { key: String, asset_id: String },
}

impl MessageError {
    /// The stable word for the rejections table.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "json_malformed",
            Self::Violations { .. } => "schema_violation",
            Self::KeyMismatch { .. } => "key_mismatch",
        }
    }

    /// The asset's id, when the message could be read that far.
    pub fn asset_id(&self) -> Option<&str> {
        match self {
            Self::Malformed { .. } => None,
            Self::Violations { asset_id, .. } => asset_id.as_deref(),
            Self::KeyMismatch { asset_id, .. } => Some(asset_id),
        }
    }

    /// JSON Pointer to the first field that is wrong; none when no field could be told.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Malformed { .. } => None,
            Self::Violations { violations, .. } => violations.first().map(|violation| violation.field.as_str()),
            Self::KeyMismatch { .. } => Some("/id"),
        }
    }
}

fn readable_id(message: &Json<'_>) -> Option<String> {
    let Json::Object(fields) = message else { return None };
    let id = fields.get("id")?.clone().into_text()?;
    (!id.is_empty() && id.chars().nth(MOST_ID_CHARACTERS).is_none()).then_some(id)
}

fn shortened_error(error: &serde_json::Error) -> String {
    format!("{}; send one JSON object per record", shortened(&error.to_string()))
}

/// Makes an asset of the fields of a valid message. What is not borrowed is moved, not copied.
fn into_asset(mut fields: Fields<'_>, kind: AssetKind) -> Result<Asset, MessageError> {
    let id = text(&mut fields, "id").unwrap_or_default();
    let time = text(&mut fields, "event_time").unwrap_or_default();
    let event_time = match parse_event_time(&time) {
        Ok(event_time) => event_time,
        Err(detail) => {
            let violation = Violation::new("/event_time", format!("is {}, which {detail}", quoted(&time.into())));
            return Err(MessageError::Violations { violations: vec![violation], asset_id: Some(id) });
        }
    };
    let media = list(&mut fields, "media").into_iter().filter_map(media_reference).collect();
    let content = match kind {
        AssetKind::Product => Content::Product(product(fields)),
        AssetKind::Ad => Content::Ad(ad(fields)),
    };
    Ok(Asset { id, event_time, content, media })
}

fn product(mut fields: Fields<'_>) -> Product {
    let categories = list(&mut fields, "candidate_categories").into_iter();
    Product {
        title: text(&mut fields, "title").unwrap_or_default(),
        description: text(&mut fields, "description").unwrap_or_default(),
        attributes: texts_by_name(&mut fields, "attributes"),
        candidate_categories: categories.filter_map(Json::into_text).collect(),
        locale: text(&mut fields, "locale"),
        price: fields.take("price").and_then(price),
    }
}

fn ad(mut fields: Fields<'_>) -> Ad {
    Ad {
        headline: text(&mut fields, "headline").unwrap_or_default(),
        body: text(&mut fields, "body").unwrap_or_default(),
        call_to_action: text(&mut fields, "call_to_action"),
        landing_page: text(&mut fields, "landing_page"),
    }
}

fn text(fields: &mut Fields<'_>, name: &str) -> Option<String> {
    fields.take(name).and_then(Json::into_text)
}

fn list<'a>(fields: &mut Fields<'a>, name: &str) -> Vec<Json<'a>> {
    fields.take(name).map(Json::into_list).unwrap_or_default()
}

fn texts_by_name(fields: &mut Fields<'_>, name: &str) -> BTreeMap<String, String> {
    let entries = fields.take(name).and_then(Json::into_fields).into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.into_owned(), value.into_text()?))).collect()
}

fn media_reference(value: Json<'_>) -> Option<MediaReference> {
    let mut fields = value.into_fields()?;
    Some(MediaReference { url: text(&mut fields, "url")?, role: text(&mut fields, "role") })
}

fn price(value: Json<'_>) -> Option<Price> {
    let mut fields = value.into_fields()?;
    let Json::Number(amount) = fields.take("amount")? else { return None };
    Some(Price { amount: amount.as_f64()?, currency: text(&mut fields, "currency")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn product() -> Value {
        json!({
            "id": "p-1",
            "title": "Enamel mug, blue",
            "description": "Holds 300 ml.",
            "attributes": {"colour": "blue", "material": "steel"},
            "candidate_categories": ["Home & Garden > Kitchen > Mugs"],
            "media": [{"url": "s3://pictures/p-1.jpg", "role": "main"}, {"url": "file:///data/p-1b.png"}],
            "locale": "de-AT",
            "price": {"amount": 12.5, "currency": "EUR"},
            "event_time": "2024-05-17T10:30:00+02:00"
        })
    }

    fn ad() -> Value {
        json!({
            "id": "a-1",
            "headline": "Mugs for everyone",
            "body": "Only this week.",
            "call_to_action": "Shop now",
            "landing_page": "<html><body>Mugs</body></html>",
            "media": [{"url": "https://cdn.example.com/a-1.webp"}],
            "event_time": "2024-05-17T08:30:00Z"
        })
    }

    fn decode(kind: AssetKind, message: &Value) -> Result<Asset, MessageError> {
        MessageDecoder::new(kind).decode(message.to_string().as_bytes())
    }

    #[test]
    fn a_full_product_becomes_an_asset() {
        let asset = decode(AssetKind::Product, &product()).unwrap();
        assert_eq!(asset.id, "p-1");
        assert_eq!(asset.event_time, 1_715_934_600_000_000);
        assert_eq!(asset.media.len(), 2);
        assert_eq!(asset.media[0].role.as_deref(), Some("main"));
        assert_eq!(asset.media[1], MediaReference { url: "file:///data/p-1b.png".into(), role: None });
        let Content::Product(product) = asset.content else { panic!("a product was sent") };
        assert_eq!(product.title, "Enamel mug, blue");
        assert_eq!(product.description, "Holds 300 ml.");
        assert_eq!(product.attributes["colour"], "blue");
        assert_eq!(product.candidate_categories, ["Home & Garden > Kitchen > Mugs"]);
        assert_eq!(product.locale.as_deref(), Some("de-AT"));
        assert_eq!(product.price, Some(Price { amount: 12.5, currency: "EUR".into() }));
    }

    #[test]
    fn a_full_ad_becomes_an_asset() {
        let asset = decode(AssetKind::Ad, &ad()).unwrap();
        let expected = Ad {
            headline: "Mugs for everyone".into(),
            body: "Only this week.".into(),
            call_to_action: Some("Shop now".into()),
            landing_page: Some("<html><body>Mugs</body></html>".into()),
        };
        assert_eq!(asset.content, Content::Ad(expected));
        assert_eq!(asset.media[0].url, "https://cdn.example.com/a-1.webp");
    }

    #[test]
    fn an_optional_field_that_is_null_counts_as_left_out() {
        let time = "2024-05-17T08:30:00Z";
        let short = json!({"id": "p", "title": "t", "event_time": time});
        let mut nulls = short.clone();
        for name in ["description", "attributes", "candidate_categories", "media", "locale", "price"] {
            nulls[name] = Value::Null;
        }
        assert_eq!(decode(AssetKind::Product, &nulls), decode(AssetKind::Product, &short));
        assert!(decode(AssetKind::Product, &short).unwrap().media.is_empty());
    }

    /// A pointer to change, the value to put there (none: remove), and the field that the error must name.
    type Case = (&'static str, Option<Value>, &'static str, &'static str);

    fn broken(mut message: Value, pointer: &str, value: Option<Value>) -> Value {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = message.pointer_mut(parent).unwrap();
        match (parent, value) {
            (Value::Object(fields), Some(value)) => {
                fields.insert(name.into(), value);
            }
            (Value::Object(fields), None) => {
                fields.remove(name).unwrap();
            }
            (Value::Array(items), Some(value)) => items[name.parse::<usize>().unwrap()] = value,
            other => panic!("{other:?}"),
        }
        message
    }

    fn assert_named(kind: AssetKind, message: &Value, cases: Vec<Case>) {
        for (pointer, value, field, words) in cases {
            let error = decode(kind, &broken(message.clone(), pointer, value.clone())).unwrap_err();
            assert_eq!(error.reason(), "schema_violation", "{pointer} {value:?}");
            assert_eq!(error.field(), Some(field), "{error}");
            assert!(error.to_string().starts_with(&format!("{field} ")), "{error}");
            assert!(error.to_string().contains(words), "{words:?} is not in {error}");
        }
    }

    #[test]
    fn every_broken_rule_of_a_product_names_its_field() {
        let long = "x".repeat(513);
        let cases: Vec<Case> = vec![
            ("/id", None, "/id", "is missing"),
            ("/id", Some(json!("")), "/id", "is empty"),
            ("/id", Some(json!(long)), "/id", "has 513 characters; at most 512"),
            ("/id", Some(json!(7)), "/id", "is a number; send a text"),
            ("/title", None, "/title", "is missing; add it (The name that a shop shows"),
            ("/title", Some(json!("")), "/title", "is empty"),
            ("/title", Some(Value::Null), "/title", "is null; send a text"),
            ("/titel", Some(json!("t")), "/titel", "did you mean `title`?"),
            ("/a~b", Some(json!("t")), "/a~0b", "known are `id`, `title`"),
            ("/description", Some(json!(["a"])), "/description", "is a list; send a text"),
            ("/attributes", Some(json!([])), "/attributes", "is a list; send an object"),
            ("/attributes/weight", Some(json!(1.5)), "/attributes/weight", "is a number; send a text"),
            ("/candidate_categories", Some(json!("a")), "/candidate_categories", "send a list"),
            ("/candidate_categories/0", Some(json!("")), "/candidate_categories/0", "is empty"),
            ("/candidate_categories/0", Some(json!(3)), "/candidate_categories/0", "is a number"),
            ("/media", Some(json!({"url": "s3://a/b"})), "/media", "is an object; send a list"),
            ("/media/1", Some(json!("s3://a/b")), "/media/1", "is a text; send an object (One reference"),
            ("/media/0/url", None, "/media/0/url", "is missing"),
            ("/media/0/url", Some(json!("")), "/media/0/url", "is empty"),
            ("/media/0/url", Some(json!("x".repeat(4097))), "/media/0/url", "has 4097 characters"),
            ("/media/0/rolle", Some(json!("main")), "/media/0/rolle", "did you mean `role`?"),
            ("/media/0/role", Some(json!("")), "/media/0/role", "is empty"),
            ("/media/0/role", Some(json!(long)), "/media/0/role", "at most 64"),
            ("/locale", Some(json!("german!")), "/locale", "BCP 47"),
            ("/price", Some(json!(12)), "/price", "is a number; send an object"),
            ("/price/amount", None, "/price/amount", "is missing"),
            ("/price/amount", Some(json!("12")), "/price/amount", "is a text; send a number"),
            ("/price/amount", Some(json!(-1)), "/price/amount", "is -1; at least 0"),
            ("/price/currency", None, "/price/currency", "is missing"),
            ("/price/currency", Some(json!("eur")), "/price/currency", "is \"eur\", which does not fit (ISO 4217"),
            ("/price/tax", Some(json!(1)), "/price/tax", "known are `amount`, `currency`"),
            ("/event_time", None, "/event_time", "is missing"),
            ("/event_time", Some(json!(1_700_000_000)), "/event_time", "is a number; send a text"),
            ("/event_time", Some(json!("yesterday")), "/event_time", "is \"yesterday\", which is not an RFC 3339"),
            ("/event_time", Some(json!("2024-02-30T00:00:00Z")), "/event_time", "a day that the calendar"),
        ];
        assert_named(AssetKind::Product, &product(), cases);
    }

    #[test]
    fn every_broken_rule_of_an_ad_names_its_field() {
        let cases: Vec<Case> = vec![
            ("/id", None, "/id", "is missing"),
            ("/headline", None, "/headline", "is missing"),
            ("/headline", Some(json!("")), "/headline", "is empty"),
            ("/headlines", Some(json!("t")), "/headlines", "did you mean `headline`?"),
            ("/title", Some(json!("t")), "/title", "known are"),
            ("/body", Some(json!(1)), "/body", "is a number"),
            ("/call_to_action", Some(json!({})), "/call_to_action", "is an object; send a text"),
            ("/landing_page", Some(json!(false)), "/landing_page", "is a boolean; send a text"),
            ("/media/0", Some(json!("s3://a/b")), "/media/0", "is a text; send an object"),
            ("/media/0/url", None, "/media/0/url", "is missing"),
            ("/event_time", Some(json!("2024-05-17T08:30:00")), "/event_time", "has no valid offset"),
        ];
        assert_named(AssetKind::Ad, &ad(), cases);
    }

    #[test]
    fn several_broken_rules_are_told_at_once_and_the_id_is_kept() {
        let error = decode(AssetKind::Ad, &json!({"id": "a-9", "body": 1})).unwrap_err();
        assert_eq!(error.asset_id(), Some("a-9"));
        let text = error.to_string();
        for field in ["/headline", "/event_time", "/body"] {
            assert!(text.contains(field), "{text}");
        }
        let error = decode(AssetKind::Ad, &json!({"id": 9})).unwrap_err();
        assert_eq!(error.asset_id(), None);
    }

    #[test]
    fn what_is_not_json_is_malformed_and_what_is_no_object_breaks_the_schema() {
        let decoder = MessageDecoder::new(AssetKind::Product);
        for payload in [&b""[..], b"{", b"{\"id\": 1e999}", b"\xff\xfe", b"{} {}"] {
            let error = decoder.decode(payload).unwrap_err();
            assert_eq!(error.reason(), "json_malformed", "{error}");
            assert_eq!(error.asset_id(), None);
        }
        let error = decoder.decode(b"[1]").unwrap_err();
        assert_eq!(error.reason(), "schema_violation");
        assert!(error.to_string().starts_with("the message is a list; send an object"), "{error}");
    }

    #[test]
    fn json_that_is_nested_too_deep_is_refused() {
        let decoder = MessageDecoder::new(AssetKind::Ad);
        let payload = "[".repeat(100_000);
        let error = decoder.decode(payload.as_bytes()).unwrap_err();
        assert_eq!(error.reason(), "json_malformed");
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }

    #[test]
    fn an_error_does_not_grow_with_its_message() {
        let huge = "y".repeat(1_000_000);
        for (pointer, value) in [(format!("/{huge}"), json!(1)), ("/locale".into(), json!(huge))] {
            let error = decode(AssetKind::Product, &broken(product(), &pointer, Some(value))).unwrap_err();
            assert!(error.to_string().len() < 1000);
        }
    }

    #[test]
    fn a_key_must_be_the_id() {
        let asset = decode(AssetKind::Ad, &ad()).unwrap();
        assert_eq!(check_key(&asset, None), Ok(()));
        assert_eq!(check_key(&asset, Some("a-1")), Ok(()));
        let error = check_key(&asset, Some("a-2")).unwrap_err();
        assert_eq!(error.reason(), "key_mismatch");
        assert_eq!(error.asset_id(), Some("a-1"));
        assert!(error.to_string().contains("\"a-2\""), "{error}");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            Just("id".to_owned()),
            Just("media".to_owned()),
            Just("url".to_owned()),
            Just("price".to_owned()),
            Just("event_time".to_owned()),
            ".{0,12}",
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((name.clone(), inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = MessageDecoder::new(AssetKind::Product).decode(&payload) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn decoding_any_json_never_panics_and_says_something(message in any_json(), field in 0_usize..9) {
            let mut whole = product();
            let name = whole.as_object().unwrap().keys().nth(field).unwrap().clone();
            whole[name.as_str()] = message.clone();
            for message in [message, whole] {
                for kind in [AssetKind::Product, AssetKind::Ad] {
                    if let Err(error) = decode(kind, &message) {
                        prop_assert!(!error.to_string().is_empty());
                    }
                }
            }
        }
    }
}
