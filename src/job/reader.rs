//! Reads the keys of one TOML section and collects every complaint on the way.
//!
//! It knows TOML types and units and nothing of jobs. Invariant: after [`Section::finish`] every key of the section was
//! either asked for or complained about.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use toml_edit::{ImDocument, Item, TableLike, Value};

use super::key_lines::{KeyLines, join_key, parse_document};
use super::problem::Problem;
use super::suggestion::did_you_mean;

/// A parsed file and what was found wrong with it so far.
pub(super) struct Reader {
    file: PathBuf,
    document: ImDocument<String>,
    lines: KeyLines,
    problems: RefCell<Vec<Problem>>,
}

impl Reader {
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, Problem> {
        let document = parse_document(file, text)?;
        let lines = KeyLines::of(&document);
        Ok(Self { file: file.to_owned(), document, lines, problems: RefCell::default() })
    }

    pub(super) fn root(&self) -> Section<'_> {
        Section { reader: self, path: String::new(), table: self.document.as_table(), known: Vec::new() }
    }

    /// Complains about a key by its whole path.
    pub(super) fn complain(&self, key: &str, message: impl Into<String>) {
        let (key, line) = (key.to_owned(), self.lines.line(key));
        self.problems.borrow_mut().push(Problem { file: self.file.clone(), line, key, message: message.into() });
    }

    pub(super) fn add(&self, problems: impl IntoIterator<Item = Problem>) {
        self.problems.borrow_mut().extend(problems);
    }

    /// The complaints in the order of the file, and the lines of its keys.
    pub(super) fn finish(self) -> (Vec<Problem>, KeyLines) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        (problems, self.lines)
    }
}

/// One section of the file.
pub(super) struct Section<'a> {
    reader: &'a Reader,
    path: String,
    table: &'a dyn TableLike,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole path of a key of this section.
    pub(super) fn key(&self, name: &str) -> String {
        join_key(&self.path, name)
    }

    pub(super) fn complain(&self, name: &str, message: impl Into<String>) {
        self.reader.complain(&self.key(name), message);
    }

    /// Complains about an element inside this section by its path from here, such as `topics[1]`.
    pub(super) fn complain_at(&self, inner: &str, message: impl Into<String>) {
        let separator = if self.path.is_empty() { "" } else { "." };
        self.reader.complain(&format!("{}{separator}{inner}", self.path), message);
    }

    /// Complains only when the key is not there at all; a wrong value has had its own complaint.
    pub(super) fn complain_if_absent(&self, name: &str, message: &str) {
        if !self.table.contains_key(name) {
            self.complain(name, message);
        }
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.value(name, "a text in quotes", Item::as_str)
    }

    /// Complains when the key is missing; `example` shows how to write it.
    pub(super) fn required_text(&mut self, name: &'static str, example: &str) -> Option<&'a str> {
        self.complain_if_absent(name, &format!("is missing; add it, for example {name} = {example:?}"));
        self.text(name)
    }

    pub(super) fn texts(&mut self, name: &'static str) -> Option<Vec<&'a str>> {
        self.value(name, "a list of texts in quotes", |item| item.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&mut self, name: &'static str, most: u64) -> Option<u64> {
        let number = self.value(name, "a whole number", Item::as_integer)?;
        let fits = u64::try_from(number).ok().filter(|number| (1..=most).contains(number));
        if fits.is_none() {
            self.complain(name, format!("is {number}; it must be from 1 to {most}"));
        }
        fits
    }

    /// A number within `range`, both ends included.
    pub(super) fn number(&mut self, name: &'static str, (least, most): (f64, f64)) -> Option<f64> {
        let number =
            self.value(name, "a number", |item| item.as_float().or_else(|| Some(item.as_integer()? as f64)))?;
        let fits = (least..=most).contains(&number);
        if !fits {
            self.complain(name, format!("is {number}; it must be from {least} to {most}"));
        }
        fits.then_some(number)
    }

    /// At least one byte.
    pub(super) fn bytes(&mut self, name: &'static str) -> Option<u64> {
        let text = self.value(name, "a size in quotes such as \"16MiB\"", Item::as_str)?;
        let size = text.parse::<ByteSize>().ok().filter(|size| size.as_u64() > 0);
        if size.is_none() {
            self.complain(name, format!("is {text:?}; it must be a size above zero such as \"16MiB\""));
        }
        size.map(|size| size.as_u64())
    }

    /// At least one millisecond.
    pub(super) fn duration(&mut self, name: &'static str) -> Option<Duration> {
        let text = self.value(name, "a duration in quotes such as \"60s\"", Item::as_str)?;
        let duration = humantime::parse_duration(text).ok().filter(|duration| duration.as_millis() > 0);
        if duration.is_none() {
            self.complain(name, format!("is {text:?}; it must be a duration above zero such as \"60s\""));
        }
        duration
    }

    /// A section inside this one: `[name]`.
    pub(super) fn section(&mut self, name: &'static str) -> Option<Section<'a>> {
        let table = self.value(name, &format!("a section, written [{name}]"), Item::as_table_like)?;
        Some(self.inner(self.key(name), table))
    }

    /// All sections `[[name]]`.
    pub(super) fn sections(&mut self, name: &'static str) -> Vec<Section<'a>> {
        let tables = self.value(name, &format!("a list of sections, each written [[{name}]]"), |item| match item {
            Item::ArrayOfTables(tables) => Some(tables.iter().map(|table| table as &dyn TableLike).collect()),
            Item::Value(Value::Array(array)) => {
                array.iter().map(|value| value.as_inline_table().map(|table| table as &dyn TableLike)).collect()
            }
            _ => None,
        });
        let tables: Vec<&dyn TableLike> = tables.unwrap_or_default();
        let path = self.key(name);
        tables.into_iter().enumerate().map(|(index, table)| self.inner(format!("{path}[{index}]"), table)).collect()
    }

    /// Complains about every key that nobody asked for.
    pub(super) fn finish(self) {
        for (name, _) in self.table.iter().filter(|(name, _)| !self.known.contains(name)) {
            let help = did_you_mean(name, self.known.iter().copied());
            self.complain(name, format!("is not a key that is known here; {help}"));
        }
    }

    fn inner(&self, path: String, table: &'a dyn TableLike) -> Section<'a> {
        Section { reader: self.reader, path, table, known: Vec::new() }
    }

    fn value<T>(&mut self, name: &'static str, wanted: &str, read: impl FnOnce(&'a Item) -> Option<T>) -> Option<T> {
        self.known.push(name);
        let item = self.table.get(name)?;
        let value = read(item);
        if value.is_none() {
            self.complain(name, format!("is of type {}; it must be {wanted}", item.type_name()));
        }
        value
    }
}
