//! Tests only: every encoder of a parity kit against the goldens of the reference implementation.
//!
//! [`run`] takes any kit in the layout of tests/data/parity and looks at whatever its goldens hold: token ids equal,
//! pixels within one millionth, states and embeddings within 5e-5, convolution stages within 2e-4 + 1e-4 of their value.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::api::{Picture, Pixels, TokenIds};
use super::bert::{Bert, BertConfig, Positions};
use super::family::EncoderParts;
use super::fixture::{self, Cases, Kit};
use super::kit;
use super::registry::load;
use super::resnet::{Resnet, ResnetConfig};
use super::sentence::Pooling;
use super::trace::Trace;
use super::weights::{Precision, Weights};

type Golden = HashMap<String, Tensor>;

/// Compares one encoder of the kit with its goldens; panics where they differ, else says how many tensors it compared.
pub fn run(kit: &Kit, name: &str) -> usize {
    let (cases, golden) = kit.cases(name);
    let directory = kit.model(name);
    let loaded = load(&directory, Precision::F32, &Device::Cpu).unwrap();
    let mut model = loaded.encoder.unwrap();
    let mut compared = 0;
    if model.encoder.takes_texts() {
        compared += texts(&mut model, &cases, &golden, name);
    }
    if model.encoder.takes_images() {
        compared += images(&mut model, kit, &cases, &golden, name);
    }
    compared
        + match loaded.architecture.as_str() {
            "BertModel" => bert(&directory, Positions::FromZero, &golden, name),
            "RobertaModel" | "XLMRobertaModel" => bert(&directory, Positions::FromPadding, &golden, name),
            "ResNetModel" | "ResNetForImageClassification" => resnet(&directory, &golden, name),
            _ => 0,
        }
}

fn texts(model: &mut EncoderParts, cases: &Cases, golden: &Golden, name: &str) -> usize {
    let ids: Vec<TokenIds> = cases.texts.iter().map(|text| model.processor.text(text).unwrap()).collect();
    assert_eq!(ids.len(), cases.input_ids.len(), "{name}");
    for (found, expected) in ids.iter().zip(&cases.input_ids) {
        let (own, padding) = expected.split_at(found.0.len());
        assert_eq!(found.0, own, "{name}");
        assert!(padding.iter().all(|id| *id == padding[0]), "{name}: {padding:?} is no padding");
    }
    let rows = model.encoder.embed_texts(&ids.iter().collect::<Vec<_>>()).unwrap();
    1 + embeddings(&rows, ["text_embeds", "sentence_embedding"], golden, name)
}

fn images(model: &mut EncoderParts, kit: &Kit, cases: &Cases, golden: &Golden, name: &str) -> usize {
    let pixels: Vec<Pixels> = cases
        .images
        .iter()
        .map(|path| {
            let decoded = kit.picture(path);
            let picture = Picture { width: decoded.width, height: decoded.height, rgb: &decoded.rgb };
            model.processor.image(picture).unwrap()
        })
        .collect();
    for (index, found) in pixels.iter().enumerate() {
        let found = Tensor::new(found.values.as_slice(), &Device::Cpu).unwrap();
        let expected = golden["pixel_values"].get(index).unwrap().flatten_all().unwrap();
        assert_near(&found, &expected, (1e-6, 0.0), &format!("{name}: pixels of picture {index}"));
    }
    let rows = model.encoder.embed_images(&pixels.iter().collect::<Vec<_>>()).unwrap();
    // A model without a projection embeds by its pooled features.
    1 + embeddings(&rows, ["image_embeds", "pooled"], golden, name)
}

/// Compares unit rows with the first of these goldens that there is, brought to unit length.
fn embeddings(rows: &[Vec<f32>], keys: [&str; 2], golden: &Golden, name: &str) -> usize {
    let (key, expected) = keys.iter().find_map(|key| Some((key, golden.get(*key)?))).unwrap();
    let lengths = expected.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    let found = Tensor::new(rows.to_vec(), &Device::Cpu).unwrap();
    assert_near(&found, &expected.broadcast_div(&lengths).unwrap(), (5e-5, 0.0), &format!("{name}: {key}"));
    1
}

