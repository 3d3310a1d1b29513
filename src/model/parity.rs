//! Tests only: both encoder families against goldens of the reference implementation.
//!
//! Token ids must be equal, pixels within one millionth, embeddings within 5e-5, and no input may see its neighbours.

use candle_core::Tensor;

use super::api::{Encoder, Picture, Pixels, Processor, TokenIds};
use super::family::EncoderParts;
use super::fixture::{self, Cases};
use super::weights::Precision;

const FAMILIES: [&str; 2] = ["clip", "siglip"];

fn loaded(name: &str) -> EncoderParts {
    fixture::encoder(&fixture::model(name), Precision::F32).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

fn farthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], limit: f32) {
    assert_eq!(found.len(), expected.len());
    for (row, (a, b)) in found.iter().zip(expected).enumerate() {
        let distance = farthest(a, b);
        assert!(distance <= limit, "row {row} is off by {distance}");
    }
}

fn texts(cases: &Cases, processor: &dyn Processor) -> Vec<TokenIds> {
    cases.texts.iter().map(|text| processor.text(text).unwrap()).collect()
}

fn images(cases: &Cases, processor: &dyn Processor) -> Vec<Pixels> {
    cases
        .images
        .iter()
        .map(|path| {
            let picture = fixture::picture(path);
            let picture = Picture { width: picture.width, height: picture.height, rgb: &picture.rgb };
            processor.image(picture).unwrap()
        })
        .collect()
}

fn embed_texts(encoder: &mut dyn Encoder, texts: &[TokenIds]) -> Vec<Vec<f32>> {
    encoder.embed_texts(&texts.iter().collect::<Vec<_>>()).unwrap()
}

fn embed_images(encoder: &mut dyn Encoder, images: &[Pixels]) -> Vec<Vec<f32>> {
    encoder.embed_images(&images.iter().collect::<Vec<_>>()).unwrap()
}

#[test]
fn token_ids_equal_the_reference() {
    let (cases, _) = fixture::cases("clip");
    for (found, padded) in texts(&cases, loaded("clip").processor.as_ref()).iter().zip(&cases.input_ids) {
        // The reference pads with the end token; alone, a text stops at its first.
        let end = padded.iter().position(|id| *id == 901).unwrap();
        assert_eq!(found.0, padded[..=end]);
    }
    let (cases, _) = fixture::cases("siglip");
    for (found, expected) in texts(&cases, loaded("siglip").processor.as_ref()).iter().zip(&cases.input_ids) {
        assert_eq!(&found.0, expected);
    }
}

#[test]
fn a_long_text_is_cut_to_the_positions_and_keeps_its_end_token() {
    for (name, limit, end) in [("clip", 32, 901), ("siglip", 24, 1)] {
        let ids = loaded(name).processor.text(&"golden bridge ".repeat(50)).unwrap();
        assert_eq!((ids.0.len(), ids.0.last()), (limit, Some(&end)), "{name}");
    }
}

#[test]
fn pixels_equal_the_reference() {
    for name in FAMILIES {
        let (cases, golden) = fixture::cases(name);
        let expected = golden["pixel_values"].flatten_from(1).unwrap();
        let found: Vec<_> =
            images(&cases, loaded(name).processor.as_ref()).into_iter().map(|pixels| pixels.values).collect();
        assert_close(&found, &rows(&expected), 1e-6);
    }
}

#[test]
fn text_embeddings_equal_the_reference() {
    for name in FAMILIES {
        let (cases, golden) = fixture::cases(name);
        let mut model = loaded(name);
        let found = embed_texts(model.encoder.as_mut(), &texts(&cases, model.processor.as_ref()));
        assert_close(&found, &rows(&golden["text_embeds"]), 5e-5);
        assert_eq!(found[0].len(), model.encoder.dimensions());
    }
}

