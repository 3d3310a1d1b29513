//! JSON lines: each line is a message, or an envelope `{"key", "value", "headers"}` around one; a null value is a tombstone.

use std::io::BufRead;

use serde_json::{Map, Value};

use super::draft::{Draft, Found, Problem};

/// The drafts of all lines; blank lines are passed over.
pub fn read(name: String, reader: impl BufRead) -> impl Iterator<Item = Found> {
    reader.lines().enumerate().filter_map(move |(index, line)| {
        let place = format!("{name}:{}", index + 1);
        match line {
            Err(error) => Some(Err(Problem { place, message: error.to_string() })),
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(parse(place, &line)),
        }
    })
}

fn parse(place: String, line: &str) -> Found {
    match serde_json::from_str(line) {
        Ok(Value::Object(object)) if object.contains_key("value") => envelope(place, object),
        Ok(Value::Object(message)) => {
            let mut draft = Draft::of_message(place, message);
            // What the producer wrote goes out byte for byte.
            draft.payload = Some(line.as_bytes().to_vec());
            Ok(draft)
        }
        Ok(_) => Err(Problem { place, message: "is not a JSON object".to_owned() }),
        Err(error) => Err(Problem { place, message: format!("is not JSON: {error}") }),
    }
}

fn envelope(place: String, mut object: Map<String, Value>) -> Found {
    let value = object.remove("value").unwrap_or_default();
    let key = object.get("key").and_then(Value::as_str).map(str::to_owned);
    let headers = match object.get("headers") {
        Some(Value::Object(headers)) => headers
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect(),
        _ => Vec::new(),
    };
    match value {
        Value::Null if key.is_none() => Err(Problem {
            place,
            message: "a null value removes an asset, but there is no key to say which".to_owned(),
        }),
        Value::Null => Ok(Draft { place, key, payload: None, headers }),
        Value::Object(message) => {
            let draft = Draft::of_message(place, message);
            Ok(Draft { key: key.or(draft.key), headers, ..draft })
        }
        _ => Err(Problem { place, message: "\"value\" is neither an object nor null".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Found> {
        read("a.jsonl".to_owned(), text.as_bytes()).collect()
    }

    #[test]
    fn messages_envelopes_and_tombstones_are_told_apart() {
        let found = all(
            "{\"id\":\"a\", \"title\":\"x\"}\n\n{\"key\":\"b\",\"value\":null}\n{\"value\":{\"id\":\"c\"},\"headers\":{\"n\":1}}\n",
        );
        let drafts: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(drafts[0].key.as_deref(), Some("a"));
        assert_eq!(drafts[0].payload.as_deref(), Some(&b"{\"id\":\"a\", \"title\":\"x\"}"[..]));
        assert_eq!((drafts[1].key.as_deref(), &drafts[1].payload), (Some("b"), &None));
        assert_eq!(drafts[2].key.as_deref(), Some("c"));
        assert_eq!(drafts[2].headers, [("n".to_owned(), "1".to_owned())]);
        assert_eq!(drafts[2].place, "a.jsonl:4");
    }

    #[test]
    fn a_bad_line_is_named_and_the_others_go_on() {
        let found = all("{\n[1]\n{\"value\":null}\n{\"id\":\"a\"}\n");
        assert!(found[0].as_ref().unwrap_err().to_string().starts_with("a.jsonl:1: is not JSON"));
        assert_eq!(found[1].as_ref().unwrap_err().to_string(), "a.jsonl:2: is not a JSON object");
        assert!(found[2].is_err());
        assert!(found[3].is_ok());
    }
}
