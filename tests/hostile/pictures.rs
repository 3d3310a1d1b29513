//! Files that are no pictures, or pictures that would cost far more than they weigh.

use std::io::Cursor;

use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, GrayImage, ImageFormat, RgbaImage};

use crate::stage::fakes::{bomb, png};

const FORMATS: [(&str, ImageFormat); 6] = [
    ("png", ImageFormat::Png),
    ("jpeg", ImageFormat::Jpeg),
    ("gif", ImageFormat::Gif),
    ("webp", ImageFormat::WebP),
    ("bmp", ImageFormat::Bmp),
    ("tiff", ImageFormat::Tiff),
];

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().into_rgb8().write_to(&mut bytes, format).expect("the format can be written");
    bytes.into_inner()
}

/// A small picture of every format.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let picture =
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(24, 18, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 7])));
    FORMATS.iter().map(|(name, format)| (*name, encode(picture.clone(), *format))).collect()
}

/// Files that must be rejected, by name.
pub fn pictures() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| all.push((name.to_owned(), bytes));
    add("empty", Vec::new());
    add("text", b"this is no picture".to_vec());
    add("page", b"<!DOCTYPE html><img src=x onerror=alert(1)>".to_vec());
    add("drawing", b"<svg xmlns=\"http://www.w3.org/2000/svg\"><image href=\"file:///etc/passwd\"/></svg>".to_vec());
    add("noise", (0..60_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect());
    add("png-that-claims-60000-by-60000", bomb());
    // Real bombs: small files of one colour with more pixels than are allowed.
    let flat = DynamicImage::ImageLuma8(GrayImage::new(6_000, 6_000));
    let mut bytes = Cursor::new(Vec::new());
    flat.write_to(&mut bytes, ImageFormat::Png).expect("PNG can be written");
    add("png-of-36-million-pixels", bytes.into_inner());
    add("gif-of-four-million-pixels", encode(GrayImage::new(2_000, 2_000), ImageFormat::Gif));
    add("one-row-too-wide", encode(GrayImage::new(30_000, 1), ImageFormat::Png));
    for (name, claim) in claims() {
        add(name, claim);
    }
    for (name, sample) in samples() {
        for part in [1, 3] {
            all.push((format!("{name}-cut-after-{part}-quarters"), sample[..sample.len() * part / 4].to_vec()));
        }
        all.push((format!("{name}-first-bytes"), sample[..12].to_vec()));
    }
    // A BMP without its last rows still has a header that promises them; the decoder of a GIF may show what is there.
    all.retain(|(name, _)| name != "gif-cut-after-3-quarters");
    all
}

/// Headers that claim the largest sides of their format.
fn claims() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = samples();
    for (name, bytes) in &mut all {
        match *name {
            "jpeg" => {
                let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).expect("a frame");
                bytes[frame + 5..frame + 9].fill(0xFF);
            }
            "gif" => {
                bytes[6..10].fill(0xFF);
                let frame = bytes.iter().skip(13).position(|byte| *byte == 0x2C).expect("a frame") + 13;
                bytes[frame + 5..frame + 9].fill(0xFF);
            }
            "bmp" => {
                bytes[18..22].copy_from_slice(&i32::MAX.to_le_bytes());
                bytes[22..26].copy_from_slice(&i32::MAX.to_le_bytes());
            }
            "png" => *bytes = bomb(),
            // Sides of the extended header are 24 bits: 16 million by 16 million.
            "webp" => {
                let mut large = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
                large.extend([0xFF; 6]);
                *bytes = large;
            }
            _ => {
                // Tags 256 and 257, width and height, in a little-endian directory.
                for at in 0..bytes.len() - 12 {
                    if bytes[at + 1] == 1 && bytes[at] <= 1 && bytes[at + 3] == 0 && matches!(bytes[at + 2], 3 | 4) {
                        bytes[at + 2..at + 4].copy_from_slice(&[4, 0]);
                        bytes[at + 8..at + 12].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
                    }
                }
            }
        }
    }
    let names = ["png-claim", "jpeg-claim", "gif-claim", "webp-claim", "bmp-claim", "tiff-claim"];
    names.into_iter().zip(all.into_iter().map(|(_, bytes)| bytes)).collect()
}

/// Odd files that are pictures all the same, and must not cost more than their first frame.
pub fn odd_pictures() -> Vec<(String, Vec<u8>)> {
    let mut animation = Vec::new();
    let mut encoder = GifEncoder::new(&mut animation);
    for _ in 0..5_000 {
        encoder.encode_frame(Frame::new(RgbaImage::new(8, 8))).expect("a frame");
    }
    drop(encoder);
    let mut followed = png(9, 9);
    followed.extend(std::iter::repeat_n(b'<', 100_000));
    vec![("gif-of-5000-frames".to_owned(), animation), ("png-with-a-tail".to_owned(), followed)]
}
