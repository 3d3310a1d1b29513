//! Llama 3 and its likes from a GGUF file: general.architecture = llama.
//!
//! llama.cpp stores the rows of queries and keys in another order, in which the components that are rotated together
//! are neighbours; so they are rotated as neighbours, and no row is moved. Invariant: a key that changes what the model
//! computes is honoured or refused.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::header::Header;
use super::tokenizer::{count, end_tokens, special_tokens, tokenizer_json};
use crate::model::api::ModelError;
use crate::model::chat::{ChatTemplate, ChatTokenizer, Vocabulary};
use crate::model::decoder::{Biases, Decoder, DecoderGenerator, DecoderOptions, FamilyDefaults, TextSection};
use crate::model::family::Parts;
use crate::model::layers::Pairing;
use crate::model::tokenizer::{TOKENIZER, TOKENIZER_CONFIG};
use crate::model::weights::{Metadata, Weights};

const ARCHITECTURE: &str = "general.architecture";
const TEMPLATE: &str = "tokenizer.chat_template";
const FREQUENCIES: &str = "rope_freqs.weight";
/// Files beside that say more than the metadata.
const BESIDE: [&str; 5] =
    [TOKENIZER, TOKENIZER_CONFIG, "generation_config.json", "chat_template.jinja", "chat_template.json"];

const DEFAULTS: FamilyDefaults =
    FamilyDefaults { rope_theta: 10_000.0, epsilon: 1e-5, context: 2048, pairing: Pairing::Adjacent };

/// Loads the model in `file`, whose tensors are `weights`. Its name, and its parts.
pub fn load(file: &Path, metadata: Metadata, weights: &Weights) -> Result<(String, Parts), ModelError> {
    let header = Header::new(file, metadata);
    let architecture = header.needed(ARCHITECTURE, header.text(ARCHITECTURE))?.to_owned();
    if architecture != "llama" {
        let advice = "of GGUF files only llama (Llama 3 and its likes) is; load others from a Hugging Face directory";
        return Err(header.unsupported(ARCHITECTURE, &architecture, advice));
    }
    let options = options(&header, weights)?;
    let directory = file.parent().unwrap_or(Path::new(""));
    let processor = ChatTokenizer::with_template(
        directory,
        template(&header, directory)?,
        vocabulary(&header, directory, options.vocabulary)?,
        &options.end_tokens,
    );
    let root = weights.root();
    let decoder = Decoder::load(&root.at("model"), &root.at("lm_head"), options)?;
    let beside = BESIDE.iter().map(|name| directory.join(name)).filter(|path| path.is_file());
    let settings: Vec<PathBuf> = beside.collect();
    Ok((architecture, Parts { settings, ..Parts::writing(processor, DecoderGenerator::new(decoder, None)) }))
}

/// A tokenizer.json beside the file wins: it has all that the metadata has only in part.
fn vocabulary(header: &Header, directory: &Path, size: usize) -> Result<Vocabulary, ModelError> {
    match directory.join(TOKENIZER).is_file() {
        true => Vocabulary::load(directory, size),
        false => Vocabulary::parse(header.file().to_owned(), &tokenizer_json(header)?, size),
    }
}

/// The file's own template, else one beside it.
fn template(header: &Header, directory: &Path) -> Result<Option<ChatTemplate>, ModelError> {
    match header.text(TEMPLATE)? {
        Some(source) => ChatTemplate::new(header.file(), source, special_tokens(header)?).map(Some),
        None => ChatTemplate::load(directory),
    }
}

