//! Templates that make one text of an asset, for embeddings and prompts.
//!
//! It knows the fields of products and ads and nothing of tokens. Invariant: a template that was parsed for a kind can
//! be rendered for every asset of that kind; unknown placeholders are found when the job file is read, not at run time.

use std::fmt::Write;

use super::reader::Section;
use super::suggestion::did_you_mean;
use crate::domain::{Asset, AssetKind, Content};

/// A text with placeholders such as `{title}`; `{{` and `}}` stand for plain braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Placeholder(Placeholder),
}

/// What a template can say of an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Id,
    Title,
    Description,
    Attributes,
    Categories,
    Locale,
    Price,
    Headline,
    Body,
    CallToAction,
    LandingPage,
}

impl Placeholder {
    fn of(kind: AssetKind) -> &'static [Self] {
        match kind {
            AssetKind::Product => &[
                Self::Id,
                Self::Title,
                Self::Description,
                Self::Attributes,
                Self::Categories,
                Self::Locale,
                Self::Price,
            ],
            AssetKind::Ad => &[Self::Id, Self::Headline, Self::Body, Self::CallToAction, Self::LandingPage],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Title => "title",
            Self::Description => "description",
            Self::Attributes => "attributes",
            Self::Categories => "categories",
            Self::Locale => "locale",
            Self::Price => "price",
            Self::Headline => "headline",
            Self::Body => "body",
            Self::CallToAction => "call_to_action",
            Self::LandingPage => "landing_page",
        }
    }
}

/// What is wrong with a template's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("is empty; write a text with placeholders such as {{id}}")]
    Empty,
    #[error(
        "has a {brace:?} at character {position} that belongs to no placeholder; write {brace}{brace} for a plain brace"
    )]
    Brace { brace: char, position: usize },
    #[error("{{{name}}} is no placeholder of kind {kind}; {help}")]
    Unknown { name: String, kind: AssetKind, help: String },
}

impl Template {
    /// Reads a template for assets of one kind.
    pub fn parse(source: &str, kind: AssetKind) -> Result<Self, TemplateError> {
        if source.trim().is_empty() {
            return Err(TemplateError::Empty);
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = if rest[at..].starts_with('{') { '{' } else { '}' };
            let after = &rest[at + 1..];
            if after.starts_with(brace) {
                literal.push(brace);
                rest = &after[1..];
                continue;
            }
            let name = after.find(['{', '}']).filter(|end| brace == '{' && after[*end..].starts_with('}'));
            let Some(end) = name else {
                let position = source[..source.len() - rest.len() + at].chars().count() + 1;
                return Err(TemplateError::Brace { brace, position });
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Placeholder(placeholder(&after[..end], kind)?));
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self { source: source.to_owned(), pieces })
    }

    /// The text as the job file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Puts the asset's fields in. A field that the asset lacks leaves nothing; attributes read `name: value; ...` in
    /// the order of their names, categories are joined by `; `, a price reads `12.5 EUR`, a landing page is its markup.
    pub fn render(&self, asset: &Asset) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Placeholder(placeholder) => write_field(&mut text, asset, *placeholder),
            }
        }
        text
    }
}

fn placeholder(name: &str, kind: AssetKind) -> Result<Placeholder, TemplateError> {
    let known = Placeholder::of(kind);
    known.iter().copied().find(|placeholder| placeholder.name() == name).ok_or_else(|| TemplateError::Unknown {
        name: name.to_owned(),
        kind,
        help: did_you_mean(name, known.iter().map(|placeholder| placeholder.name())),
    })
}

