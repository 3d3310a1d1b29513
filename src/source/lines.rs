//! One JSON-lines file as one partition: the offset of a record is the index of its line.
//!
//! This file reads and interprets lines; it knows nothing of epochs, channels or tasks. Invariant: a line that was
//! given out once is never given out with other bytes, so a last line without a newline counts only when it is a whole
//! JSON object (which no later byte can extend to another one); any other waits for its newline.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::api::SourceError;

/// The longest line that is read, in bytes.
pub const MAXIMUM_LINE: usize = 16 << 20;

/// How much one chunk holds at least before it is given out, in bytes and in lines.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_LINES: usize = 512;

/// A place between two lines of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Bytes before it.
    pub byte: u64,
    /// Lines before it; the offset of the next record.
    pub line: u64,
    /// The line before it had no newline yet when it was read.
    open: bool,
}

/// Lines read at once.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Index and bytes of each line that is not blank, without its line ending.
    pub lines: Vec<(u64, Vec<u8>)>,
    /// The place behind the last line read.
    pub next: Place,
    /// Nothing more can be read for now.
    pub end: bool,
}

/// What a line says.
#[derive(Debug, PartialEq)]
pub struct Message {
    pub key: Option<String>,
    /// Microseconds since the Unix epoch.
    pub time: Option<i64>,
    pub headers: Vec<(String, Option<String>)>,
    /// None for a tombstone.
    pub payload: Option<Arc<[u8]>>,
}

/// Reads some lines from `place` on; blocking.
pub fn read_chunk(path: &Path, place: Place) -> Result<Chunk, SourceError> {
    let mut chunk = Chunk { next: place, ..Chunk::default() };
    let mut bytes = 0;
    let end = walk(path, place, &mut |next, line| {
        chunk.next = next;
        bytes += line.len();
        if !line.trim_ascii().is_empty() {
            chunk.lines.push((next.line - 1, line.to_vec()));
        }
        bytes < CHUNK_BYTES && chunk.lines.len() < CHUNK_LINES
    })?;
    chunk.end = end.is_some();
    // A newline that closes an open line moves the place without giving out a line.
    chunk.next = end.unwrap_or(chunk.next);
    Ok(chunk)
}

/// The place before the line with index `line`; blocking. A file with fewer lines is an error.
pub fn find_line(path: &Path, line: u64) -> Result<Place, SourceError> {
    let mut found = Place::default();
    if line > 0 {
        walk(path, Place::default(), &mut |next, _| {
            found = next;
            next.line < line
        })?;
    }
    if found.line < line {
        return Err(broken(
            path,
            found.line,
            format!(
                "the tables already hold lines up to {line}, but the file has only {}: was it replaced?",
                found.line
            ),
        ));
    }
    Ok(found)
}

/// How many lines the file has now; blocking.
pub fn count_lines(path: &Path) -> Result<u64, SourceError> {
    let mut count = 0;
    walk(path, Place::default(), &mut |next, _| {
        count = next.line;
        true
    })?;
    Ok(count)
}

/// The file's size in bytes; blocking.
pub fn size(path: &Path) -> Result<u64, SourceError> {
    std::fs::metadata(path).map(|data| data.len()).map_err(|error| broken(path, 0, format!("cannot be read: {error}")))
}

/// The files of a topic in the order of their partitions: the file itself, or `0.jsonl`, `1.jsonl`, ... of a folder.
pub fn partitions(topic: &str, path: &Path) -> Result<Vec<PathBuf>, SourceError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let files: Vec<_> =
        (0..).map(|index: u32| path.join(format!("{index}.jsonl"))).take_while(|file| file.is_file()).collect();
    if files.is_empty() {
        return Err(SourceError::Topic {
            topic: topic.to_owned(),
            detail: format!("{} is neither a JSON-lines file nor a folder that holds 0.jsonl", path.display()),
        });
    }
    let stray = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).find(|file| {
        let number = file.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<usize>().ok());
        file.extension().is_some_and(|extension| extension == "jsonl") && number.is_some_and(|n| n >= files.len())
    });
    match stray {
        Some(file) => Err(SourceError::Topic {
            topic: topic.to_owned(),
            detail: format!("{} exists, but {}.jsonl before it is missing", file.display(), files.len()),
        }),
        None => Ok(files),
    }
}

