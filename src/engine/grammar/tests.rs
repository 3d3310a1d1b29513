//! Tests of grammars as a whole: answers of wilful models over several vocabularies.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::closing::closing;
use super::grammars::Grammar;
use super::{AnswerMatcher, FinishReason, GrammarError, Grammars, TokenMask, check_schema, with_choices};
use crate::model::{ChatProcessor, Message, ModelError, Precision, Prompt, TokenSpelling, TokenTable, outline};

/// A vocabulary with its grammars, and what its tokens spell.
struct Speaker {
    name: &'static str,
    grammars: Grammars,
    spelled: Vec<Vec<u8>>,
}

impl Speaker {
    fn new(name: &'static str, processor: Arc<dyn ChatProcessor>) -> Self {
        let bytes = |spelling: TokenSpelling| match spelling {
            TokenSpelling::Bytes(bytes) => bytes,
            TokenSpelling::Special(_) | TokenSpelling::Unused => Vec::new(),
        };
        let spelled = processor.vocabulary().unwrap().tokens.into_iter().map(bytes).collect();
        Self { name, grammars: Grammars::new(processor).unwrap(), spelled }
    }

    fn fixture(name: &'static str) -> Self {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/models").join(name);
        let generator = outline(&directory, Precision::F32).unwrap().generator.unwrap();
        Self::new(name, generator.processor)
    }

    fn text(&self, tokens: &[u32]) -> String {
        let bytes = tokens.iter().flat_map(|token| self.spelled[*token as usize].clone()).collect();
        String::from_utf8(bytes).unwrap()
    }
}

static SPEAKERS: LazyLock<Vec<Speaker>> = LazyLock::new(|| {
    let mut speakers: Vec<_> = ["llama4-a", "llama3-tied", "qwen3-vl"].map(Speaker::fixture).into();
    speakers.push(Speaker::new("letters", Arc::new(Letters)));
    speakers
});

/// A tokenizer of single bytes and a few syllables that cross the borders of JSON.
struct Letters;

const SYLLABLES: [&str; 9] = ["\"}", "\", ", "\": ", "\": \"", "null", "},", "\"a", "0.0", "]}"];

impl ChatProcessor for Letters {
    fn prompt(&self, _: &[Message<'_>]) -> Result<Prompt, ModelError> {
        self.text("")
    }

    fn text(&self, _: &str) -> Result<Prompt, ModelError> {
        Err(ModelError::Input { detail: "letters have no prompts".to_owned() })
    }

    fn picture_unit(&self) -> Option<(String, usize)> {
        None
    }

    fn decode(&self, _: &[u32]) -> Result<String, ModelError> {
        Ok(String::new())
    }

    fn vocabulary(&self) -> Result<TokenTable, ModelError> {
        let mut tokens: Vec<_> = (0..=254_u8).map(|byte| TokenSpelling::Bytes(vec![byte])).collect();
        tokens.push(TokenSpelling::Special("<end>".to_owned()));
        tokens.extend(SYLLABLES.map(|syllable| TokenSpelling::Bytes(syllable.into())));
        Ok(TokenTable { tokens, end_tokens: vec![255] })
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(text.bytes().map(u32::from).collect())
    }
}

/// What a model likes to write.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Will {
    Anything,
    /// Text, and never the end of it.
    Talk,
    Digits,
    Spaces,
    /// The token with the most bytes.
    Long,
    /// Backslashes, control characters and halves of characters.
    Odd,
    /// What opens or continues a structure.
    Structure,
}

const WILLS: [Will; 7] =
    [Will::Anything, Will::Talk, Will::Digits, Will::Spaces, Will::Long, Will::Odd, Will::Structure];