/// Hidden states of every layer, each text alone and all in one batch, and the ways of pooling.
fn bert(directory: &Path, positions: Positions, golden: &Golden, name: &str) -> usize {
    let config = BertConfig::read(&directory.join("config.json"), positions).unwrap();
    let weights = Weights::open(directory, Precision::F32, &Device::Cpu).unwrap();
    let model = |pooling| Bert::load(config, vec![pooling], &weights).unwrap();
    let texts = true_ids(golden);
    let mut compared = 0;
    let mean = model(Pooling::Mean);
    for (row, text) in texts.iter().enumerate() {
        let mut trace = Trace::on();
        mean.pooled(&[text], &mut trace).unwrap();
        for (key, found) in trace.into_tensors() {
            let expected = golden[&key].get(row).unwrap().narrow(0, 0, text.0.len()).unwrap();
            assert_near(&found, &expected, (5e-5, 0.0), &format!("{name}: {key} of text {row}"));
            compared += 1;
        }
    }
    let texts: Vec<&TokenIds> = texts.iter().collect();
    let pooled = mean.pooled(&texts, &mut Trace::off()).unwrap();
    assert_near(&pooled, &golden["mean_pooled"], (5e-5, 0.0), &format!("{name}: mean_pooled"));
    let last = config.tower.stack.layers;
    let first = golden[&format!("hidden_{last}")].narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    let pooled = model(Pooling::First).pooled(&texts, &mut Trace::off()).unwrap();
    assert_near(&pooled, &first, (5e-5, 0.0), &format!("{name}: the first token"));
    compared + 2
}

/// The golden ids without their padding.
fn true_ids(golden: &Golden) -> Vec<TokenIds> {
    let rows = |key: &str| golden[key].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let masks = rows("attention_mask");
    let length = |mask: &[u32]| mask.iter().sum::<u32>() as usize;
    rows("input_ids").into_iter().zip(&masks).map(|(ids, mask)| TokenIds(ids[..length(mask)].to_vec())).collect()
}

/// Every stage, the pooled features, and what the checkpoint's classifier makes of them.
fn resnet(directory: &Path, golden: &Golden, name: &str) -> usize {
    let config = ResnetConfig::read(&directory.join("config.json")).unwrap();
    let weights = Weights::open(directory, Precision::F32, &Device::Cpu).unwrap();
    let mut trace = Trace::on();
    let model = Resnet::load(config, &weights).unwrap();
    let pooled = model.pooled(&golden["pixel_values"], &mut trace).unwrap();
    let mut compared = 1;
    for (key, found) in trace.into_tensors() {
        assert_near(&found, &golden[&key], (2e-4, 1e-4), &format!("{name}: {key}"));
        compared += 1;
    }
    assert_near(&pooled, &golden["pooled"], (2e-4, 1e-4), &format!("{name}: pooled"));
    let Some(expected) = golden.get("logits") else { return compared };
    let classifier = weights.root().at("classifier").at(1);
    let (classes, features) = (expected.dim(1).unwrap(), pooled.dim(1).unwrap());
    let weight = classifier.tensor("weight", &[classes, features]).unwrap();
    let bias = classifier.tensor("bias", &[classes]).unwrap();
    let logits = pooled.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    assert_near(&logits, expected, (2e-4, 1e-4), &format!("{name}: logits"));
    compared + 1
}

fn assert_near(found: &Tensor, expected: &Tensor, (absolute, relative): (f32, f32), what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (index, (a, b)) in values(found).iter().zip(values(expected)).enumerate() {
        assert!((a - b).abs() <= absolute + relative * b.abs(), "{what}: value {index} is {a}, not {b}");
    }
}

