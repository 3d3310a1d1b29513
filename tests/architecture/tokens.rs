//! Rust text as tokens with their lines: enough to see paths, attributes and items, without comments.
//!
//! It knows no grammar. Invariant: nothing inside a comment or a literal is ever a word or a symbol.

use std::iter::repeat_n;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Word,
    /// One character, or `::`.
    Symbol,
    /// A string, a character or a number; of a string the text between the quotes.
    Literal,
}

#[derive(Debug, Clone)]
pub struct Token {
    pub kind: Kind,
    pub text: String,
    /// From 1.
    pub line: usize,
    /// Whether it belongs to an item under `#[cfg(test)]`.
    pub test: bool,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.kind != Kind::Literal && self.text == text
    }
}

/// All tokens of a file, none of them marked as test.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader { characters: text.chars().collect(), at: 0, line: 1, tokens: Vec::new() };
    while reader.at < reader.characters.len() {
        reader.step();
    }
    reader.tokens
}

/// The place after the bracket that closes the one at `open`.
pub fn after_closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (place, token) in tokens.iter().enumerate().skip(open) {
        if ["(", "[", "{"].iter().any(|bracket| token.is(bracket)) {
            depth += 1;
        } else if [")", "]", "}"].iter().any(|bracket| token.is(bracket)) {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return place + 1;
            }
        }
    }
    tokens.len()
}

struct Reader {
    characters: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.characters.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, character)| self.peek(ahead) == character)
    }

    fn advance(&mut self, count: usize) {
        let end = (self.at + count).min(self.characters.len());
        self.line += self.characters[self.at..end].iter().filter(|character| **character == '\n').count();
        self.at = end;
    }

    fn push(&mut self, kind: Kind, from: usize, line: usize) {
        let text = self.characters[from..self.at].iter().collect();
        self.tokens.push(Token { kind, text, line, test: false });
    }

    fn step(&mut self) {
        let (from, line, next) = (self.at, self.line, self.peek(0));
        if next.is_whitespace() {
            self.advance(1);
        } else if self.starts_with("//") {
            while self.at < self.characters.len() && self.peek(0) != '\n' {
                self.advance(1);
            }
        } else if self.starts_with("/*") {
            self.block_comment();
        } else if next == '"' {
            self.text();
        } else if next == '\'' {
            self.quote();
        } else if next.is_ascii_digit() {
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' || self.at_decimal_point() {
                self.advance(1);
            }
            self.push(Kind::Literal, from, line);
        } else if next.is_alphabetic() || next == '_' {
            self.word();
        } else {
            self.advance(if self.starts_with("::") { 2 } else { 1 });
            self.push(Kind::Symbol, from, line);
        }
    }

    fn at_decimal_point(&self) -> bool {
        self.peek(0) == '.' && self.peek(1).is_ascii_digit()
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.characters.len() {
            if self.starts_with("/*") {
                depth += 1;
                self.advance(2);
            } else if self.starts_with("*/") {
                depth -= 1;
                self.advance(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.advance(1);
            }
        }
    }

    fn word(&mut self) {
        let (from, line) = (self.at, self.line);
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.advance(1);
        }
        let word: String = self.characters[from..self.at].iter().collect();
        let hashes = (0..).take_while(|ahead| self.peek(*ahead) == '#').count();
        match word.as_str() {
            "r" | "br" | "cr" if self.peek(hashes) == '"' => self.raw_text(hashes),
            "b" | "c" if self.peek(0) == '"' => self.text(),
            "b" if self.peek(0) == '\'' => self.quote(),
            // A raw identifier: the word itself follows.
            "r" if hashes == 1 => self.advance(1),
            _ => self.push(Kind::Word, from, line),
        }
    }

    fn raw_text(&mut self, hashes: usize) {
        let line = self.line;
        self.advance(hashes + 1);
        let from = self.at;
        let end: String = ['"'].into_iter().chain(repeat_n('#', hashes)).collect();
        while self.at < self.characters.len() && !self.starts_with(&end) {
            self.advance(1);
        }
        self.push(Kind::Literal, from, line);
        self.advance(hashes + 1);
    }

    fn text(&mut self) {
        let line = self.line;
        self.advance(1);
        let from = self.at;
        while self.at < self.characters.len() && self.peek(0) != '"' {
            self.advance(if self.peek(0) == '\\' { 2 } else { 1 });
        }
        self.push(Kind::Literal, from, line);
        self.advance(1);
    }

    /// A character, or the tick of a lifetime, which is dropped.
    fn quote(&mut self) {
        let line = self.line;
        if self.peek(1) != '\\' && self.peek(2) != '\'' {
            self.advance(1);
            while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                self.advance(1);
            }
            return;
        }
        self.advance(1);
        let from = self.at;
        self.advance(if self.peek(0) == '\\' { 2 } else { 1 });
        while self.at < self.characters.len() && self.peek(0) != '\'' {
            self.advance(1);
        }
        self.push(Kind::Literal, from, line);
        self.advance(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).into_iter().filter(|token| token.kind == Kind::Word).map(|token| token.text).collect()
    }

    #[test]
    fn comments_are_not_read_even_when_they_nest() {
        assert_eq!(words("a // crate::b\n/// c\n/* d /* e */ f */ g"), ["a", "g"]);
    }

    #[test]
    fn strings_are_literals_however_they_are_written() {
        assert_eq!(words(r####"a "b \" c" r"d" r#"e " f"# br##"g "# h"## b"i" c"j" k"####), ["a", "k"]);
    }

    #[test]
    fn characters_are_literals_and_lifetimes_are_nothing() {
        assert_eq!(
            words(r"a '\'' '{' '\u{1F}' b'\\' b'x' fn f<'c>(d: &'c str, e: &'_ str) '//' "),
            ["a", "fn", "f", "d", "str", "e", "str"]
        );
    }

    #[test]
    fn a_raw_identifier_is_the_word_itself() {
        assert_eq!(words("use r#type::x;"), ["use", "type", "x"]);
    }

    #[test]
    fn lines_are_counted_through_literals_and_comments() {
        let text = "\"a\n\nb\" c\n/*\n*/ d r#\"\n\"# e";
        let lines: Vec<_> = tokens(text).into_iter().map(|token| (token.text, token.line)).collect();
        let words: Vec<_> = lines.iter().filter(|(text, _)| text.len() == 1 && text != "\n").cloned().collect();
        assert_eq!(words, [("c".to_owned(), 3), ("d".to_owned(), 5), ("e".to_owned(), 6)]);
    }
}