fn write_field(text: &mut String, asset: &Asset, placeholder: Placeholder) {
    match (&asset.content, placeholder) {
        (_, Placeholder::Id) => text.push_str(&asset.id),
        (Content::Product(product), Placeholder::Title) => text.push_str(&product.title),
        (Content::Product(product), Placeholder::Description) => text.push_str(&product.description),
        (Content::Product(product), Placeholder::Attributes) => {
            for (index, (name, value)) in product.attributes.iter().enumerate() {
                let separator = if index == 0 { "" } else { "; " };
                write!(text, "{separator}{name}: {value}").expect("writing into a String cannot fail");
            }
        }
        (Content::Product(product), Placeholder::Categories) => {
            text.push_str(&product.candidate_categories.join("; "));
        }
        (Content::Product(product), Placeholder::Locale) => text.push_str(product.locale.as_deref().unwrap_or("")),
        (Content::Product(product), Placeholder::Price) => {
            if let Some(price) = &product.price {
                write!(text, "{} {}", price.amount, price.currency).expect("writing into a String cannot fail");
            }
        }
        (Content::Ad(ad), Placeholder::Headline) => text.push_str(&ad.headline),
        (Content::Ad(ad), Placeholder::Body) => text.push_str(&ad.body),
        (Content::Ad(ad), Placeholder::CallToAction) => text.push_str(ad.call_to_action.as_deref().unwrap_or("")),
        (Content::Ad(ad), Placeholder::LandingPage) => text.push_str(ad.landing_page.as_deref().unwrap_or("")),
        // A placeholder of the other kind has nothing to say of this asset.
        (Content::Product(_) | Content::Ad(_), _) => {}
    }
}

/// Reads the template of a key that was read already; None when it cannot be one, which is then complained about.
pub(super) fn read_template(
    section: &Section<'_>,
    name: &str,
    source: &str,
    kind: Option<AssetKind>,
) -> Option<Template> {
    match Template::parse(source, kind?) {
        Ok(template) => Some(template),
        Err(error) => {
            section.complain(name, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Ad, Price, Product};

    fn product() -> Asset {
        let product = Product {
            title: "Mug".into(),
            description: "Blue {really}".into(),
            attributes: [("size".into(), "S".into()), ("colour".into(), "blue".into())].into(),
            candidate_categories: vec!["Home > Mugs".into(), "Gifts".into()],
            locale: Some("de-AT".into()),
            price: Some(Price { amount: 12.5, currency: "EUR".into() }),
        };
        Asset { id: "p-1".into(), event_time: 0, content: Content::Product(product), media: Vec::new() }
    }

    fn ad() -> Asset {
        let ad = Ad {
            headline: "Mugs!".into(),
            body: "This week.".into(),
            call_to_action: Some("Shop now".into()),
            landing_page: None,
        };
        Asset { id: "a-1".into(), event_time: 0, content: Content::Ad(ad), media: Vec::new() }
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let all = "{id}|{title}|{description}|{attributes}|{categories}|{locale}|{price}";
        let text = Template::parse(all, AssetKind::Product).unwrap().render(&product());
        assert_eq!(text, "p-1|Mug|Blue {really}|colour: blue; size: S|Home > Mugs; Gifts|de-AT|12.5 EUR");
        let all = "{id}|{headline}|{body}|{call_to_action}|{landing_page}";
        let text = Template::parse(all, AssetKind::Ad).unwrap().render(&ad());
        assert_eq!(text, "a-1|Mugs!|This week.|Shop now|");
    }

    #[test]
    fn doubled_braces_are_plain_ones() {
        let template = Template::parse("{{title}} {{{title}}} }}", AssetKind::Product).unwrap();
        assert_eq!(template.render(&product()), "{title} {Mug} }");
    }

    #[test]
    fn mistakes_are_found_when_the_template_is_read() {
        let wrong = [
            ("  ", "is empty"),
            ("{titel}", "{titel} is no placeholder of kind product; did you mean `title`?"),
            ("{headline}", "{headline} is no placeholder of kind product; known are `id`, `title`"),
            ("{}", "{} is no placeholder"),
            ("a {title", "has a '{' at character 3"),
            ("äa } b", "has a '}' at character 4"),
            ("{ti{tle}", "has a '{' at character 1"),
        ];
        for (source, words) in wrong {
            let message = Template::parse(source, AssetKind::Product).unwrap_err().to_string();
            assert!(message.contains(words), "{source}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_with_its_braces_doubled_renders_as_itself(text in "[a-z{}é ]{0,20}x") {
            let doubled = text.replace('{', "{{").replace('}', "}}");
            let template = Template::parse(&doubled, AssetKind::Ad).unwrap();
            prop_assert_eq!(template.render(&ad()), text);
        }

        #[test]
        fn parsing_any_text_never_panics(text in "[a-z{}é ]{0,30}") {
            let _ = Template::parse(&text, AssetKind::Product).map(|template| template.render(&product()));
        }
    }
}
