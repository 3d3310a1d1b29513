//! The encoder that the demo ships, through the engine, against what transformers computed with the same files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use assay::engine::{Engine, Image, Inference, ModelOptions, Options, Request, Task};
use assay::media::{DecodeLimits, decode};
use assay::metrics::Metrics;
use serde_json::Value;

fn expected(entry: &Value) -> Vec<f32> {
    entry["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_encoder_equals_the_reference_for_texts_and_pictures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = std::fs::read_to_string(root.join("tests/data/demo-clip-golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let path = root.join(golden["model"].as_str().unwrap());
    let model: ModelOptions = toml::from_str(&format!("path = {path:?}")).unwrap();
    let models = BTreeMap::from([("demo".to_owned(), model)]);
    let engine = Engine::start(&Options::default(), &models, Arc::new(Metrics::new())).unwrap();

    let mut request = Request { tasks: Vec::new() };
    let mut references = Vec::new();
    for entry in golden["texts"].as_array().unwrap() {
        let text = entry["text"].as_str().unwrap().to_owned();
        request.tasks.push(Task::EmbedText { model: "demo".into(), text });
        references.push(expected(entry));
    }
    for entry in golden["pictures"].as_array().unwrap() {
        let bytes = std::fs::read(root.join("tests/data").join(entry["file"].as_str().unwrap())).unwrap();
        let limits = DecodeLimits { pixels: 1_000_000, side: 1_000, allocation: 16_000_000 };
        let picture = decode(&bytes, &limits).unwrap();
        let image = Arc::new(Image { width: picture.width, height: picture.height, rgb: picture.rgb });
        request.tasks.push(Task::EmbedImage { model: "demo".into(), image });
        references.push(expected(entry));
    }
    assert!(references.len() >= 5);
    let answer = engine.infer(engine.prepare(&request).unwrap()).await.unwrap();
    for (index, (embedding, reference)) in answer.embeddings.iter().zip(&references).enumerate() {
        let largest = embedding.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Reference resizers differ by one level of 255 in some pixels; texts have no such freedom.
        let tolerance = if matches!(request.tasks[index], Task::EmbedText { .. }) { 1e-4 } else { 5e-4 };
        assert!(embedding.len() == reference.len() && largest < tolerance, "task {index} is off by {largest}");
    }
    engine.shutdown(Duration::from_secs(10)).unwrap();
}