fn options(header: &Header, weights: &Weights) -> Result<DecoderOptions, ModelError> {
    refuse_unknown(header)?;
    let number = |key: &str| header.needed(key, header.number(key));
    let (hidden, heads) = (number("llama.embedding_length")?, number("llama.attention.head_count")?);
    let head_dim = header.number("llama.attention.key_length")?.unwrap_or(hidden / heads.max(1));
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(other) = header.number(key)?.filter(|other| *other != head_dim) {
            return Err(header.unsupported(key, other, &format!("only {head_dim}, the length of a head, is")));
        }
    }
    let vocabulary = match header.number("llama.vocab_size")? {
        Some(size) => size,
        None => header.needed("tokenizer.ggml.tokens", count(header))?,
    };
    let section = json!({
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": header.number("llama.attention.head_count_kv")?,
        "head_dim": head_dim,
        "intermediate_size": number("llama.feed_forward_length")?,
        "num_hidden_layers": number("llama.block_count")?,
        "vocab_size": vocabulary,
        "max_position_embeddings": header.number("llama.context_length")?,
        "rms_norm_eps": header.float("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": header.float("llama.rope.freq_base")?,
        "rope_scaling": scaling(header)?,
        "tie_word_embeddings": !weights.has("lm_head.weight"),
        "eos_token_id": end_tokens(header)?,
    });
    let section: TextSection =
        serde_json::from_value(section).map_err(|error| ModelError::malformed(header.file(), error))?;
    let options = section.options(DEFAULTS, (header.file(), ""))?;
    let rope = match weights.has(FREQUENCIES) {
        true => options.rope.slowed(&weights.numbers(FREQUENCIES, &[head_dim / 2])?),
        false => options.rope,
    };
    let has = |name: &str| weights.has(&format!("model.layers.0.{name}.bias"));
    let biases = Biases {
        query_key_value: has("self_attn.q_proj"),
        attention_output: has("self_attn.o_proj"),
        feed_forward: has("mlp.gate_proj"),
    };
    Ok(DecoderOptions { rope, biases, ..options })
}

/// Keys of other models that share the architecture's name.
fn refuse_unknown(header: &Header) -> Result<(), ModelError> {
    for (key, advice) in [
        ("llama.expert_count", "only 0 is: mixtures of experts are loaded from a Hugging Face directory"),
        ("llama.attention.sliding_window", "only 0 is"),
        ("split.count", "only 1 is; merge the parts with llama-gguf-split --merge"),
    ] {
        let usual = usize::from(key == "split.count");
        if let Some(other) = header.number(key)?.filter(|other| *other > usual) {
            return Err(header.unsupported(key, other, advice));
        }
    }
    Ok(())
}

