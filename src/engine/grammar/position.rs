//! Where in a JSON text a byte stands: how deep, and whether inside of a string or a number.
//!
//! It trusts that the bytes are the beginning of a JSON text whose outermost value is an object; it checks nothing.

/// The state of a reader of JSON after some bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JsonPosition {
    depth: u32,
    in_string: bool,
    escaped: bool,
    last: u8,
}

impl JsonPosition {
    pub fn advance(&mut self, byte: u8) {
        let quote = byte == b'"' && !self.escaped;
        match byte {
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.escaped = self.in_string && byte == b'\\' && !self.escaped;
        self.in_string ^= quote;
        self.last = byte;
    }

    pub fn advance_all(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.advance(*byte));
    }

    /// After the bracket that closes the outermost object.
    pub fn is_complete(&self) -> bool {
        self.depth == 0 && self.last == b'}'
    }

    /// Between the quotes of a string, of a property's name too.
    pub fn in_string(&self) -> bool {
        self.in_string
    }

    /// Whether a quote here would end the string.
    pub fn quote_ends_string(&self) -> bool {
        self.in_string && !self.escaped
    }

    /// After a part of a number; whether it is whole is not known.
    pub fn in_number(&self) -> bool {
        !self.in_string && self.depth > 0 && matches!(self.last, b'0'..=b'9' | b'-' | b'+' | b'.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> JsonPosition {
        let mut position = JsonPosition::default();
        position.advance_all(text.as_bytes());
        position
    }

    #[test]
    fn a_text_is_complete_after_its_last_bracket_alone() {
        let text = r#"{"a{": ["}\"", 1.5, {"b": null}], "c": "\\"}"#;
        for length in 0..=text.len() {
            assert_eq!(after(&text[..length]).is_complete(), length == text.len(), "{}", &text[..length]);
        }
    }

    #[test]
    fn strings_and_numbers_are_told_apart() {
        assert!(after(r#"{"a": "1"#).in_string() && !after(r#"{"a": "1"#).in_number());
        assert!(after(r#"{"a": -1."#).in_number() && !after(r#"{"a": [1]"#).in_number());
        assert!(!after(r#"{"a": "\"#).quote_ends_string() && after(r#"{"a": "\\"#).quote_ends_string());
    }
}