impl Will {
    fn likes(self, bytes: &[u8]) -> bool {
        match self {
            Self::Anything | Self::Long => true,
            Self::Talk => bytes.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b' '),
            Self::Digits => bytes.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-')),
            Self::Spaces => bytes.iter().all(u8::is_ascii_whitespace),
            Self::Odd => bytes.iter().any(|byte| *byte == b'\\' || *byte >= 0x80),
            Self::Structure => bytes.iter().any(|byte| b"{[,:".contains(byte)),
        }
    }

    fn choose(self, mask: &TokenMask, spelled: &[Vec<u8>], random: &mut StdRng) -> u32 {
        if self == Self::Long {
            return mask.ids().max_by_key(|id| spelled[*id as usize].len()).unwrap();
        }
        let liked = mask.ids().filter(|id| self.likes(&spelled[*id as usize]));
        let whim = random.random_bool(0.9).then(|| liked.choose(random)).flatten();
        whim.unwrap_or_else(|| mask.ids().choose(random).unwrap())
    }
}

fn with(mut schema: Value, keyword: &str, value: Value) -> Value {
    schema[keyword] = value;
    schema
}

/// Everything that an annotation of a catalogue asks for.
fn schemas() -> Vec<Value> {
    let object = |properties: Value, required: &[&str]| {
        let open = json!({ "type": "object", "properties": properties });
        with(with(open, "required", json!(required)), "additionalProperties", json!(false))
    };
    let category = json!({ "enum": ["Kitchen > Mugs", "Kitchen > \"Cups\" & Größen", "Garden\nHose", "Kitchen"] });
    let tags =
        json!({ "type": "array", "maxItems": 3, "items": { "type": "string", "minLength": 2, "maxLength": 12 } });
    vec![
        object(json!({ "title": { "type": "string" } }), &["title"]),
        object(
            json!({
                "category": category,
                "brand": { "type": ["string", "null"], "maxLength": 20 },
                "safe": { "type": "boolean" },
                "score": { "type": "number", "minimum": 0, "maximum": 1 },
                "count": { "type": "integer", "minimum": -3, "maximum": 120 },
            }),
            &["category", "brand", "safe", "score", "count"],
        ),
        object(
            json!({
                "tags": tags,
                "price": object(json!({ "amount": { "type": "number", "exclusiveMinimum": 0 },
                    "currency": { "type": "string", "pattern": "^[A-Z]{3}$" } }), &["amount", "currency"]),
                "seen": { "type": ["string", "null"], "format": "date" },
                "size": { "type": ["integer", "null"], "multipleOf": 7, "minimum": 20 },
            }),
            &["tags", "price", "seen", "size"],
        ),
        object(
            json!({
                "note": { "type": "string", "minLength": 5, "maxLength": 40 },
                "kind": { "anyOf": [{ "const": "new" }, { "type": "integer" }, { "type": "null" }] },
                "parts": { "type": "array", "minItems": 1, "maxItems": 4, "items": { "$ref": "#/$defs/part" } },
                "depth": { "type": "number", "exclusiveMaximum": -0.25 },
            }),
            &["parts"],
        ),
        json!({ "type": "object", "properties": { "code": { "type": "string", "pattern": "^(ab|a)*c{2,5}x+y$" },
            "id": { "type": "string", "format": "uuid" }, "at": { "type": "string", "format": "date-time" } } }),
    ]
    .into_iter()
    .map(|mut schema| {
        schema["$defs"] = json!({ "part": object(json!({ "of": { "type": ["boolean", "null"] },
            "weight": { "type": "number" } }), &["of"]) });
        schema
    })
    .collect()
}

/// Lets a model with a will write an answer; every state is checked on the way.
fn answer(speaker: &Speaker, grammar: &Grammar, budget: usize, (will, seed): (Will, u64)) -> (String, FinishReason) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut matcher = grammar.start(budget).unwrap();
    let mut tokens = Vec::new();
    while matcher.finish_reason().is_none() {
        let forced = if random.random_bool(0.7) { matcher.take_forced().unwrap() } else { Vec::new() };
        tokens.extend(forced);
        if matcher.finish_reason().is_some() {
            break;
        }
        let sampled = will.choose(matcher.mask().unwrap(), &speaker.spelled, &mut random);
        tokens.push(matcher.commit(sampled).unwrap());
        assert_eq!(matcher.remaining() + tokens.len(), budget);
    }
    assert!(tokens.len() <= budget);
    assert_eq!(matcher.mask().unwrap().count(), 0);
    (speaker.text(&tokens), matcher.finish_reason().unwrap())
}