fn farthest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().flatten().all(|value| value.is_finite()));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_encoder_of_the_repository_equals_the_reference() {
    let compared: Vec<usize> =
        ["bert-minilm", "clip", "resnet-basic", "siglip"].iter().map(|name| run(&Kit::own(), name)).collect();
    assert_eq!(compared, [24, 4, 9, 4]);
}

#[test]
fn every_encoder_of_the_kit_of_the_environment_equals_the_reference() {
    let kit = kit::Kit::find();
    let names: Vec<String> = kit.models().into_iter().filter(|name| kit.cases(name).is_empty()).collect();
    let compared: Vec<usize> = names.iter().map(|name| run(&Kit(kit.root().clone()), name)).collect();
    assert!(compared.iter().all(|count| *count > 0), "{names:?}: {compared:?}");
    eprintln!("{}: {} encoders, {} tensors", kit.root().display(), names.len(), compared.iter().sum::<usize>());
}

#[test]
fn a_sentence_does_not_depend_on_its_batch() {
    let mut model = fixture::encoder(&fixture::model("bert-minilm"), Precision::F32).unwrap();
    let (cases, _) = fixture::cases("bert-minilm");
    // Several of the same length, so that attention runs over more than one text at a time.
    let texts: Vec<String> = cases.texts.iter().chain(&cases.texts).map(|text| format!("{text} tiles")).collect();
    let ids: Vec<TokenIds> = texts.iter().chain(&cases.texts).map(|text| model.processor.text(text).unwrap()).collect();
    let alone: Vec<_> = ids.iter().flat_map(|text| model.encoder.embed_texts(&[text]).unwrap()).collect();
    let together = model.encoder.embed_texts(&ids.iter().collect::<Vec<_>>()).unwrap();
    assert!(farthest(&together, &alone) <= 1e-6);
    let mut reversed = model.encoder.embed_texts(&ids.iter().rev().collect::<Vec<_>>()).unwrap();
    reversed.reverse();
    assert!(farthest(&reversed, &alone) <= 1e-6);
    assert!(model.encoder.embed_texts(&[]).unwrap().is_empty());
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let mut model = fixture::encoder(&fixture::model("resnet-basic"), Precision::F32).unwrap();
    let (_, golden) = fixture::cases("resnet-basic");
    let values = golden["pixel_values"].flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let pixels: Vec<Pixels> = values.into_iter().map(|values| Pixels { side: 64, values, cost: 4 }).collect();
    let alone: Vec<_> = pixels.iter().flat_map(|image| model.encoder.embed_images(&[image]).unwrap()).collect();
    let mut reversed = model.encoder.embed_images(&pixels.iter().rev().collect::<Vec<_>>()).unwrap();
    reversed.reverse();
    assert!(farthest(&reversed, &alone) <= 1e-6);
    assert!(model.encoder.embed_images(&[]).unwrap().is_empty());
}

#[test]
fn sixteen_bit_arithmetic_stays_near_the_reference() {
    for precision in [Precision::Bf16, Precision::F16] {
        for (name, key) in [("bert-minilm", "sentence_embedding"), ("resnet-basic", "pooled")] {
            let (_, golden) = fixture::cases(name);
            let mut model = fixture::encoder(&fixture::model(name), precision).unwrap();
            let found = match golden.get("pixel_values") {
                None => model.encoder.embed_texts(&true_ids(&golden).iter().collect::<Vec<_>>()).unwrap(),
                Some(pixels) => {
                    let values = pixels.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
                    let pixels: Vec<_> =
                        values.into_iter().map(|values| Pixels { side: 64, values, cost: 4 }).collect();
                    model.encoder.embed_images(&pixels.iter().collect::<Vec<_>>()).unwrap()
                }
            };
            let lengths = golden[key].sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
            let expected = golden[key].broadcast_div(&lengths).unwrap().to_vec2::<f32>().unwrap();
            assert!(farthest(&found, &expected) <= 5e-2, "{name} in {precision:?}");
        }
    }
}

