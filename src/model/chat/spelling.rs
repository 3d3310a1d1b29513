//! What the tokens of a tokenizer spell, in bytes.
//!
//! Two alphabets are known: the one of byte-level tokenizers, in which every byte has a letter of its own, and the one
//! of SentencePiece, in which a mark stands for a space and `<0x0A>` for a byte without a token. The decoder of the
//! tokenizer says which. Knows no model. Invariant: joining the bytes of a text's ids gives the text, but for the space
//! that some tokenizers put before it.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::model::api::TokenSpelling;

/// How the tokens of a model are written in its tokenizer.json.
enum Alphabet {
    /// A letter for each byte.
    ByteLevel(HashMap<char, u8>),
    /// As they are read, but for what stands for a space.
    Letters { space: Option<String>, byte_fallback: bool },
}

/// What each id below `size` spells; an error says what of the tokenizer is not understood.
pub fn spellings(tokenizer: &Tokenizer, size: usize) -> Result<Vec<TokenSpelling>, String> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
    let alphabet = Alphabet::of(&decoder)?;
    let mut tokens = vec![TokenSpelling::Unused; size];
    for (token, id) in tokenizer.get_vocab(false) {
        if let Some(place) = tokens.get_mut(id as usize) {
            *place = TokenSpelling::Bytes(alphabet.bytes(&token)?);
        }
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if let Some(place) = tokens.get_mut(id as usize) {
            *place = match token.special {
                true => TokenSpelling::Special(token.content),
                false => TokenSpelling::Bytes(token.content.into_bytes()),
            };
        }
    }
    Ok(tokens)
}

impl Alphabet {
    /// Reads a decoder as tokenizer.json writes it.
    fn of(decoder: &Value) -> Result<Self, String> {
        let steps = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            Some(_) => vec![decoder.clone()],
            None => Vec::new(),
        };
        if steps.iter().any(|step| step["type"] == "ByteLevel") {
            return Ok(Self::ByteLevel(byte_letters()));
        }
        let space = steps.iter().find_map(|step| match step["type"].as_str() {
            Some("Metaspace") => step["replacement"].as_str(),
            Some("Replace") if step["content"] == " " => step["pattern"]["String"].as_str(),
            _ => None,
        });
        let byte_fallback = steps.iter().any(|step| step["type"] == "ByteFallback");
        match space.is_some() || byte_fallback {
            true => Ok(Self::Letters { space: space.map(str::to_owned), byte_fallback }),
            false => Err(format!("decoder is {decoder}; ByteLevel, Metaspace and ByteFallback are understood")),
        }
    }

    fn bytes(&self, token: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::ByteLevel(letters) => {
                let byte = |letter: char| letters.get(&letter).copied();
                let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
                bytes.ok_or_else(|| format!("token {token:?} has a letter that stands for no byte"))
            }
            Self::Letters { space, byte_fallback } => {
                if *byte_fallback && let Some(byte) = named_byte(token) {
                    return Ok(vec![byte]);
                }
                Ok(match space {
                    Some(space) => token.replace(space.as_str(), " ").into_bytes(),
                    None => token.as_bytes().to_vec(),
                })
            }
        }
    }
}

/// GPT-2's letters: printable Latin-1 stands for itself, the other bytes for the letters from U+0100 on, in order.
fn byte_letters() -> HashMap<char, u8> {
    let mut spare = '\u{100}'..;
    let letter = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => spare.next().unwrap_or_default(),
    };
    (0..=u8::MAX).map(letter).zip(0..=u8::MAX).collect()
}

/// The byte that a token like `<0x0A>` stands for.
fn named_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use serde_json::json;

    use super::*;

    const TEXT: &str = "{\"name\": \"Kännchen, 12 cm\\n\", \"ok\": null} \u{1f375}";

    fn joined(tokenizer: &Tokenizer, text: &str) -> String {
        let spellings = spellings(tokenizer, 100_000).unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        let bytes = ids.get_ids().iter().flat_map(|id| match &spellings[*id as usize] {
            TokenSpelling::Bytes(bytes) => bytes.clone(),
            other => panic!("{other:?} in a text"),
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn the_bytes_of_the_ids_of_a_text_are_the_text() {
        for model in ["llama4-a", "llama3-tied", "qwen3-vl"] {
            let file = format!("{}/tests/data/parity/models/{model}/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
            let tokenizer = Tokenizer::from_file(file).unwrap();
            assert_eq!(joined(&tokenizer, TEXT), TEXT, "{model}");
        }
    }

    #[test]
    fn special_tokens_are_marked_and_ids_without_a_token_are_unused() {
        let file = format!("{}/tests/data/parity/models/qwen3-vl/tokenizer.json", env!("CARGO_MANIFEST_DIR"));
        let spellings = spellings(&Tokenizer::from_file(file).unwrap(), 1000).unwrap();
        assert_eq!(spellings.len(), 1000);
        assert_eq!(spellings[902], TokenSpelling::Special("<|im_end|>".to_owned()));
        assert_eq!(spellings[999], TokenSpelling::Unused);
    }

    #[test]
    fn sentencepiece_marks_are_spaces_and_named_bytes_are_bytes() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]});
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": decoder, "model": {"type": "BPE", "byte_fallback": true, "unk_token": null, "merges": [],
                "vocab": {"▁": 0, "▁cup": 1, "<0x0A>": 2, "a": 3}}});
        let tokenizer = Tokenizer::from_str(&tokenizer.to_string()).unwrap();
        let spelled: Vec<&[u8]> = vec![b" ", b" cup", b"\n", b"a"];
        let expected: Vec<_> = spelled.into_iter().map(|bytes| TokenSpelling::Bytes(bytes.to_vec())).collect();
        assert_eq!(spellings(&tokenizer, 4).unwrap(), expected);
    }

    #[test]
    fn a_decoder_that_is_not_understood_is_named() {
        let refusal = Alphabet::of(&json!({"type": "WordPiece", "prefix": "##"})).err().unwrap();
        assert!(refusal.contains("WordPiece"), "{refusal}");
    }
}