/// Interprets a line. It is an envelope when it is an object with `value` and no keys but key, value, headers and
/// timestamp of the right kinds; anything else, valid JSON or not, is the payload itself.
pub fn interpret(line: &[u8]) -> Message {
    if let Some(message) = envelope(line) {
        return message;
    }
    let key = serde_json::from_slice::<Identified>(line).ok().and_then(|object| object.id);
    Message { key, time: None, headers: Vec::new(), payload: Some(line.into()) }
}

/// Calls `each` with every line and the place behind it until it returns false (then None) or until nothing more can
/// be read (then the place reached).
fn walk(
    path: &Path,
    mut place: Place,
    each: &mut dyn FnMut(Place, &[u8]) -> bool,
) -> Result<Option<Place>, SourceError> {
    let unreadable = |error: std::io::Error| broken(path, place.line, format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    if length < place.byte {
        return Err(broken(path, place.line, "the file became shorter while it was read".to_owned()));
    }
    file.seek(SeekFrom::Start(place.byte)).map_err(unreadable)?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAXIMUM_LINE as u64 + 3).read_until(b'\n', &mut line);
        let read = read.map_err(|error| broken(path, place.line, format!("cannot be read: {error}")))? as u64;
        let closed = line.last() == Some(&b'\n');
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.len() > MAXIMUM_LINE {
            return Err(broken(path, place.line, format!("the line is longer than {MAXIMUM_LINE} bytes")));
        }
        if place.open {
            if !closed {
                // A lone carriage return may be half of a line ending that is still being written.
                return if text.is_empty() { Ok(Some(place)) } else { Err(extended(path, place)) };
            }
            if !text.is_empty() {
                return Err(extended(path, place));
            }
            place = Place { byte: place.byte + read, line: place.line, open: false };
            continue;
        }
        if !closed && !is_whole_object(text) {
            return Ok(Some(place));
        }
        place = Place { byte: place.byte + text_end(read, text, closed), line: place.line + 1, open: !closed };
        if !each(place, text) {
            return Ok(None);
        }
    }
}

/// An open line ends with its text: a carriage return behind it belongs to the line ending that is still to come.
fn text_end(read: u64, text: &[u8], closed: bool) -> u64 {
    if closed { read } else { text.len() as u64 }
}

fn extended(path: &Path, place: Place) -> SourceError {
    broken(
        path,
        place.line.saturating_sub(1),
        "the line was extended after it had been read; append whole lines".into(),
    )
}

fn is_whole_object(text: &[u8]) -> bool {
    text.trim_ascii_start().first() == Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

fn broken(path: &Path, line: u64, detail: String) -> SourceError {
    SourceError::Replay { file: path.display().to_string(), line: line + 1, detail }
}

#[derive(Deserialize)]
struct Identified {
    #[serde(default, deserialize_with = "text_or_none")]
    id: Option<String>,
}

fn text_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text),
        _ => None,
    })
}

fn envelope(line: &[u8]) -> Option<Message> {
    // Most lines are plain messages; this spares them a second parse.
    line.windows(7).any(|window| window == b"\"value\"").then_some(())?;
    let Ok(Value::Object(mut object)) = serde_json::from_slice::<Value>(line) else { return None };
    let value = object.remove("value")?;
    let key = object.remove("key").unwrap_or_default();
    let headers = object.remove("headers").unwrap_or_default();
    let timestamp = object.remove("timestamp").unwrap_or_default();
    if !object.is_empty() {
        return None;
    }
    let headers = match headers {
        Value::Null => Vec::new(),
        Value::Object(headers) => headers.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        _ => return None,
    };
    let time = match timestamp {
        Value::Null => None,
        other => Some(other.as_i64()?.saturating_mul(1000)),
    };
    let key = plain(key).or_else(|| value.get("id").and_then(Value::as_str).map(str::to_owned));
    let payload = plain(value).map(|text| text.into_bytes().into());
    Some(Message { key, time, headers, payload })
}

