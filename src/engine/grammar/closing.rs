//! The way out: bytes that complete an answer from where it stands.
//!
//! Outside of strings and numbers the first bracket, value or separator that the grammar allows is taken, in an order
//! that closes soon. Inside, the states of the lexer are searched depth first, each once, so every pattern that can end
//! is ended. Knows no tokens and no budget. Invariant: the grammar allows what is found, and it ends the outermost
//! object.

use std::collections::HashSet;

use llguidance::earley::{Parser, ParserRecognizer};
use llguidance::toktrie::Recognizer;

use super::position::JsonPosition;

/// Closing brackets first, then the shortest values, then what leads to a value. Null comes before a made-up text.
const STRUCTURE: &[u8] = b"}]n\"0123456789-[{ft,: ulreas";
/// What follows a number.
const AFTER_NUMBER: &[u8] = b"}],";
/// Digits first that soon leave a forbidden zero behind.
const NUMBER: &[u8] = b"1234567890.-";
/// A closing that takes more bytes is none.
const MOST_BYTES: usize = 1 << 16;
/// Bytes that the search may try before it gives up.
const MOST_TRIES: usize = 1 << 20;

/// Bytes that complete the answer when `next` follows what was committed; none when `next` is not allowed or no way out
/// is found. `position` is where the committed bytes end.
pub fn closing(parser: &mut Parser, mut position: JsonPosition, next: &[u8]) -> Option<Vec<u8>> {
    // The parser already stands behind the bytes that it has found to be forced.
    let forced = parser.currently_forced_bytes().to_vec();
    let shared = forced.len().min(next.len());
    if forced[..shared] != next[..shared] {
        return None;
    }
    position.advance_all(next);
    let mut found = forced[shared..].to_vec();
    position.advance_all(&found);
    parser.with_recognizer(|recognizer| {
        recognizer.trie_started("closing");
        let allowed = next[shared..].iter().all(|byte| recognizer.try_push_byte(*byte));
        let mut search = Search { recognizer: &mut *recognizer, position, found: Vec::new(), tries: 0 };
        let closed = allowed && search.close();
        let added = search.found;
        recognizer.trie_finished();
        found.extend(added);
        closed.then_some(found)
    })
}

struct Search<'a, 'p> {
    recognizer: &'a mut ParserRecognizer<'p>,
    position: JsonPosition,
    found: Vec<u8>,
    tries: usize,
}

impl Search<'_, '_> {
    fn close(&mut self) -> bool {
        while !self.position.is_complete() {
            let moved = if self.position.in_string() {
                self.finish_string()
            } else if self.position.in_number() {
                self.finish_number() && AFTER_NUMBER.iter().any(|byte| self.push(*byte))
            } else {
                STRUCTURE.iter().any(|byte| self.push(*byte))
            };
            if !moved || self.found.len() > MOST_BYTES {
                return false;
            }
        }
        true
    }

    /// Up to and with the quote.
    fn finish_string(&mut self) -> bool {
        self.descend(&string_bytes, |search| search.position.quote_ends_string() && search.push(b'"'))
    }

    /// Up to where something else may follow.
    fn finish_number(&mut self) -> bool {
        let whole = |search: &mut Self| AFTER_NUMBER.iter().any(|byte| search.allows(*byte));
        self.descend(&|| NUMBER.iter().copied(), whole)
    }

    /// Depth-first search for a state in which `done` says true. The lexer's state is all that counts within a string
    /// or a number, so no state needs a second visit, and a loop of a pattern is not followed twice.
    fn descend<I>(&mut self, bytes: &dyn Fn() -> I, mut done: impl FnMut(&mut Self) -> bool) -> bool
    where
        I: Iterator<Item = u8>,
    {
        let mut seen = HashSet::from([self.recognizer.lexer_state()]);
        let mut open = Vec::from([(self.position, bytes())]);
        loop {
            if done(self) {
                return true;
            }
            let deeper = loop {
                let Some((before, left)) = open.last_mut() else { return false };
                let before = *before;
                let Some(byte) = left.next() else {
                    open.pop();
                    let Some((before, _)) = open.last() else { return false };
                    self.pop(*before);
                    continue;
                };
                if byte == b'"' && before.quote_ends_string() {
                    continue;
                }
                if self.push(byte) {
                    if self.found.len() < MOST_BYTES && seen.insert(self.recognizer.lexer_state()) {
                        break (self.position, bytes());
                    }
                    self.pop(before);
                }
                if self.tries > MOST_TRIES {
                    return false;
                }
            };
            open.push(deeper);
        }
    }

    fn push(&mut self, byte: u8) -> bool {
        self.tries += 1;
        let pushed = self.recognizer.try_push_byte(byte);
        if pushed {
            self.position.advance(byte);
            self.found.push(byte);
        }
        pushed
    }

    fn allows(&mut self, byte: u8) -> bool {
        self.tries += 1;
        self.recognizer.byte_allowed(byte)
    }

    fn pop(&mut self, before: JsonPosition) {
        self.recognizer.pop_bytes(1);
        self.found.pop();
        self.position = before;
    }
}

/// Dots first, so that what fills a string up to a least length looks like what it is; escapes last.
fn string_bytes() -> impl Iterator<Item = u8> {
    let plain = (b' '..=b'~').filter(|byte| !matches!(byte, b'.' | b'\\'));
    [b'.'].into_iter().chain(plain).chain(0x80..=0xf4).chain([b'\\'])
}
