//! A tokenizer for models with random weights: byte-level BPE, trained on the jobs that ship.
//!
//! Its tokens are as long as those of a real one on such texts, so counts of tokens mean something. The same every time.

use anyhow::Result;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Special tokens, with the ids that follow those of the text.
pub const SPECIALS: [&str; 12] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eot|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
];

/// Most tokens of the text.
const TEXT_TOKENS: usize = 4096;

const TEXTS: [&str; 6] = [
    include_str!("../../jobs/product-annotation.toml"),
    include_str!("../../jobs/product-annotation.output.json"),
    include_str!("../../jobs/ad-annotation.toml"),
    include_str!("../../jobs/ad-annotation.output.json"),
    include_str!("../../jobs/ad-copy.toml"),
    include_str!("../../jobs/catalogue-mlperf.toml"),
];

/// The chat format of Llama 4.
const TEMPLATE: &str = "{{- bos_token -}}\
    {%- for message in messages -%}\
    {{- '<|header_start|>' ~ message['role'] ~ '<|header_end|>\\n\\n' -}}\
    {%- if message['content'] is string -%}{{- message['content'] -}}\
    {%- else -%}{%- for part in message['content'] -%}\
    {%- if part['type'] == 'image' -%}{{- '<|image|>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}\
    {%- endfor -%}{%- endif -%}{{- '<|eot|>' -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|header_start|>assistant<|header_end|>\\n\\n' -}}{%- endif -%}";

/// Files of a tokenizer, and the ids of [`SPECIALS`].
pub struct RandomTokenizer {
    /// Name and content.
    pub files: [(&'static str, String); 2],
    pub specials: [u32; SPECIALS.len()],
}

impl RandomTokenizer {
    pub fn train() -> Result<Self> {
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        let trainer = BpeTrainerBuilder::new()
            .vocab_size(TEXT_TOKENS)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut trainer = TrainerWrapper::BpeTrainer(trainer);
        tokenizer.train(&mut trainer, TEXTS.iter()).map_err(anyhow::Error::from_boxed)?;
        let specials: Vec<AddedToken> = SPECIALS.iter().map(|token| AddedToken::from(*token, true)).collect();
        tokenizer.add_special_tokens(specials).map_err(anyhow::Error::from_boxed)?;
        let ids = SPECIALS.map(|token| tokenizer.token_to_id(token).unwrap_or_default());
        let settings: Value = json!({
            "bos_token": SPECIALS[0], "eos_token": SPECIALS[4], "pad_token": SPECIALS[5], "chat_template": TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
        });
        let tokenizer = tokenizer.to_string(false).map_err(anyhow::Error::from_boxed)?;
        Ok(Self {
            files: [("tokenizer.json", tokenizer), ("tokenizer_config.json", settings.to_string())],
            specials: ids,
        })
    }
}