fn assert_fits(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    let problems: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:?} in {text} by {schema}");
    assert!(!text.contains('\n'), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_of_every_will_fits_its_schema_and_its_budget(
        speaker in 0..4_usize,
        schema in 0..5_usize,
        will in prop::sample::select(&WILLS[..]),
        spare in prop_oneof![0..12_usize, 0..80_usize, 0..400_usize],
        seed in any::<u64>(),
    ) {
        let (speaker, schema) = (&SPEAKERS[speaker], &schemas()[schema]);
        let grammar = speaker.grammars.grammar(schema).unwrap();
        let (text, _) = answer(speaker, &grammar, grammar.least_budget() + spare, (will, seed));
        assert_fits(schema, &text);
    }

    #[test]
    fn numbers_keep_any_bounds(
        ends in (-2_000_000_i64..2_000_000, 0_i64..3_000_000, prop::sample::select(vec![1.0, 10.0, 1000.0])),
        exclusive in any::<(bool, bool)>(),
        open in any::<(bool, bool)>(),
        integer in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (low, width, scale) = ends;
        let (low, high) = (low as f64 / scale, (low + width) as f64 / scale);
        let mut number = json!({ "type": if integer { "integer" } else { "number" } });
        if !open.0 {
            number[if exclusive.0 { "exclusiveMinimum" } else { "minimum" }] = json!(low);
        }
        if !open.1 {
            number[if exclusive.1 { "exclusiveMaximum" } else { "maximum" }] = json!(high);
        }
        let schema = json!({ "type": "object", "properties": { "n": number }, "required": ["n"] });
        let speaker = &SPEAKERS[3];
        let grammar = match speaker.grammars.grammar(&schema) {
            Ok(grammar) => grammar,
            // Bounds may leave no number between them.
            Err(_) if !open.0 && !open.1 && high - low < 2.0 => return Ok(()),
            Err(refusal) => panic!("{schema}: {refusal}"),
        };
        let mut seeds = StdRng::seed_from_u64(seed);
        for will in [Will::Digits, Will::Anything, Will::Digits, Will::Long] {
            let budget = grammar.least_budget() + seeds.random_range(0..30);
            let (text, _) = answer(speaker, &grammar, budget, (will, seeds.random()));
            assert_fits(&schema, &text);
            let value: Value = serde_json::from_str(&text).unwrap();
            prop_assert!(!integer || value["n"].is_i64() || value["n"].is_u64(), "{text}");
        }
    }

    #[test]
    fn no_way_out_is_longer_than_its_bound(
        speaker in 0..4_usize,
        schema in 0..4_usize,
        will in prop::sample::select(&WILLS[..]),
        seed in any::<u64>(),
    ) {
        let (speaker, schema) = (&SPEAKERS[speaker], &schemas()[schema]);
        let narrowed = super::reading::narrowed(schema).unwrap();
        let Some(bound) = super::bound::longest_closing(&narrowed) else { return Ok(()) };
        let grammar = speaker.grammars.grammar(schema).unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let mut matcher = grammar.start(100_000).unwrap();
        for _ in 0..60 {
            if matcher.finish_reason().is_some() {
                break;
            }
            let sampled = will.choose(matcher.mask().unwrap(), &speaker.spelled, &mut random);
            matcher.commit(sampled).unwrap();
            let bytes = closing_of(&mut matcher);
            prop_assert!(bytes.len() <= bound, "{} > {bound}", bytes.len());
        }
    }

    #[test]
    fn forced_tokens_are_what_the_mask_allows_one_by_one(
        speaker in 0..3_usize,
        schema in 0..5_usize,
        seed in any::<u64>(),
    ) {
        let speaker = &SPEAKERS[speaker];
        let grammar = speaker.grammars.grammar(&schemas()[schema]).unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let mut matcher = grammar.start(500).unwrap();
        let mut seen = 0;
        while matcher.finish_reason().is_none() {
            let mut slow = matcher.clone();
            for token in matcher.take_forced().unwrap() {
                prop_assert_eq!(slow.mask().unwrap().ids().collect::<Vec<_>>(), [token]);
                slow.commit(token).unwrap();
                seen += 1;
            }
            if matcher.finish_reason().is_none() {
                let sampled = Will::Anything.choose(matcher.mask().unwrap(), &speaker.spelled, &mut random);
                matcher.commit(sampled).unwrap();
            }
        }
        prop_assert!(seen > 0);
    }
}

