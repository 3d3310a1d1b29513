//! From JSON Schemas to grammars over the tokens of one model.
//!
//! Compiling is CPU work of some milliseconds, done on any thread and kept by the schema's content. Knows no asset.
//! Invariant: an answer that follows a grammar to its end is JSON on one line and an instance of the schema.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{JsonCompileOptions, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::bound::longest_closing;
use super::choices::with_choices;
use super::error::GrammarError;
use super::guarded::guarded;
use super::matcher::{AnswerMatcher, way_out};
use super::position::JsonPosition;
use super::reading::narrowed;
use super::spelled::{SpelledTokens, single_bytes};
use crate::model::ChatProcessor;

/// Grammars that are kept; a job with choices from its assets has as many as it has lists of choices.
const KEPT: usize = 64;
/// States of a grammar's lexer, 1 to 2 KiB each, from which on it starts anew.
const MOST_STATES: usize = 20_000;
/// How much work building a lexer and computing one mask may be, in the grammar engine's units: 50 to 14 for a
/// microsecond.
const BUILD_FUEL: u64 = 10_000_000;
const STEP_FUEL: u64 = 1_000_000;

/// Checks what can be checked of a schema without a model: whether every answer can be made to fit it. Otherwise says,
/// for each place, what to write instead.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    let stand_in = ["choice".to_owned()];
    let schema = with_choices(schema, &|_| &stand_in).map_err(|error| error.to_string())?;
    let factory = factory(&single_bytes()).map_err(|error| error.to_string())?;
    let narrowed = narrowed(&schema)?;
    parser(&factory, demanding(narrowed)).map_err(|error| error.to_string())?;
    Compiled::new(&factory, &schema, true).map(drop).map_err(|error| error.to_string())
}

/// The schema with every property required and no list empty: the grammar engine leaves out in silence what nothing can
/// satisfy, unless it must be there.
fn demanding(schema: Value) -> Value {
    let Value::Object(mut rules) = schema else { return schema };
    for keyword in ["properties", "$defs"] {
        if let Some(Value::Object(members)) = rules.get_mut(keyword) {
            members.iter_mut().for_each(|(_, member)| *member = demanding(member.take()));
        }
    }
    if let Some(Value::Object(properties)) = rules.get("properties") {
        let names: Vec<&String> = properties.keys().collect();
        rules.insert("required".to_owned(), json!(names));
    }
    if let Some(items) = rules.get_mut("items").map(Value::take) {
        rules.insert("items".to_owned(), demanding(items));
        let least = rules.get("minItems").and_then(Value::as_u64).unwrap_or_default();
        if rules.get("maxItems") != Some(&json!(0)) {
            rules.insert("minItems".to_owned(), json!(least.max(1)));
        }
    }
    Value::Object(rules)
}

/// The grammars of one model.
pub struct Grammars {
    factory: ParserFactory,
    /// Whether the closings' bounds in bytes are bounds in tokens.
    every_byte: bool,
    /// By the schema as text; the last one was asked for last.
    kept: Mutex<VecDeque<(String, Arc<Grammar>)>>,
}

impl Grammars {
    /// Reads the vocabulary; takes a second for a large one.
    pub fn new(processor: Arc<dyn ChatProcessor>) -> Result<Self, GrammarError> {
        let tokens = SpelledTokens::new(processor)?;
        let every_byte = tokens.every_byte();
        Ok(Self { factory: factory(&tokens.shared())?, every_byte, kept: Mutex::default() })
    }

    /// The grammar of a schema whose choices are filled in.
    pub fn grammar(&self, schema: &Value) -> Result<Arc<Grammar>, GrammarError> {
        let key = schema.to_string();
        if let Some(grammar) = self.known(&key) {
            return Ok(grammar);
        }
        // Not under the lock: others compile theirs meanwhile, and the same one twice does no harm.
        let compiled = Compiled::new(&self.factory, schema, self.every_byte)?;
        let grammar = Arc::new(Grammar::new(compiled, self.factory.tok_env().clone()));
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, grammar.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(grammar)
    }

    fn known(&self, key: &str) -> Option<Arc<Grammar>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(known, _)| known == key)?;
        let found = kept.remove(place)?;
        let grammar = found.1.clone();
        kept.push_back(found);
        Some(grammar)
    }
}

