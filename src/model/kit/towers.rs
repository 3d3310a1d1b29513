//! Vision towers: every stage of every picture, from the pixels of the goldens.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use super::compare::{Limit, values};
use super::files::{Case, Kit};
use super::generators::generator;
use crate::model::api::{Generator, VisionInput};
use crate::model::trace::Trace;

/// The pictures of a case with the goldens' pixels; none for a case without pictures.
fn pictures(case: &Case, golden: &HashMap<String, Tensor>) -> Vec<VisionInput> {
    let Some(pixels) = golden.get("pixel_values") else { return Vec::new() };
    let rows = pixels.to_dtype(DType::F32).unwrap().flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let merged: usize = ["vision.adapter", "vision.merged"]
        .iter()
        .find_map(|name| golden.get(*name))
        .map(|tensor| tensor.elem_count() / tensor.dims()[tensor.rank() - 1])
        .unwrap();
    let tiled = case.aspect_ratios.iter().flatten().map(|grid| {
        let tiles = grid.0 * grid.1;
        (*grid, if tiles > 1 { tiles + 1 } else { 1 })
    });
    let patched = case.image_grid_thw.iter().flatten().map(|[frames, height, width]| {
        assert_eq!(*frames, 1, "{}: a picture has one frame", case.name);
        ((*height, *width), height * width)
    });
    let mut rest = rows.as_slice();
    tiled
        .chain(patched)
        .map(|(grid, count)| {
            let (own, later) = rest.split_at(count);
            rest = later;
            VisionInput { values: own.concat(), grid, tokens: count * merged / rows.len(), hash: [0; 32] }
        })
        .collect()
}

/// Sees all pictures; each stage of one picture is put after the same stage of the picture before it.
fn see(generator: &mut dyn Generator, pictures: &[VisionInput]) -> Vec<(String, Tensor)> {
    let mut stages: Vec<(String, Tensor)> = Vec::new();
    for (index, picture) in pictures.iter().enumerate() {
        let mut trace = Trace::on();
        let features = generator.see(picture, &mut trace).unwrap();
        assert_eq!(features.rows.dims(), [picture.tokens, generator.shape().hidden]);
        let shown = trace.into_tensors();
        if index == 0 {
            stages = shown;
            continue;
        }
        assert_eq!(stages.len(), shown.len());
        for ((name, stage), (other, tensor)) in stages.iter_mut().zip(shown) {
            assert_eq!(*name, other);
            *stage = Tensor::cat(&[&*stage, &tensor], 0).unwrap();
        }
    }
    stages
}

#[test]
fn every_stage_of_every_picture_is_near_its_golden() {
    let kit = Kit::find();
    let mut seen = 0;
    for model in kit.models() {
        let mut loaded = None;
        for case in kit.cases(&model) {
            let golden = kit.tensors(&model, &case);
            let pictures = pictures(&case, &golden);
            if pictures.is_empty() {
                continue;
            }
            let generator = loaded.get_or_insert_with(|| generator(&kit, &model).generator);
            let stages: HashMap<String, Tensor> = see(generator.as_mut(), &pictures).into_iter().collect();
            for (name, expected) in golden.iter().filter(|(name, _)| name.starts_with("vision.")) {
                let what = format!("{model} {} {name}", case.name);
                let found = stages.get(name).unwrap_or_else(|| panic!("{what} is not shown"));
                assert_eq!(found.dims(), expected.dims(), "{what}");
                let farthest = Limit::of(name).assert(&what, &values(found), &values(expected));
                eprintln!("{what}: {farthest:e}");
            }
            seen += pictures.len();
        }
    }
    assert!(seen > 0, "{} has no picture", kit.root().display());
}