/// In the words of config.json. Frequencies that are slowed one by one have a tensor of their own.
fn scaling(header: &Header) -> Result<serde_json::Value, ModelError> {
    const KIND: &str = "llama.rope.scaling.type";
    let factor = match header.float("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => header.float("llama.rope.scale_linear")?,
    };
    match (header.text(KIND)?, factor) {
        (None, Some(factor)) | (Some("linear"), Some(factor)) => Ok(json!({ "rope_type": "linear", "factor": factor })),
        (None | Some("none" | "linear"), _) => Ok(serde_json::Value::Null),
        (Some(other), _) => Err(header.unsupported(KIND, other, "none and linear are")),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value;

    use super::super::writer::Gguf;
    use super::*;
    use crate::model::api::{ChatProcessor, Message, Part, Role};
    use crate::model::drift::{Drift, observe};
    use crate::model::family::GeneratorParts;
    use crate::model::fixture;
    use crate::model::kit::{Driver, Kit};
    use crate::model::registry::{Loaded, load, outline};
    use crate::model::weights::Precision;

    const MODELS: [&str; 2] = ["llama3-tied", "llama3-untied"];

    fn open(path: &Path, precision: Precision) -> Result<Loaded, ModelError> {
        load(path, precision, &Device::Cpu)
    }

    /// The model as a GGUF file alone in a folder, with the tokenizer beside if that is asked for.
    fn written(name: &str, format: GgmlDType, with_tokenizer: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        Gguf::of(&fixture::model(name), format).write(&folder.path().join("model.gguf"));
        if with_tokenizer {
            std::fs::copy(fixture::model(name).join(TOKENIZER), folder.path().join(TOKENIZER)).unwrap();
        }
        folder
    }

    #[test]
    fn a_file_of_floats_writes_the_greedy_ids_of_every_case() {
        let kit = Kit::own();
        for name in MODELS {
            let folder = written(name, GgmlDType::F32, true);
            let mut parts = open(&folder.path().join("model.gguf"), Precision::F32).unwrap().generator.unwrap();
            let cases = kit.cases(name);
            assert!(!cases.is_empty());
            for case in cases {
                let prompt = kit.prompt(&case, parts.processor.as_ref());
                assert_eq!(prompt.ids, case.input_ids, "{name} {}", case.name);
                let answer = case.greedy_ids.len();
                let mut driver = Driver::new(parts.generator.as_mut(), 512);
                let mut sequences = [driver.sequence(&prompt, usize::MAX, answer)];
                driver.run(&mut sequences, answer);
                assert_eq!(sequences[0].written, case.greedy_ids, "{name} {}", case.name);
            }
        }
    }

    /// The mean divergence of the second model from the first, over the prompts of its cases.
    fn drift(name: &str, mut exact: GeneratorParts, mut other: GeneratorParts) -> f64 {
        let (kit, mut drift) = (Kit::own(), Drift::default());
        for case in kit.cases(name) {
            let prompt = kit.prompt(&case, exact.processor.as_ref());
            let exact = observe(exact.generator.as_mut(), &prompt).unwrap();
            drift.add(&exact, &observe(other.generator.as_mut(), &prompt).unwrap());
        }
        drift.mean()
    }

    #[test]
    fn files_of_blocks_are_kept_as_they_are_and_drift_little() {
        let generator = |path: &Path, precision| open(path, precision).unwrap().generator.unwrap();
        for name in MODELS {
            for (format, precision) in [
                (GgmlDType::Q8_0, Precision::Q4K),
                (GgmlDType::Q5_1, Precision::Q8_0),
                (GgmlDType::Q4_0, Precision::Q8_0),
            ] {
                let folder = written(name, format, true);
                let kept = open(folder.path(), precision).unwrap();
                let maps: Vec<_> = kept.held.0.iter().filter(|tensor| tensor.name.contains("_proj")).collect();
                assert!(!maps.is_empty());
                assert!(maps.iter().all(|map| map.format == format!("{format:?}")), "{maps:?}");
                // The same numbers, but for products that round their inputs.
                let kept = kept.generator.unwrap();
                let rounded = drift(name, generator(folder.path(), Precision::F32), kept);
                assert!(rounded < 5e-2, "{name} kept as {format:?}: {rounded}");
            }
            for (format, precision, limit) in [
                (GgmlDType::F16, Precision::F32, 1e-4),
                (GgmlDType::Q8_0, Precision::F32, 5e-2),
                (GgmlDType::Q8_0, Precision::Q8_0, 5e-2),
                (GgmlDType::BF16, Precision::Q8_0, 5e-2),
            ] {
                let folder = written(name, format, true);
                let mean =
                    drift(name, generator(&fixture::model(name), Precision::F32), generator(folder.path(), precision));
                assert!(mean < limit, "{name} stored as {format:?}, held as {}: {mean}", precision.name());
            }
        }
    }

    #[test]
    fn parts_of_different_formats_are_joined_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        let mut gguf = Gguf::of(&fixture::model("llama3-untied"), GgmlDType::Q8_0);
        gguf.quantise("blk.1.attn_v.weight", GgmlDType::Q5_0);
        gguf.quantise("blk.2.attn_k.weight", GgmlDType::F16);
        gguf.write(&file);
        let loaded = open(&file, Precision::Q8_0).unwrap();
        assert!(loaded.held.0.iter().any(|tensor| tensor.format == "Q5_0"));
        let exact = open(&file, Precision::F32).unwrap().generator.unwrap();
        let mean = drift("llama3-untied", exact, loaded.generator.unwrap());
        assert!(mean < 5e-2, "{mean}");
    }

    #[test]
    fn the_tokenizer_and_the_template_of_the_metadata_are_those_of_the_model() {
        let folder = written("llama3-tied", GgmlDType::F32, false);
        let own = open(folder.path(), Precision::F32).unwrap().generator.unwrap();
        // The fixture's tokenizer with the splitting of Llama 3, which the file says it has.
        let original = fixture::copy_of("llama3-tied");
        let path = original.path().join(TOKENIZER);
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["pre_tokenizer"] =
            serde_json::from_slice::<serde_json::Value>(&Gguf::tokenizer(folder.path())).unwrap()["pre_tokenizer"]
                .clone();
        json["model"]["ignore_merges"] = true.into();
        std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
        let other = open(original.path(), Precision::F32).unwrap().generator.unwrap();
        assert_eq!(own.generator.shape(), other.generator.shape());
        for text in ["A blue mug, 1234 ml.\n\n It's <|eot_id|> fine", "Größe: 12\u{a0}cm \u{1f600}", ""] {
            assert_eq!(own.processor.text(text).unwrap().ids, other.processor.text(text).unwrap().ids, "{text}");
            let messages = [Message { role: Role::User, parts: vec![Part::Text(text)] }];
            let ids = |processor: &dyn ChatProcessor| processor.prompt(&messages).unwrap().ids;
            assert_eq!(ids(own.processor.as_ref()), ids(other.processor.as_ref()), "{text}");
            let ids = own.processor.text(text).unwrap().ids;
            assert_eq!(own.processor.decode(&ids).unwrap(), other.processor.decode(&ids).unwrap());
        }
    }

    #[test]
    fn an_outline_says_what_a_file_holds_and_leaves_nothing_unread() {
        let folder = written("llama3-tied", GgmlDType::Q8_0, true);
        let outline = outline(folder.path(), Precision::Q8_0).unwrap();
        let loaded = open(folder.path(), Precision::Q8_0).unwrap();
        assert_eq!((outline.held, outline.architecture.as_str()), (loaded.held, "llama"));
        assert!(outline.unread.is_empty(), "{:?}", outline.unread);
        assert!(outline.stored.contains_key("Q8_0"));
        let file = folder.path().join("model.gguf");
        assert_eq!(loaded.fingerprint, open(&file, Precision::F32).unwrap().fingerprint);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        for (key, value, part) in [
            (ARCHITECTURE, Value::String("llama4".to_owned()), "general.architecture = llama4"),
            ("llama.expert_count", Value::U32(8), "llama.expert_count = 8"),
            ("llama.rope.scaling.type", Value::String("yarn".to_owned()), "llama.rope.scaling.type = yarn"),
            ("llama.rope.dimension_count", Value::U32(8), "llama.rope.dimension_count = 8"),
            ("split.count", Value::U16(3), "--merge"),
            ("tokenizer.ggml.model", Value::String("llama".to_owned()), "tokenizer.json beside"),
            ("tokenizer.ggml.pre", Value::String("qwen2".to_owned()), "tokenizer.ggml.pre = qwen2"),
            ("llama.block_count", Value::String("4".to_owned()), "llama.block_count is String"),
            ("llama.block_count", Value::U32(5), "blk.4.attn_norm.weight is missing"),
        ] {
            let mut gguf = Gguf::of(&fixture::model("llama3-tied"), GgmlDType::F32);
            gguf.set(key, value);
            gguf.write(&file);
            let refusal = open(&file, Precision::F32).err().expect(part).to_string();
            assert!(refusal.contains(part) && refusal.contains("model.gguf"), "{refusal}");
        }
        let whole = std::fs::read(&file).unwrap();
        for (length, part) in [(whole.len() / 2, "cut off"), (20, "not a GGUF file"), (0, "not a GGUF file")] {
            std::fs::write(&file, &whole[..length]).unwrap();
            let refusal = open(&file, Precision::F32).err().expect(part).to_string();
            assert!(refusal.contains(part), "{refusal}");
        }
        assert!(matches!(open(&folder.path().join("none.gguf"), Precision::F32), Err(ModelError::Read { .. })));
    }
}