/// The grammar of one schema. Answers that follow it share the tables that its lexer fills on the way.
pub struct Grammar {
    parsers: Mutex<Parsers>,
    tokens: TokEnv,
    longest_closing: Option<usize>,
    /// A whole answer, the shortest that is known.
    shortest: Vec<u32>,
}

struct Parsers {
    /// As compiled.
    new: TokenParser,
    /// At the start, too, with tables that earlier answers filled.
    warm: TokenParser,
}

impl Grammar {
    fn new(compiled: Compiled, tokens: TokEnv) -> Self {
        let Compiled { parser, longest_closing, shortest } = compiled;
        let parsers = Mutex::new(Parsers { warm: parser.deep_clone(), new: parser });
        Self { parsers, tokens, longest_closing, shortest }
    }

    /// Begins an answer of at most `budget` tokens. Fails with [`GrammarError::BudgetTooSmall`] when none is known that
    /// fits.
    pub fn start(&self, budget: usize) -> Result<AnswerMatcher, GrammarError> {
        if self.shortest.len() > budget {
            return Err(GrammarError::BudgetTooSmall { needed: self.shortest.len(), given: budget });
        }
        let mut parsers = self.parsers.lock().unwrap_or_else(PoisonError::into_inner);
        if parsers.is_worn() {
            parsers.warm = parsers.new.deep_clone();
        }
        let parser = parsers.warm.clone();
        Ok(AnswerMatcher::new(parser, self.tokens.clone(), budget, self.longest_closing, self.shortest.clone()))
    }

    /// Tokens of the shortest answer that is known: the least budget.
    #[cfg(test)]
    pub fn least_budget(&self) -> usize {
        self.shortest.len()
    }
}

impl Parsers {
    /// Whether the shared tables have grown too large, or an answer broke them.
    fn is_worn(&self) -> bool {
        let parser = &self.warm.parser;
        let states = guarded(|| Ok::<_, GrammarError>((parser.lexer_stats().num_states, parser.get_error().is_some())));
        states.map_or(true, |(states, broken)| broken || states > MOST_STATES)
    }
}

/// A parser at the start of an answer, and what is known of all its answers.
struct Compiled {
    parser: TokenParser,
    longest_closing: Option<usize>,
    shortest: Vec<u32>,
}

impl Compiled {
    fn new(factory: &ParserFactory, schema: &Value, every_byte: bool) -> Result<Self, GrammarError> {
        let refused = |detail: String| GrammarError::Schema { detail };
        let schema = narrowed(schema).map_err(refused)?;
        let longest_closing = longest_closing(&schema).filter(|_| every_byte);
        let mut parser = parser(factory, schema)?;
        parser.start_without_prompt();
        let shortest = way_out(&mut parser, factory.tok_env(), JsonPosition::default(), &[])?;
        let shortest = shortest.ok_or_else(|| {
            refused("/ no answer comes to an end; let a recursive property or a list be empty or null".to_owned())
        })?;
        Ok(Self { parser, longest_closing, shortest })
    }
}

/// A parser for a narrowed schema.
fn parser(factory: &ParserFactory, mut schema: Value) -> Result<TokenParser, GrammarError> {
    // Separators as Python's json.dumps writes them, and no other space: a model cannot fill its budget with spaces.
    let options = JsonCompileOptions {
        item_separator: ", ".to_owned(),
        key_separator: ": ".to_owned(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    schema["x-guidance"] = json!(options);
    let refused = |text: String| {
        let words: Vec<&str> = text.split_whitespace().collect();
        GrammarError::Schema { detail: format!("/ cannot be made a grammar: {}", words.join(" ")) }
    };
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
    let mut parser = parser.map_err(|error| refused(format!("{error:#}")))?;
    match parser.grammar_warnings().into_iter().next() {
        Some(warning) => Err(refused(warning)),
        None => Ok(parser),
    }
}

fn factory(tokens: &TokEnv) -> Result<ParserFactory, GrammarError> {
    let forcing = tokens.tokenize_is_canonical();
    let abilities = InferenceCapabilities { ff_tokens: forcing, ..InferenceCapabilities::default() };
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(tokens, abilities, &slices);
    let mut factory = factory.map_err(|error| GrammarError::Vocabulary { detail: error.to_string() })?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = BUILD_FUEL;
    limits.step_lexer_fuel = STEP_FUEL;
    limits.verbose_errors = false;
    Ok(factory)
}