#[test]
fn a_long_text_is_cut_to_the_limit_of_the_sentence_settings_and_keeps_its_special_tokens() {
    let copy = fixture::copy_of("bert-minilm");
    let long = "golden bridge ".repeat(50);
    let cut = |longest: &str| {
        std::fs::write(copy.path().join("sentence_bert_config.json"), longest).unwrap();
        let model = fixture::encoder(copy.path(), Precision::F32).unwrap();
        let ids = model.processor.text(&long).unwrap().0;
        (ids.len(), ids.first().copied(), ids.last().copied())
    };
    assert_eq!(cut(r#"{"max_seq_length": 16}"#), (16, Some(2), Some(3)));
    assert_eq!(cut(r#"{"max_seq_length": null}"#), (64, Some(2), Some(3)));
    assert_eq!(cut(r#"{"max_seq_length": 512}"#), (64, Some(2), Some(3)));
}

#[test]
fn what_an_encoder_does_not_take_is_a_bad_input_on_either_side() {
    let mut texts = fixture::encoder(&fixture::model("bert-minilm"), Precision::F32).unwrap();
    let mut images = fixture::encoder(&fixture::model("resnet-basic"), Precision::F32).unwrap();
    assert!(texts.encoder.takes_texts() && !texts.encoder.takes_images());
    assert!(images.encoder.takes_images() && !images.encoder.takes_texts());
    let picture = Picture { width: 1, height: 1, rgb: &[0; 3] };
    let pixels = Pixels { side: 64, values: vec![0.0; 3 * 64 * 64], cost: 4 };
    for refusal in [
        texts.processor.image(picture).unwrap_err(),
        texts.encoder.embed_images(&[&pixels]).unwrap_err(),
        images.processor.text("a bridge").unwrap_err(),
        images.encoder.embed_texts(&[&TokenIds(vec![1])]).unwrap_err(),
        texts.encoder.embed_texts(&[&TokenIds(vec![1; 65])]).unwrap_err(),
        texts.encoder.embed_texts(&[&TokenIds(Vec::new())]).unwrap_err(),
        images.encoder.embed_images(&[&Pixels { side: 32, ..pixels.clone() }]).unwrap_err(),
    ] {
        assert!(matches!(refusal, super::api::ModelError::Input { .. }), "{refusal}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_with_file_and_key() {
    for (name, from, to, parts) in [
        ("bert-minilm", "\"vocab_size\": 900", "\"vocab_size\": 901", ["word_embeddings.weight", "[901, 72]"]),
        ("bert-minilm", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"", ["config.json: hidden_act", "mish"]),
        ("bert-minilm", "\"is_decoder\": false", "\"is_decoder\": true", ["config.json", "is_decoder = true"]),
        ("bert-minilm", "\"hidden_size\": 72", "\"hidden_size\": 70", ["config.json", "hidden_size 70"]),
        ("resnet-basic", "\"layer_type\": \"basic\"", "\"layer_type\": \"wide\"", ["config.json", "layer_type = wide"]),
        ("resnet-basic", "\"embedding_size\": 16", "\"embedding_size\": 8", ["convolution.weight", "[8, 3, 7, 7]"]),
        ("resnet-basic", "\"num_channels\": 3", "\"num_channels\": 1", ["config.json", "num_channels = 1"]),
        ("resnet-basic", "\"hidden_sizes\": [", "\"hidden_sizes\": [16,", ["config.json", "hidden_sizes"]),
    ] {
        let copy = fixture::copy_of(name);
        let config = copy.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let refusal = fixture::encoder(copy.path(), Precision::F32).err().expect("must be refused").to_string();
        assert!(parts.iter().all(|part| refusal.contains(part)), "{refusal}");
    }
}
