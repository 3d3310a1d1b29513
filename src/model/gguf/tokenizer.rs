//! The tokenizer in a GGUF file's metadata, as the tokenizer.json that it was made from.
//!
//! Follows llama.cpp's `llama-bpe`: the byte-level vocabulary and the splitting of Llama 3. Knows no tensors.

use serde_json::{Map, Value, json};

use super::header::Header;
use crate::model::api::ModelError;

const MODEL: &str = "tokenizer.ggml.model";
const SPLITTING: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const START: &str = "tokenizer.ggml.bos_token_id";
const ADDS_START: &str = "tokenizer.ggml.add_bos_token";
/// Ids that end an answer: of a text, of a turn, of a message.
const ENDS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// The spellings of such tokens, because older files name only one id.
const END_SPELLINGS: [&str; 3] = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"];
const SPECIAL: [(&str, &str); 3] = [
    ("bos_token", START),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];
const BESIDE: &str = "put the model's own tokenizer.json beside the file";

/// How Llama 3 splits a text before it merges.
const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
                      \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// The numbers of llama.cpp's token types.
const CONTROL: usize = 3;
const OWN: usize = 4;

/// The content of a tokenizer.json.
pub fn tokenizer_json(header: &Header) -> Result<Vec<u8>, ModelError> {
    let model = header.needed(MODEL, header.text(MODEL))?;
    if model != "gpt2" {
        return Err(header.unsupported(MODEL, model, &format!("gpt2 is; {BESIDE}")));
    }
    let splitting = header.needed(SPLITTING, header.text(SPLITTING))?;
    if !["llama-bpe", "llama3", "llama-v3"].contains(&splitting) {
        return Err(header.unsupported(SPLITTING, splitting, &format!("llama-bpe is; {BESIDE}")));
    }
    let tokens = header.needed(TOKENS, header.texts(TOKENS))?;
    let types = header.numbers(TYPES)?.unwrap_or_default();
    let merges = header.needed(MERGES, header.texts(MERGES))?;
    let pairs = merges.iter().map(|merge| merge.split_once(' ').map(|(left, right)| json!([left, right])));
    let pairs: Vec<Value> = pairs
        .collect::<Option<_>>()
        .ok_or_else(|| header.malformed(MERGES, "holds a merge that is not two tokens with a space between"))?;
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added: Vec<Value> = tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (_, kind))| [CONTROL, OWN].contains(*kind))
        .map(|(id, (token, kind))| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL })
        })
        .collect();
    let whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": LLAMA3 }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": frame(header, &tokens)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                   "vocab": vocabulary, "merges": pairs },
    });
    Ok(serde_json::to_vec(&whole).expect("a JSON value with texts for keys can be written"))
}

/// What is put around a text: the start token, unless the file says otherwise.
fn frame(header: &Header, tokens: &[&str]) -> Result<Value, ModelError> {
    let Some(start) = header.number(START)? else { return Ok(Value::Null) };
    if header.flag(ADDS_START)? == Some(false) {
        return Ok(Value::Null);
    }
    let token = token_at(header, START, start, tokens)?;
    let of = |sequence: &str, kind: usize| json!([{ "SpecialToken": { "id": token, "type_id": kind } }, { "Sequence": { "id": sequence, "type_id": kind } }]);
    let pair = [of("A", 0), of("B", 1)].iter().filter_map(Value::as_array).flatten().cloned().collect::<Vec<_>>();
    Ok(json!({ "type": "TemplateProcessing", "single": of("A", 0), "pair": pair,
               "special_tokens": { token: { "id": token, "ids": [start], "tokens": [token] } } }))
}

/// The ids that end an answer, in order.
pub fn end_tokens(header: &Header) -> Result<Vec<usize>, ModelError> {
    let mut ids = Vec::new();
    for key in ENDS {
        ids.extend(header.number(key)?);
    }
    let tokens = header.texts(TOKENS)?.unwrap_or_default();
    let spelled = tokens.iter().enumerate().filter(|(_, token)| END_SPELLINGS.contains(token));
    ids.extend(spelled.map(|(id, _)| id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The special tokens under the names that chat templates know.
pub fn special_tokens(header: &Header) -> Result<Vec<(&'static str, String)>, ModelError> {
    let tokens = header.texts(TOKENS)?.unwrap_or_default();
    let mut special = Vec::new();
    for (name, key) in SPECIAL {
        if let Some(id) = header.number(key)? {
            special.push((name, token_at(header, key, id, &tokens)?.to_owned()));
        }
    }
    Ok(special)
}

/// How many tokens there are.
pub fn count(header: &Header) -> Result<Option<usize>, ModelError> {
    Ok(header.texts(TOKENS)?.map(|tokens| tokens.len()))
}

fn token_at<'a>(header: &Header, key: &str, id: usize, tokens: &[&'a str]) -> Result<&'a str, ModelError> {
    let found = tokens.get(id).copied();
    found.ok_or_else(|| header.malformed(key, &format!("is {id}, but there are {} tokens", tokens.len())))
}
