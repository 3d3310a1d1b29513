//! Messages that are no assets, by name.

use serde_json::{Value, json};

use crate::stage::worker::product;

/// A title of this length is odd, and allowed.
pub fn endless_title() -> Vec<u8> {
    let mut message = product("x");
    message["title"] = "t".repeat(800_000).into();
    message.to_string().into_bytes()
}

/// Each message breaks JSON, the schema, or the agreement of key and id.
pub fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let with = |field: &str, value: Value| {
        let mut message = product("x");
        message[field] = value;
        message.to_string().into_bytes()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(150_000), close.repeat(150_000)).into_bytes();
    let mut unbalanced = product("x").to_string();
    unbalanced.truncate(unbalanced.len() / 2);
    vec![
        ("empty", Vec::new()),
        ("blank", text("  \n\t ")),
        ("null", text("null")),
        ("array", text("[]")),
        ("number", text("1e999999999")),
        ("half a message", unbalanced.into_bytes()),
        ("not UTF-8", vec![b'{', b'"', 0xff, 0xfe, b'"', b':', b'1', b'}']),
        ("UTF-16", "{\"id\":\"x\"}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("byte order mark", [&b"\xef\xbb\xbf"[..], product("x").to_string().as_bytes()].concat()),
        ("zero bytes", vec![0; 4096]),
        ("lone surrogate", text(r#"{"id":"\ud800","title":"t","event_time":"2026-01-02T03:04:05Z"}"#)),
        ("deep arrays", nested("[", "]")),
        ("deep objects", format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)).into_bytes()),
        (
            "deep in a field",
            format!("{{\"id\":\"x\",\"title\":{}0{}}}", "[".repeat(90_000), "]".repeat(90_000)).into_bytes(),
        ),
        ("open brackets only", vec![b'['; 800_000]),
        ("long id", with("id", "i".repeat(100_000).into())),
        ("empty id", with("id", "".into())),
        ("id is a number", with("id", 7.into())),
        ("title is a list", with("title", json!(["t"]))),
        ("unknown time", with("event_time", "the day after tomorrow".into())),
        ("impossible time", with("event_time", "2026-13-45T99:99:99Z".into())),
        ("time without end", with("event_time", "9".repeat(10_000).into())),
        ("negative price", with("price", json!({ "amount": -1, "currency": "EUR" }))),
        (
            "endless price",
            text(
                r#"{"id":"x","title":"t","event_time":"2026-01-02T03:04:05Z","price":{"amount":1e400,"currency":"EUR"}}"#,
            ),
        ),
        ("many attributes", with("attributes", (0..50_000).map(|n| (n.to_string(), Value::from(n))).collect())),
        ("attributes of lists", with("attributes", json!({ "a": [1, 2, 3] }))),
        ("media is a text", with("media", "s3://assay/media/red.png".into())),
        ("media without url", with("media", json!([{ "role": "main" }]))),
        ("many media", with("media", (0..5_000).map(|n| json!({ "url": format!("s3://b/{n}") })).collect())),
    ]
}