#[test]
fn image_embeddings_equal_the_reference_from_its_pixels_and_from_the_picture() {
    for name in FAMILIES {
        let (cases, golden) = fixture::cases(name);
        let mut model = loaded(name);
        let expected = rows(&golden["image_embeds"]);
        let given: Vec<Pixels> = rows(&golden["pixel_values"].flatten_from(1).unwrap())
            .into_iter()
            .map(|values| Pixels { side: 64, values, cost: 16 })
            .collect();
        assert_close(&embed_images(model.encoder.as_mut(), &given), &expected, 5e-5);
        let own = images(&cases, model.processor.as_ref());
        assert_close(&embed_images(model.encoder.as_mut(), &own), &expected, 5e-5);
    }
}

#[test]
fn an_embedding_does_not_depend_on_its_batch() {
    for name in FAMILIES {
        let (cases, _) = fixture::cases(name);
        let mut model = loaded(name);
        let encoder = model.encoder.as_mut();
        let texts = texts(&cases, model.processor.as_ref());
        let alone: Vec<_> = texts.iter().flat_map(|text| embed_texts(encoder, std::slice::from_ref(text))).collect();
        assert_close(&embed_texts(encoder, &texts), &alone, 1e-6);
        let reversed: Vec<_> = texts.iter().rev().cloned().collect();
        let mut mixed = embed_texts(encoder, &reversed);
        mixed.reverse();
        assert_close(&mixed, &alone, 1e-6);
        let images = images(&cases, model.processor.as_ref());
        let alone: Vec<_> = images.iter().flat_map(|one| embed_images(encoder, std::slice::from_ref(one))).collect();
        assert_close(&embed_images(encoder, &images), &alone, 1e-6);
    }
}

#[test]
fn a_true_end_token_is_where_clip_pools() {
    let copy = fixture::copy_of("clip");
    let config = copy.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"eos_token_id\": 2", "\"eos_token_id\": 901")).unwrap();
    let (cases, golden) = fixture::cases("clip");
    let mut model = fixture::encoder(copy.path(), Precision::F32).unwrap();
    let found = embed_texts(model.encoder.as_mut(), &texts(&cases, model.processor.as_ref()));
    assert_close(&found, &rows(&golden["text_embeds"]), 5e-5);
    // With another end token the pooled position, and so the vector, is another.
    std::fs::write(&config, text.replace("\"eos_token_id\": 2", "\"eos_token_id\": 320")).unwrap();
    let mut model = fixture::encoder(copy.path(), Precision::F32).unwrap();
    let found = embed_texts(model.encoder.as_mut(), &texts(&cases, model.processor.as_ref()));
    assert!(farthest(&found[0], &rows(&golden["text_embeds"])[0]) > 1e-2);
}

#[test]
fn sixteen_bit_arithmetic_stays_near_the_reference() {
    for name in FAMILIES {
        let (cases, golden) = fixture::cases(name);
        for precision in [Precision::Bf16, Precision::F16] {
            let mut model = fixture::encoder(&fixture::model(name), precision).unwrap();
            let found = embed_texts(model.encoder.as_mut(), &texts(&cases, model.processor.as_ref()));
            assert_close(&found, &rows(&golden["text_embeds"]), 5e-2);
            let found = embed_images(model.encoder.as_mut(), &images(&cases, model.processor.as_ref()));
            assert_close(&found, &rows(&golden["image_embeds"]), 5e-2);
        }
    }
}

#[test]
fn inputs_of_the_wrong_size_are_refused_not_computed() {
    for name in FAMILIES {
        let mut model = loaded(name);
        let encoder = model.encoder.as_mut();
        assert!(encoder.embed_texts(&[&TokenIds(vec![1; 40])]).is_err());
        assert!(encoder.embed_texts(&[&TokenIds(Vec::new())]).is_err());
        assert!(encoder.embed_images(&[&Pixels { side: 32, values: vec![0.0; 3 * 32 * 32], cost: 4 }]).is_err());
    }
}
