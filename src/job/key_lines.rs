//! On which line of a TOML file each key stands.
//!
//! It knows the syntax of TOML and nothing of what the keys mean. Lines count from 1. A key path joins names by dots
//! and counts elements of lists from 0: `embeddings[1].model`.

use std::collections::BTreeMap;
use std::path::Path;

use toml_edit::{Array, ImDocument, Item, TableLike, Value};

use super::problem::Problem;

/// The lines of one file's keys.
#[derive(Debug, Clone, Default)]
pub struct KeyLines {
    lines: BTreeMap<String, usize>,
}

impl KeyLines {
    /// Reads the syntax; what cannot be parsed is a problem with its line.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Problem> {
        Ok(Self::of(&parse_document(file, text)?))
    }

    pub(super) fn of(document: &ImDocument<String>) -> Self {
        let mut walk = Walk { text: document.raw(), lines: BTreeMap::new() };
        walk.table("", document.as_table());
        Self { lines: walk.lines }
    }

    /// The line of the key, else that of the nearest section around it that is in the file.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Whether the file itself says something about the key.
    pub fn contains(&self, key: &str) -> bool {
        self.lines.contains_key(key)
    }
}

/// Path of a key inside a section. Names that TOML would quote are quoted.
pub fn join_key(section: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = if bare { name.to_owned() } else { format!("{name:?}") };
    if section.is_empty() { name } else { format!("{section}.{name}") }
}

pub(super) fn parse_document(file: &Path, text: &str) -> Result<ImDocument<String>, Problem> {
    ImDocument::parse(text.to_owned()).map_err(|error| Problem {
        file: file.to_owned(),
        line: error.span().map(|span| line_at(text, span.start)),
        key: String::new(),
        message: format!("this is not TOML: {}", error.message().trim().replace('\n', "; ")),
    })
}

fn line_at(text: &str, position: usize) -> usize {
    text.as_bytes()[..position.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

struct Walk<'a> {
    text: &'a str,
    lines: BTreeMap<String, usize>,
}

impl Walk<'_> {
    fn table(&mut self, section: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let key = join_key(section, name);
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            self.note(&key, span);
            self.item(&key, item);
        }
    }

    fn item(&mut self, key: &str, item: &Item) {
        match item {
            Item::None => {}
            Item::Value(Value::Array(array)) => self.array(key, array),
            Item::Value(Value::InlineTable(table)) => self.table(key, table),
            Item::Value(_) => {}
            Item::Table(table) => self.table(key, table),
            Item::ArrayOfTables(tables) => {
                for (index, table) in tables.iter().enumerate() {
                    let key = format!("{key}[{index}]");
                    self.note(&key, table.span());
                    self.table(&key, table);
                }
            }
        }
    }

    fn array(&mut self, key: &str, array: &Array) {
        for (index, value) in array.iter().enumerate() {
            let key = format!("{key}[{index}]");
            self.note(&key, value.span());
            match value {
                Value::Array(array) => self.array(&key, array),
                Value::InlineTable(table) => self.table(&key, table),
                _ => {}
            }
        }
    }

    fn note(&mut self, key: &str, span: Option<std::ops::Range<usize>>) {
        if let Some(span) = span {
            self.lines.insert(key.to_owned(), line_at(self.text, span.start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_line_and_a_missing_one_that_of_its_section() {
        let text = "a = 1\n[b]\nc.d = 2\n\n[[e]]\nf = 3\n[[e]]\nf = [\n  1,\n  { g = 2 },\n]\n[h.\"i.j\"]\nk = 1\n";
        let lines = KeyLines::parse(Path::new("x.toml"), text).unwrap();
        let expected = [
            ("a", 1),
            ("b", 2),
            ("b.c.d", 3),
            ("b.missing", 2),
            ("e[0].f", 6),
            ("e[1]", 7),
            ("e[1].f", 8),
            ("e[1].f[0]", 9),
            ("e[1].f[1].g", 10),
            ("e[1].missing", 7),
            ("h.\"i.j\".k", 13),
        ];
        for (key, line) in expected {
            assert_eq!(lines.line(key), Some(line), "{key}");
        }
        assert_eq!(lines.line("missing"), None);
    }

    #[test]
    fn broken_syntax_is_a_problem_with_its_line() {
        let problem = KeyLines::parse(Path::new("x.toml"), "a = 1\nb = = 2\n").unwrap_err();
        assert_eq!(problem.line, Some(2));
        assert!(problem.message.starts_with("this is not TOML"), "{problem}");
    }
}
