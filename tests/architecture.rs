//! The house, checked against the sources: who may import whom, no circles, short files, honest doors.
//!
//! The tables below are the rules; change them when the house changes, with the reason in the same commit. The sources are
//! read as text, so this knows no type and no macro: only what is written.

mod circles;
mod file;
mod rooms;
mod style;
mod tokens;
mod tree;

use std::fmt;
use std::path::Path;

use self::file::SourceFile;
use self::tree::Tree;

/// From the ground floor up; arrows point down. One row per folder or file right under src/.
#[rustfmt::skip]
const ROOMS: &[Room] = &[
    room("domain",        1, Rooms::Only(&[]),                                                        Crates::Only(&["serde"])),
    room("kv",            1, Rooms::Only(&[]),                                                        Crates::Never(&["tokio"])),
    room("metrics",       1, Rooms::Only(&[]),                                                        Crates::Any),
    room("traces",        1, Rooms::Only(&[]),                                                        Crates::Any),
    room("retry",         1, Rooms::Only(&[]),                                                        Crates::Any),
    room("heap",          1, Rooms::Only(&[]),                                                        Crates::Any),

    room("source",        2, Rooms::Only(&["domain", "metrics", "retry"]),                            Crates::Any),
    room("media",         2, Rooms::Only(&["domain", "metrics", "retry"]),                            Crates::Any),
    room("job",           2, Rooms::Only(&["domain"]),                                                Crates::Never(&["tokio"])),
    room("ledger",        2, Rooms::Only(&["domain"]),                                                Crates::StdWithout(CLOCKS_AND_IO)),
    room("sink",          2, Rooms::Only(&["domain", "metrics", "retry"]),                            Crates::Any),
    room("model",         2, Rooms::Only(&["kv", "heap"]),                                            Crates::Never(&["tokio"])),
    room("telemetry",     2, Rooms::Only(&[]),                                                        Crates::Any),

    room("engine",        3, Rooms::Only(&["model", "kv", "metrics", "retry"]),                       Crates::Any),
    room("query",         3, Rooms::Only(&["domain"]),                                                Crates::Any),

    room("pipeline",      4, Rooms::Only(&["domain", "metrics", "retry", "source", "media", "job",
                                           "ledger", "sink", "engine", "traces"]),                    Crates::Any),

    room("config",        5, Rooms::Below,                                                            Crates::Any),

    room("app",           6, Rooms::BelowAnd(&["check", "progress_line", "server"]),                  Crates::Any),
    room("ask",           6, Rooms::BelowAnd(&["check"]),                                             Crates::Any),
    room("bench",         6, Rooms::BelowAnd(&["check"]),                                             Crates::Any),
    room("check",         6, Rooms::Below,                                                            Crates::Any),
    room("demo",          6, Rooms::BelowAnd(&["app", "ask", "check", "submit"]),                     Crates::Any),
    room("dlq",           6, Rooms::BelowAnd(&["check"]),                                             Crates::Any),
    room("eval",          6, Rooms::BelowAnd(&["ask", "check"]),                                      Crates::Any),
    room("inspect",       6, Rooms::Below,                                                            Crates::Any),
    room("progress_line", 6, Rooms::Below,                                                            Crates::Any),
    room("server",        6, Rooms::Below,                                                            Crates::Any),
    room("status",        6, Rooms::BelowAnd(&["app", "check"]),                                      Crates::Any),
    room("submit",        6, Rooms::BelowAnd(&["check"]),                                             Crates::Any),
    room("tryout",        6, Rooms::Below,                                                            Crates::Any),
    room("upkeep",        6, Rooms::BelowAnd(&["check"]),                                             Crates::Any),

    room("cli",           7, Rooms::Below,                                                            Crates::Any),

    room("main",          8, Rooms::Below,                                                            Crates::Any),
    room("lib",           8, Rooms::Below,                                                            Crates::Any),
];

/// Time is an argument of the ledger, and it touches nothing outside of itself.
const CLOCKS_AND_IO: &[&str] =
    &["std::time::Instant", "std::time::SystemTime", "std::fs", "std::io", "std::net", "std::env", "std::thread"];

/// Dependencies that only some places may know: a room, or one file.
#[rustfmt::skip]
const HOMES: &[Home] = &[
    Home { crates: &["rdkafka"],                places: &["source"],
           reason: "the others know records, not Kafka" },
    Home { crates: &["deltalake", "datafusion", "arrow", "parquet"], places: &["sink", "query"],
           reason: "the others know rows, not tables" },
    Home { crates: &["candle_core", "candle_nn", "candle_transformers", "candle_flash_attn"], places: &["model", "kv/store.rs"],
           reason: "the others know tokens, pixels and numbers, not tensors" },
    Home { crates: &["hf_hub", "ureq"],         places: &["model/hub"],
           reason: "the others know paths, not where models are published" },
    Home { crates: &["image"],                  places: &["media/image.rs", "demo", "bench"],
           reason: "pictures are decoded under limits in one place; demo and bench only encode" },
    Home { crates: &["anyhow"],                 places: &["app", "ask", "bench", "check", "demo", "dlq", "eval", "inspect", "status",
                                                         "submit", "tryout", "upkeep",
                                                         "cli", "main"],
           reason: "a room says with its own error type what can go wrong" },
];

/// How the names of `image` end that decode.
const IMAGE_DECODERS: &[&str] =
    &["Decoder", "ImageReader", "load_from_memory", "load_from_memory_with_format", "load", "open"];

