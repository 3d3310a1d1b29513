//! Generators: every stage, every greedy id, alone and in company.

use candle_core::Tensor;

use super::compare::{Limit, values};
use super::driver::{Driver, Sequence};
use super::files::{Case, Kit};
use crate::kv::BLOCK;
use crate::model::api::{Generator, Prompt};
use crate::model::family::GeneratorParts;
use crate::model::fixture;
use crate::model::registry::load;
use crate::model::trace::Trace;
use crate::model::weights::Precision;

const BLOCKS: usize = 512;

/// Runs `test` for each generator of the kit and says how many cases it saw.
fn for_each_generator(test: impl Fn(&str, &mut dyn Generator, &[(Case, Prompt)])) {
    let kit = Kit::find();
    let (mut models, mut count) = (0, 0);
    for name in kit.models() {
        let cases = kit.cases(&name);
        if cases.is_empty() {
            continue;
        }
        let GeneratorParts { processor, mut generator } = generator(&kit, &name);
        let cases: Vec<(Case, Prompt)> = cases
            .into_iter()
            .map(|case| {
                let prompt = kit.prompt(&case, processor.as_ref());
                (case, prompt)
            })
            .collect();
        test(&name, generator.as_mut(), &cases);
        models += 1;
        count += cases.len();
    }
    assert!(count > 0, "{} lists no case of a generator", kit.root().display());
    eprintln!("{}: {count} cases of {models} generators", kit.root().display());
}

/// The generator of that name, its tower included.
pub fn generator(kit: &Kit, name: &str) -> GeneratorParts {
    load(&kit.model(name), Precision::F32, &fixture::device()).unwrap().generator.unwrap()
}

fn written(sequences: &[Sequence]) -> Vec<&[u32]> {
    sequences.iter().map(|sequence| sequence.written.as_slice()).collect()
}

#[test]
fn every_prompt_and_every_pixel_equals_its_golden() {
    for_each_generator(|model, _, cases| {
        let kit = Kit::find();
        for (case, prompt) in cases {
            let what = format!("{model} {}", case.name);
            let golden = kit.tensors(model, case);
            assert_eq!(prompt.ids, case.input_ids, "{what}: ids");
            if let Some(positions) = golden.get("position_ids") {
                let found: Vec<f32> =
                    (0..3).flat_map(|axis| prompt.positions.iter().map(move |at| at[axis] as f32)).collect();
                assert_eq!(found, values(positions), "{what}: positions");
                assert_eq!(vec![prompt.position_offset as f32], values(&golden["rope_delta"]), "{what}: offset");
            }
            let grids = case.aspect_ratios.clone().or_else(|| {
                let grids = case.image_grid_thw.as_ref()?;
                Some(grids.iter().map(|[_, rows, columns]| (*rows, *columns)).collect())
            });
            let found: Vec<(usize, usize)> = prompt.images.iter().map(|image| image.input.grid).collect();
            assert_eq!(found, grids.unwrap_or_default(), "{what}: grids");
            if let Some(pixels) = golden.get("pixel_values") {
                let found: Vec<f32> = prompt.images.iter().flat_map(|image| image.input.values.clone()).collect();
                assert!(found == values(pixels), "{what}: pixels");
            }
        }
    });
}

#[test]
fn every_stage_of_every_case_is_near_its_golden() {
    for_each_generator(|model, generator, cases| {
        let kit = Kit::find();
        for (case, prompt) in cases {
            let golden = kit.tensors(model, case);
            let mut driver = Driver::new(generator, BLOCKS);
            let mut sequence = driver.sequence(prompt, usize::MAX, case.greedy_ids.len());
            let rows: Vec<usize> = (0..prompt.ids.len()).collect();
            let mut trace = Trace::on();
            let logits = driver.step(&mut [&mut sequence], &mut trace, Some(&rows));
            let mut compared = 0;
            for (name, tensor) in trace.into_tensors() {
                if let Some(expected) = golden.get(&name) {
                    let what = format!("{model} {} {name}", case.name);
                    assert_eq!(tensor.dims(), expected.dims(), "{what}");
                    Limit::of(&name).assert(&what, &values(&tensor), &values(expected));
                    compared += 1;
                }
            }
            assert!(compared > 0, "{model} {}: no stage compared", case.name);
            let what = format!("{model} {} logits", case.name);
            let expected = golden.get("logits").or_else(|| golden.get("logits_tail")).unwrap();
            let expected = values(expected);
            Limit::of("logits").assert(&what, &logits[logits.len() - expected.len()..], &expected);
            compare_top(&what, &logits, generator.shape().vocabulary, &golden["top_ids"], &golden["top_logits"]);
        }
    });
}

/// The largest logits of every position.
fn compare_top(what: &str, logits: &[f32], vocabulary: usize, ids: &Tensor, expected: &Tensor) {
    let ids: Vec<Vec<f32>> = ids.to_dtype(candle_core::DType::F32).unwrap().to_vec2().unwrap();
    let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
    for ((row, ids), expected) in logits.chunks(vocabulary).zip(&ids).zip(&expected) {
        let found: Vec<f32> = ids.iter().map(|id| row[*id as usize]).collect();
        Limit::of("logits").assert(what, &found, expected);
    }
}

#[test]
fn every_case_writes_its_greedy_ids_alone_with_its_prompt_in_chunks_of_any_size() {
    for_each_generator(|model, generator, cases| {
        for (case, prompt) in cases {
            for chunk in [1, 7, 16, usize::MAX] {
                let mut driver = Driver::new(generator, BLOCKS);
                let mut sequences = [driver.sequence(prompt, chunk, case.greedy_ids.len())];
                driver.run(&mut sequences, case.greedy_ids.len());
                assert_eq!(sequences[0].written, case.greedy_ids, "{model} {} in chunks of {chunk}", case.name);
            }
        }
    });
}

#[test]
fn every_case_writes_its_greedy_ids_in_a_mixed_batch() {
    for_each_generator(|model, generator, cases| {
        let answer = cases.iter().map(|(case, _)| case.greedy_ids.len()).min().unwrap_or_default();
        let mut driver = Driver::new(generator, BLOCKS);
        let chunks = [16, 1, usize::MAX, 7];
        let mut sequences: Vec<Sequence> = cases
            .iter()
            .enumerate()
            .map(|(index, (_, prompt))| driver.sequence(prompt, chunks[index % chunks.len()], answer))
            .collect();
        driver.run(&mut sequences, answer);
        for ((case, _), written) in cases.iter().zip(written(&sequences)) {
            assert_eq!(written, &case.greedy_ids[..answer], "{model} {}", case.name);
        }
    });
}

#[test]
fn every_case_writes_its_greedy_ids_after_a_prefix_that_another_sequence_computed() {
    for_each_generator(|model, generator, cases| {
        for (case, prompt) in cases {
            let answer = case.greedy_ids.len();
            let mut driver = Driver::new(generator, BLOCKS);
            let mut first = [driver.sequence(prompt, usize::MAX, answer)];
            driver.run(&mut first, answer);
            // At least one token must be computed, or there would be no logits.
            let shared = first[0].full_blocks(prompt.ids.len() - 1).to_vec();
            let mut second = [driver.sharing(prompt, 5, answer, &shared)];
            driver.run(&mut second, answer);
            let what = format!("{model} {} with {} shared tokens", case.name, shared.len() * BLOCK);
            assert_eq!(second[0].written, case.greedy_ids, "{what}");
        }
    });
}