fn closing_of(matcher: &mut AnswerMatcher) -> Vec<u8> {
    let (parser, position) = matcher.state();
    closing(&mut parser.parser, position, &[]).expect("a way out")
}

#[test]
fn a_budget_with_no_room_for_any_answer_is_refused_with_what_is_needed() {
    for speaker in SPEAKERS.iter() {
        let grammar = speaker.grammars.grammar(&schemas()[1]).unwrap();
        let needed = grammar.least_budget();
        let refusal = grammar.start(needed - 1).err().unwrap();
        assert_eq!(refusal, GrammarError::BudgetTooSmall { needed, given: needed - 1 });
        let (text, reason) = answer(speaker, &grammar, needed, (Will::Talk, 1));
        assert_fits(&schemas()[1], &text);
        assert_eq!(reason, FinishReason::Length, "{}: {text}", speaker.name);
    }
}

#[test]
fn who_comes_to_an_end_by_itself_has_not_been_cut() {
    let speaker = &SPEAKERS[0];
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"] });
    let grammar = speaker.grammars.grammar(&schema).unwrap();
    let (text, reason) = answer(speaker, &grammar, 30, (Will::Talk, 7));
    assert!(text == r#"{"ok": true}"# || text == r#"{"ok": false}"#, "{text}");
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn endless_talk_is_cut_to_the_last_token() {
    for speaker in SPEAKERS.iter() {
        let mut matcher = speaker.grammars.grammar(&schemas()[0]).unwrap().start(60).unwrap();
        let mut tokens = Vec::new();
        while matcher.finish_reason().is_none() {
            let mask = matcher.mask().unwrap();
            let talk = mask.ids().find(|id| speaker.spelled[*id as usize].iter().all(u8::is_ascii_alphabetic));
            let sampled = talk.or_else(|| mask.ids().next()).unwrap();
            tokens.push(matcher.commit(sampled).unwrap());
        }
        assert_eq!((matcher.finish_reason(), matcher.remaining()), (Some(FinishReason::Length), 0));
        assert_fits(&schemas()[0], &speaker.text(&tokens));
    }
}

#[test]
fn two_assets_choose_from_their_own_lists() {
    let place = json!({ "type": "string", "x-assay-choices": "candidate_categories" });
    let schema = json!({ "type": "object", "properties": { "category": place }, "required": ["category"] });
    let speaker = &SPEAKERS[2];
    for list in [["Mugs", "Cups"], ["Garden > Hoses", "Garden > Gnomes"]] {
        let list = list.map(str::to_owned);
        let filled = with_choices(&schema, &|_| &list).unwrap();
        let grammar = speaker.grammars.grammar(&filled).unwrap();
        for seed in 0..20 {
            let (text, _) = answer(speaker, &grammar, 60, (Will::Anything, seed));
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(list.contains(&value["category"].as_str().unwrap().to_owned()), "{text}");
        }
    }
    assert!(speaker.grammars.grammar(&schema).is_err(), "a schema whose choices are not filled in constrains nothing");
}

#[test]
fn a_token_that_is_not_allowed_is_refused_and_harms_nothing() {
    let speaker = &SPEAKERS[3];
    let mut matcher = speaker.grammars.grammar(&schemas()[0]).unwrap().start(100).unwrap();
    assert_eq!(matcher.commit(u32::from(b'x')), Err(GrammarError::NotAllowed { token: u32::from(b'x') }));
    assert_eq!(matcher.commit(255), Err(GrammarError::NotAllowed { token: 255 }));
    assert_eq!(matcher.commit(9999), Err(GrammarError::NotAllowed { token: 9999 }));
    assert_eq!(matcher.commit(u32::from(b'{')), Ok(u32::from(b'{')));
}

#[test]
fn grammars_are_kept_by_content() {
    let grammars = &SPEAKERS[0].grammars;
    let first = grammars.grammar(&schemas()[0]).unwrap();
    assert!(Arc::ptr_eq(&first, &grammars.grammar(&schemas()[0]).unwrap()));
    assert!(!Arc::ptr_eq(&first, &grammars.grammar(&schemas()[1]).unwrap()));
}

#[test]
fn a_refused_schema_says_where_and_what_to_do() {
    let of = |rules: Value| json!({ "type": "object", "properties": { "a": rules } });
    for (rules, expected) in [
        (
            json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }),
            "/properties/a/uniqueItems cannot",
        ),
        (json!({ "type": "string", "not": { "const": "x" } }), "/properties/a/not cannot"),
        (
            json!({ "type": "string", "maxLenght": 3 }),
            "/properties/a/maxLenght cannot be kept by a grammar; correct its",
        ),
        (json!({ "type": "string", "format": "email" }), "date, date-time, time and uuid are known"),
        (json!({ "oneOf": [{ "type": "null" }, { "type": "string" }] }), "write anyOf"),
        (json!({ "type": "object" }), "/properties/a/properties is missing"),
        (json!({ "type": "array" }), "/properties/a/items is missing"),
        (json!({}), "/properties/a/type is missing"),
        (json!(true), "/properties/a is true; write an object"),
        (json!({ "type": "number", "multipleOf": 0.01 }), "/properties/a/multipleOf"),
        (json!({ "type": "integer", "maximum": 1e300 }), "/properties/a/maximum is 1e+300"),
        (json!({ "type": "string", "minLength": 5, "maxLength": 3 }), "minLength (5)"),
        (json!({ "type": "string", "pattern": "(?=a)b" }), "look-around"),
        (json!({ "$ref": "#/definitions/x" }), "write #/$defs/NAME"),
        (json!({ "enum": [] }), "/properties/a/enum"),
        (json!({ "type": "object", "properties": {}, "additionalProperties": true }), "must be false"),
    ] {
        let refusal = check_schema(&of(rules.clone())).expect_err(&rules.to_string());
        assert!(refusal.contains(expected), "{rules}: {refusal}");
    }
    let inside = json!({ "a": { "$ref": "#/$defs/a" } });
    let within = json!({ "type": "object", "properties": inside, "required": ["a"] });
    let endless = with(within.clone(), "$defs", json!({ "a": within }));
    assert!(check_schema(&endless).unwrap_err().contains("no answer comes to an end"));
    assert!(check_schema(&json!({ "type": "array" })).unwrap_err().contains("must be \"object\""));
}