/// Where the build's features may be asked for: beginnings of file names.
const FEATURE_PLACES: &[&str] = &["model/device.rs", "model/kernel"];

/// Lines of a file that are not test code.
const LONGEST_FILE: usize = 500;

#[derive(Debug)]
struct Room {
    name: &'static str,
    floor: u8,
    imports: Rooms,
    crates: Crates,
}

const fn room(name: &'static str, floor: u8, imports: Rooms, crates: Crates) -> Room {
    Room { name, floor, imports, crates }
}

/// The rooms that a room may import.
#[derive(Debug, Clone, Copy)]
enum Rooms {
    Only(&'static [&'static str]),
    /// Every room of a lower floor.
    Below,
    /// Those and some of its own floor.
    BelowAnd(&'static [&'static str]),
}

/// The dependencies that a room may use, as far as their home allows it.
#[derive(Debug, Clone, Copy)]
enum Crates {
    Any,
    /// The standard library and these.
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
    /// The standard library without these parts, and nothing else.
    StdWithout(&'static [&'static str]),
}

/// Dependencies and the places that may know them.
#[derive(Debug)]
struct Home {
    crates: &'static [&'static str],
    places: &'static [&'static str],
    reason: &'static str,
}

impl fmt::Display for Rooms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only([]) => formatter.write_str("no room"),
            Self::Only(rooms) => write!(formatter, "only {}", rooms.join(", ")),
            Self::Below => formatter.write_str("only lower floors"),
            Self::BelowAnd(rooms) => write!(formatter, "only lower floors and {}", rooms.join(", ")),
        }
    }
}

impl fmt::Display for Crates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("any dependency"),
            Self::Only(crates) => write!(formatter, "only std, {}", crates.join(", ")),
            Self::Never(crates) => write!(formatter, "anything but {}", crates.join(", ")),
            Self::StdWithout(parts) => write!(formatter, "only std, without {}", parts.join(", ")),
        }
    }
}

/// A place in the sources that breaks a rule.
#[derive(Debug)]
struct Violation {
    file: String,
    line: usize,
    rule: &'static str,
    reason: String,
}

impl Violation {
    fn new(file: &SourceFile, line: usize, rule: &'static str, reason: impl Into<String>) -> Self {
        Self { file: file.name.clone(), line, rule, reason: reason.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}: {}", self.file, self.line, self.rule, self.reason)
    }
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    assert_none(&rooms::forbidden_imports(&house()));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_none(&circles::circles_of_files(&house()));
}

#[test]
fn no_rooms_import_each_other_in_a_circle() {
    assert_none(&circles::circles_of_rooms(&house()));
}

#[test]
fn files_keep_the_rules_of_style() {
    assert_none(&style::broken_style(&house()));
}

#[test]
fn files_of_tests_keep_their_manners() {
    let sources = sources("tests");
    let files = sources.iter().map(|(name, text)| SourceFile::read(name, text));
    assert_none(&files.flat_map(|file| style::broken_manners(&file)).collect::<Vec<_>>());
}

/// A row for a room that is gone, or one with an arrow to a room that has no row, would check nothing.
#[test]
fn the_table_names_only_rooms_of_the_table() {
    let known = |name: &&str| ROOMS.iter().filter(|room| room.name == *name).count() == 1;
    for room in ROOMS {
        let (Rooms::Only(imports) | Rooms::BelowAnd(imports)) = room.imports else { continue };
        assert!(imports.iter().all(known), "{room:?} names a room that is not in the table exactly once");
        let side = matches!(room.imports, Rooms::BelowAnd(_));
        let floors = imports.iter().flat_map(|name| ROOMS.iter().filter(move |other| other.name == *name));
        assert!(
            floors.into_iter().all(|other| if side { other.floor == room.floor } else { other.floor < room.floor }),
            "{room:?}"
        );
    }
}

fn assert_none(violations: &[Violation]) {
    let lines: Vec<_> = violations.iter().map(|violation| format!("  {violation}\n")).collect();
    assert!(lines.is_empty(), "{} places break the rules of the house:\n{}", lines.len(), lines.concat());
}

/// The sources of this crate.
fn house() -> Tree {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("the manifest lies in its folder");
    let sources = sources("src");
    assert!(sources.len() > 50, "only {} files were read: this looks at the wrong folder", sources.len());
    Tree::of(&sources, &manifest)
}

/// Names, from the root of the repository, and texts of the Rust files in a folder and all that are in it.
fn sources(folder: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{} cannot be read: {error}", path.display()));
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.expect("an entry of a folder of sources can be read");
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(sources(&name));
        } else if name.ends_with(".rs") {
            found.push((name, std::fs::read_to_string(entry.path()).expect("a source file is text")));
        }
    }
    found.sort();
    found
}

const NONE: [&str; 0] = [];

/// A house of a few small files, for the tests of the rules.
fn tree(sources: &[(&str, &str)]) -> Tree {
    let crates = ["anyhow", "arrow", "candle-core", "image", "rdkafka", "serde", "serde_json", "tokio"];
    let manifest = format!("[dependencies]\n{}", crates.map(|name| format!("{name} = \"1\"\n")).concat());
    let sources: Vec<_> = sources.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Tree::of(&sources, &manifest)
}

fn complaints(violations: Vec<Violation>) -> Vec<String> {
    violations.iter().map(Violation::to_string).collect()
}
