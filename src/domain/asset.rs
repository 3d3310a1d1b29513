//! What a producer sends: a product of a catalogue or an advertisement, with references to its media.
//!
//! An [`Asset`] has already passed its JSON Schema; a value of this type is well-formed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The two kinds of asset message that Assay understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AssetKind {
    Product,
    Ad,
}

impl AssetKind {
    /// The word used in job files, tables and schema names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Ad => "ad",
        }
    }
}

impl fmt::Display for AssetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One asset, as its message described it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asset {
    /// Unique within the topic; equals the record key when the record has one.
    pub id: String,
    /// When the producer says this state became true, in microseconds since the Unix epoch (UTC).
    pub event_time: i64,
    pub content: Content,
    /// In message order; the first picture is the main one unless a role says otherwise.
    pub media: Vec<MediaReference>,
}

impl Asset {
    pub fn kind(&self) -> AssetKind {
        match self.content {
            Content::Product(_) => AssetKind::Product,
            Content::Ad(_) => AssetKind::Ad,
        }
    }
}

/// The part of an asset that differs by kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Product(Product),
    Ad(Ad),
}

/// A catalogue item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub title: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Paths such as `Home & Garden > Kitchen > Mugs`.
    #[serde(default)]
    pub candidate_categories: Vec<String>,
    /// BCP 47 tag, for example `de-AT`.
    #[serde(default)]
    pub locale: Option<String>,
    #[serde(default)]
    pub price: Option<Price>,
}

/// An amount of money; `amount` is in units of `currency` (ISO 4217), not in cents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Price {
    pub amount: f64,
    pub currency: String,
}

/// An advertisement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ad {
    pub headline: String,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub call_to_action: Option<String>,
    /// HTML of the page the ad leads to.
    #[serde(default)]
    pub landing_page: Option<String>,
}

/// Where one picture of an asset lies. Nothing has been read from it yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MediaReference {
    /// `s3://`, `gs://`, `az://`, `https://` or `file://`.
    pub url: String,
    /// What the picture shows, for example `main`, `detail` or `creative`.
    #[serde(default)]
    pub role: Option<String>,
}