/// The text of a string, the JSON of anything else, none for null.
fn plain(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    #[test]
    fn a_plain_line_is_the_message_and_its_id_the_key() {
        let message = interpret(br#"{"title":"a","id":"p1"}"#);
        assert_eq!(message.key.as_deref(), Some("p1"));
        assert_eq!(message.payload.as_deref(), Some(br#"{"title":"a","id":"p1"}"#.as_slice()));
    }

    #[test]
    fn an_envelope_carries_key_headers_time_and_tombstone() {
        let message = interpret(br#"{"key":"k","value":null,"headers":{"a":"b","n":null},"timestamp":5}"#);
        assert_eq!(
            message,
            Message {
                key: Some("k".into()),
                time: Some(5000),
                headers: vec![("a".into(), Some("b".into())), ("n".into(), None)],
                payload: None,
            }
        );
        let message = interpret(br#"{"value":{"id":"x","title":"t"}}"#);
        assert_eq!(message.key.as_deref(), Some("x"));
        assert_eq!(message.payload.as_deref(), Some(br#"{"id":"x","title":"t"}"#.as_slice()));
    }

    #[test]
    fn what_is_no_envelope_is_delivered_as_it_is() {
        for line in [
            br#"{"value":1,"other":2}"#.as_slice(),
            br#"{"value":1,"timestamp":"noon"}"#,
            br#"{"value":1,"headers":[]}"#,
            b"not \"value\" json",
            b"\xff\xfe",
        ] {
            assert_eq!(interpret(line).payload.as_deref(), Some(line));
        }
    }

    #[test]
    fn blank_lines_count_but_are_not_given_out() {
        let file = file(b"a\n\n  \r\nb\r\n");
        let chunk = read_chunk(file.path(), Place::default()).unwrap();
        assert_eq!(chunk.lines, [(0, b"a".to_vec()), (3, b"b".to_vec())]);
        assert!(chunk.end);
        assert_eq!(count_lines(file.path()).unwrap(), 4);
        assert_eq!(find_line(file.path(), 3).unwrap().line, 3);
    }

    #[test]
    fn an_unfinished_last_line_waits_unless_it_is_a_whole_object() {
        let mut file = file(b"{\"id\":1}\n{\"id\":");
        let chunk = read_chunk(file.path(), Place::default()).unwrap();
        assert_eq!((chunk.lines.len(), chunk.next.line), (1, 1));
        file.write_all(b"2}").unwrap();
        let chunk = read_chunk(file.path(), chunk.next).unwrap();
        assert_eq!(chunk.lines, [(1, b"{\"id\":2}".to_vec())]);
        assert_eq!(count_lines(file.path()).unwrap(), 2);
        file.write_all(b"\r\n{}\n").unwrap();
        let chunk = read_chunk(file.path(), chunk.next).unwrap();
        assert_eq!(chunk.lines, [(2, b"{}".to_vec())]);
    }

    #[test]
    fn a_line_that_grows_after_it_was_read_is_an_error() {
        let mut file = file(b"{}");
        let chunk = read_chunk(file.path(), Place::default()).unwrap();
        file.write_all(b"{}\n").unwrap();
        let error = read_chunk(file.path(), chunk.next).unwrap_err();
        assert!(error.to_string().contains("line 1: the line was extended"), "{error}");
    }

    #[test]
    fn a_line_over_the_limit_names_file_and_line() {
        let mut text = b"a\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', MAXIMUM_LINE + 1));
        let file = file(&text);
        let error = read_chunk(file.path(), Place::default()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(file.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_file_shorter_than_what_the_tables_hold_is_an_error() {
        let file = file(b"a\nb\n");
        assert_eq!(find_line(file.path(), 2).unwrap().line, 2);
        assert!(find_line(file.path(), 3).unwrap_err().to_string().contains("was it replaced?"));
    }

    #[test]
    fn a_folder_with_a_missing_partition_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.jsonl"), "").unwrap();
        std::fs::write(folder.path().join("2.jsonl"), "").unwrap();
        assert!(partitions("t", folder.path()).unwrap_err().to_string().contains("1.jsonl"));
        std::fs::write(folder.path().join("1.jsonl"), "").unwrap();
        assert_eq!(partitions("t", folder.path()).unwrap().len(), 3);
    }
}
