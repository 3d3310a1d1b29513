//! CSV: the header names the fields of the message. Lists are separated by `|`; `attributes.NAME` columns become attributes;
//! `price` and `currency` belong together; a missing `event_time` is now.

use std::io::Read;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::domain::AssetKind;

use super::draft::{Draft, Found, Problem, rfc3339};

const PRODUCT: &[&str] = &["title", "description", "candidate_categories", "locale", "price", "currency"];
const AD: &[&str] = &["headline", "body", "call_to_action", "landing_page"];
const BOTH: &[&str] = &["id", "media", "event_time"];

/// The drafts of a file, or why its header cannot be used.
pub(super) fn read<R: Read>(
    name: String,
    reader: R,
    kind: AssetKind,
) -> Result<impl Iterator<Item = Found> + use<R>, Problem> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(reader);
    let problem = |message: String| Problem { place: name.clone(), message };
    let header = reader.headers().map_err(|error| problem(error.to_string()))?.clone();
    check_header(&header, kind).map_err(problem)?;
    let now = rfc3339(SystemTime::now());
    Ok(reader.into_records().map(move |record| match record {
        Ok(record) => {
            let place = format!("{name}:{}", record.position().map_or(0, csv::Position::line));
            message(&header, &record, &now)
                .map(|message| Draft::of_message(place.clone(), message))
                .map_err(|message| Problem { place, message })
        }
        Err(error) => {
            let line = error.position().map_or(0, csv::Position::line);
            Err(Problem { place: format!("{name}:{line}"), message: error.to_string() })
        }
    }))
}

fn check_header(header: &csv::StringRecord, kind: AssetKind) -> Result<(), String> {
    let own = if kind == AssetKind::Product { PRODUCT } else { AD };
    let known = |column: &str| {
        BOTH.contains(&column)
            || own.contains(&column)
            || (kind == AssetKind::Product && column.starts_with("attributes."))
    };
    if let Some(unknown) = header.iter().find(|column| !known(column)) {
        let attributes = if kind == AssetKind::Product { ", attributes.NAME" } else { "" };
        return Err(format!(
            "column {unknown:?} means nothing for the kind {kind}; use {}, {}{attributes}",
            BOTH.join(", "),
            own.join(", ")
        ));
    }
    match header.iter().any(|column| column == "id") {
        true => Ok(()),
        false => Err("there is no column \"id\"".to_owned()),
    }
}

fn message(header: &csv::StringRecord, record: &csv::StringRecord, now: &str) -> Result<Map<String, Value>, String> {
    let mut message = Map::new();
    let mut attributes = Map::new();
    let mut price = None;
    let mut currency = None;
    for (column, cell) in header.iter().zip(record).filter(|(_, cell)| !cell.is_empty()) {
        match column {
            "candidate_categories" => {
                message.insert(column.to_owned(), cell.split('|').map(str::trim).collect());
            }
            "media" => {
                let urls = cell.split('|').map(|url| json!({ "url": url.trim() }));
                message.insert(column.to_owned(), urls.collect());
            }
            "price" => {
                price = Some(cell.trim().parse::<f64>().map_err(|_| format!("price {cell:?} is not a number"))?);
            }
            "currency" => currency = Some(cell.trim().to_owned()),
            _ => match column.strip_prefix("attributes.") {
                Some(attribute) => drop(attributes.insert(attribute.to_owned(), cell.into())),
                None => drop(message.insert(column.to_owned(), cell.into())),
            },
        }
    }
    match (price, currency) {
        (Some(amount), Some(currency)) => {
            message.insert("price".to_owned(), json!({ "amount": amount, "currency": currency }));
        }
        (Some(_), None) => return Err("a price needs a currency".to_owned()),
        (None, _) => {}
    }
    if !attributes.is_empty() {
        message.insert("attributes".to_owned(), Value::Object(attributes));
    }
    message.entry("event_time").or_insert_with(|| now.into());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_the_fields_of_a_product() {
        let text = "id,title,media,attributes.size,price,currency,candidate_categories,event_time\n\
                    a,\"Mug, blue\",file:///a.jpg|file:///b.jpg,L,9.5,EUR,Home > Mugs|Toys,2026-01-02T03:04:05Z\n";
        let draft = read("a.csv".to_owned(), text.as_bytes(), AssetKind::Product).unwrap().next().unwrap().unwrap();
        let message: Value = serde_json::from_slice(&draft.payload.unwrap()).unwrap();
        let expected = json!({
            "id": "a", "title": "Mug, blue", "media": [{"url": "file:///a.jpg"}, {"url": "file:///b.jpg"}],
            "attributes": {"size": "L"}, "price": {"amount": 9.5, "currency": "EUR"},
            "candidate_categories": ["Home > Mugs", "Toys"], "event_time": "2026-01-02T03:04:05Z",
        });
        assert_eq!(message, expected);
        assert_eq!((draft.key.as_deref(), draft.place.as_str()), (Some("a"), "a.csv:2"));
    }

    #[test]
    fn wrong_columns_and_cells_are_named() {
        let header = |text: &str| read("a.csv".to_owned(), text.as_bytes(), AssetKind::Ad).err().unwrap().to_string();
        assert!(header("id,title\n").contains("column \"title\" means nothing for the kind ad"));
        assert!(header("headline\n").contains("no column \"id\""));
        let text = "id,price\na,cheap\nb,3\nc\n";
        let found: Vec<_> = read("a.csv".to_owned(), text.as_bytes(), AssetKind::Product).unwrap().collect();
        assert_eq!(found[0].as_ref().unwrap_err().to_string(), "a.csv:2: price \"cheap\" is not a number");
        assert_eq!(found[1].as_ref().unwrap_err().to_string(), "a.csv:3: a price needs a currency");
        assert!(found[2].as_ref().unwrap_err().to_string().starts_with("a.csv:4: "));
    }
}