#[test]
fn odd_choices_can_be_written() {
    let odd = ["", "\u{0}\u{7}\u{1f}", "\u{7f}", "a\\b\"c/", "\u{2028}\u{fffd}", "\u{1f375}é", "tab\tnew\nline", " "];
    for speaker in SPEAKERS.iter() {
        for choice in odd {
            let list = [choice.to_owned()];
            let place = json!({ "type": "string", "x-assay-choices": "names" });
            let schema = json!({ "type": "object", "properties": { "name": place }, "required": ["name"] });
            let filled = with_choices(&schema, &|_| &list).unwrap();
            let grammar = speaker.grammars.grammar(&filled).unwrap();
            for spare in [0, 100] {
                let (text, _) = answer(speaker, &grammar, grammar.least_budget() + spare, (Will::Odd, 5));
                let value: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value["name"], choice, "{}", speaker.name);
            }
        }
    }
}

#[test]
fn schemas_of_annotations_pass_the_check() {
    for schema in schemas() {
        check_schema(&schema).unwrap_or_else(|refusal| panic!("{refusal}"));
    }
    let place = json!({ "type": ["string", "null"], "description": "d", "x-assay-choices": "candidate_categories" });
    check_schema(&json!({ "type": "object", "properties": { "category": place } })).unwrap();
}
