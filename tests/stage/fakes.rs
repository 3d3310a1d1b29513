//! Fakes of the media and inference boundaries with faults that a test can switch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assay::engine::{Answer, Inference, InferenceError, ModelDescription, Prepared, Request, Task};
use assay::media::{Media, MediaError, MediaStore, content_hash};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

/// Objects in memory; can be switched off as a whole, and single objects can hang.
#[derive(Default)]
pub struct MemoryMedia {
    objects: Mutex<HashMap<String, Bytes>>,
    pub down: AtomicBool,
    pub refused: AtomicU64,
}

impl MemoryMedia {
    pub fn with(objects: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Arc<Self> {
        let objects = objects.into_iter().map(|(url, bytes)| (url.to_owned(), bytes.into())).collect();
        Arc::new(Self { objects: Mutex::new(objects), ..Self::default() })
    }
}

#[async_trait]
impl MediaStore for MemoryMedia {
    async fn fetch(&self, url: &str, limit: u64) -> Result<Media, MediaError> {
        if url.ends_with("/stalls") {
            let waited = Duration::from_millis(20);
            tokio::time::sleep(waited).await;
            return Err(MediaError::Stalled { url: url.to_owned(), waited });
        }
        if self.down.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let detail = "503".to_owned();
            return Err(MediaError::Unavailable { url: url.to_owned(), detail, retry_after: None });
        }
        let object = self.objects.lock().unwrap().get(url).cloned();
        let bytes = object.ok_or_else(|| MediaError::NotFound { url: url.to_owned() })?;
        if bytes.len() as u64 > limit {
            return Err(MediaError::TooLarge { url: url.to_owned(), limit });
        }
        Ok(Media { sha256: content_hash(&bytes), bytes })
    }
}

/// Answers with `[tokens of the text, or width of the picture]`; can hold everything back, refuse, or die.
pub struct ScriptedInference {
    models: Vec<ModelDescription>,
    pub held: AtomicBool,
    pub release: Notify,
    pub dead: AtomicBool,
    pub answered: AtomicU64,
}

impl ScriptedInference {
    pub fn new(model: &str) -> Arc<Self> {
        let model = ModelDescription {
            name: model.to_owned(),
            architecture: "Scripted".to_owned(),
            fingerprint: "0123456789abcdef".to_owned(),
            dimensions: 1,
            embeds: true,
            generates: false,
        };
        Arc::new(Self {
            models: vec![model],
            held: AtomicBool::new(false),
            release: Notify::new(),
            dead: AtomicBool::new(false),
            answered: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl Inference for ScriptedInference {
    fn models(&self) -> &[ModelDescription] {
        &self.models
    }

    fn prepare(&self, request: &Request) -> Result<Prepared, InferenceError> {
        let mut inputs = Vec::new();
        for task in &request.tasks {
            inputs.push(match task {
                Task::EmbedText { text, model } if text.contains("unusable") => {
                    return Err(InferenceError::BadInput { model: model.to_string(), detail: "unusable".to_owned() });
                }
                Task::EmbedText { text, .. } if text.contains("panic") => panic!("asked for"),
                Task::EmbedText { text, .. } => text.len() as f32,
                Task::EmbedImage { image, .. } => image.width as f32,
                Task::Generate(_) => panic!("these jobs only embed"),
            });
        }
        Ok(Prepared::new(inputs.len() as u32, Box::new(inputs)))
    }

    async fn infer(&self, prepared: Prepared) -> Result<Answer, InferenceError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(InferenceError::Dead { detail: "unplugged".to_owned() });
        }
        while self.held.load(Ordering::SeqCst) {
            let released = self.release.notified();
            if self.held.load(Ordering::SeqCst) {
                released.await;
            }
        }
        let prompt_tokens = prepared.tokens;
        let inputs = prepared.into_inner().downcast::<Vec<f32>>().expect("made above");
        self.answered.fetch_add(1, Ordering::SeqCst);
        Ok(Answer {
            embeddings: inputs.into_iter().map(|input| vec![input]).collect(),
            texts: Vec::new(),
            prompt_tokens,
            completion_tokens: 0,
            device_seconds: 0.001,
            finish_reason: "embedded",
        })
    }

    fn is_alive(&self) -> bool {
        !self.dead.load(Ordering::SeqCst)
    }
}

/// A PNG of one colour.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb([200, 30, 30]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).expect("PNG can be written");
    bytes.into_inner()
}

/// The start of a PNG that claims to be 60,000 pixels wide and high.
pub fn bomb() -> Vec<u8> {
    let mut bytes = png(1, 1);
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}
