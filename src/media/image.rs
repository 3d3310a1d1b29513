//! From bytes to an upright 8-bit RGB picture: the only place where pictures are decoded.
//!
//! The format is told by the first bytes, never by a name. Dimensions and memory are checked from the header before
//! pixels are allocated; a decoder that panics costs one picture, not the worker. Colour profiles are not applied.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::api::{DecodeLimits, MediaError, Picture};
use super::container::{outline_jpeg, outline_webp};

/// Decodes JPEG, PNG, WebP, GIF, BMP or TIFF; of an animation the first frame. EXIF orientation is applied and
/// transparency laid over white.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, MediaError> {
    // The decoders only read `bytes`, and whatever they built is dropped with them.
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, limits)))
        .unwrap_or_else(|_| Err(undecodable("its decoder gave up on it")))
}

fn decode_unguarded(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, MediaError> {
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| failure(error.into()))?;
    let format = reader.format().ok_or_else(|| undecodable("it is no JPEG, PNG, WebP, GIF, BMP or TIFF"))?;
    let surplus = check_container(bytes, format, limits)?;
    let mut allowed = Limits::default();
    allowed.max_alloc = Some(limits.allocation);
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().map_err(failure)?;
    let (width, height) = decoder.dimensions();
    check_dimensions(width, height, limits)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    check_memory(&decoder, orientation, surplus, limits)?;
    let image = DynamicImage::from_decoder(decoder).map_err(failure)?;
    let mut upright = DynamicImage::ImageRgb8(in_rgb(image));
    upright.apply_orientation(orientation);
    let rgb = upright.into_rgb8();
    Ok(Picture { width: rgb.width(), height: rgb.height(), rgb: rgb.into_raw() })
}

/// Checks what the decoder of this format does not; returns the bytes per pixel that it needs beside its output.
fn check_container(bytes: &[u8], format: ImageFormat, limits: &DecodeLimits) -> Result<u64, MediaError> {
    match format {
        ImageFormat::Jpeg => match outline_jpeg(bytes) {
            Some(outline) if !outline.complete => Err(undecodable("the file ends before the picture does")),
            // 16-bit coefficients of up to four components.
            Some(outline) if outline.progressive => Ok(8),
            _ => Ok(0),
        },
        ImageFormat::WebP => {
            let frames = outline_webp(bytes).ok_or_else(|| undecodable("the file ends before the picture does"))?;
            frames.iter().try_for_each(|(width, height)| check_dimensions(*width, *height, limits))?;
            // Planes of a lossy frame, or the canvas of an animation.
            Ok(4)
        }
        // The whole picture once more, in the file's own layout.
        ImageFormat::Tiff => Ok(8),
        _ => Ok(0),
    }
}

fn check_dimensions(width: u32, height: u32, limits: &DecodeLimits) -> Result<(), MediaError> {
    if width == 0 || height == 0 {
        return Err(undecodable("it has no pixels"));
    }
    let pixels = u64::from(width) * u64::from(height);
    if width > limits.side || height > limits.side {
        let detail = format!("{width} x {height} pixels, and a side may have {} at most", limits.side);
        return Err(MediaError::OverLimits { detail });
    }
    if pixels > limits.pixels {
        let detail = format!("{width} x {height} is {pixels} pixels of {} at most", limits.pixels);
        return Err(MediaError::OverLimits { detail });
    }
    Ok(())
}

/// Adds up what decoding, conversion and turning hold at once, at the worst.
fn check_memory(
    decoder: &impl ImageDecoder,
    orientation: Orientation,
    surplus: u64,
    limits: &DecodeLimits,
) -> Result<(), MediaError> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let color = decoder.color_type();
    let conversion = match color {
        ColorType::Rgb8 => 0,
        _ if color.has_alpha() => 4 + 3,
        _ => 3,
    };
    let turning = if is_turned(orientation) { 3 } else { 0 };
    let needed = decoder.total_bytes().saturating_add(pixels * (surplus + conversion + turning));
    if needed > limits.allocation {
        let detail =
            format!("decoding {width} x {height} pixels takes {needed} bytes of {} at most", limits.allocation);
        return Err(MediaError::OverLimits { detail });
    }
    Ok(())
}

fn is_turned(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// The picture in 8-bit RGB; what is RGB already is moved, not copied.
fn in_rgb(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    RgbImage::from_raw(width, height, over_white(rgba.as_raw())).expect("three bytes are made of every four")
}

/// Lays RGBA pixels over white, rounding to the nearest.
fn over_white(rgba: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for &[red, green, blue, alpha] in rgba.as_chunks::<4>().0 {
        let alpha = u32::from(alpha);
        let blend = |color: u8| ((u32::from(color) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        rgb.extend_from_slice(&[blend(red), blend(green), blend(blue)]);
    }
    rgb
}

fn failure(error: ImageError) -> MediaError {
    match error {
        ImageError::Limits(error) => MediaError::OverLimits { detail: error.to_string() },
        error => undecodable(&error.to_string()),
    }
}

fn undecodable(detail: &str) -> MediaError {
    MediaError::Undecodable { detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{GrayAlphaImage, GrayImage, ImageBuffer, Luma, Rgb, Rgba, RgbaImage};
    use proptest::prelude::*;

    const LIMITS: DecodeLimits = DecodeLimits { pixels: 40_000_000, side: 16_384, allocation: 1 << 30 };
    const FORMATS: [ImageFormat; 6] =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff];
    const RED: [u8; 3] = [255, 0, 0];
    const GREEN: [u8; 3] = [0, 255, 0];
    const BLUE: [u8; 3] = [0, 0, 255];
    const BLACK: [u8; 3] = [0, 0, 0];

    /// Four quarters: red and green above, blue and black below.
    fn quarters(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb(match (x < width / 2, y < height / 2) {
                (true, true) => RED,
                (false, true) => GREEN,
                (true, false) => BLUE,
                (false, false) => BLACK,
            })
        })
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn jpeg(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
        bytes
    }

    fn with_exif_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut tiff = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        tiff.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        let length = (tiff.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xFF, 0xE1], &length, &tiff, &jpeg[2..]].concat()
    }

    fn corners(picture: &Picture) -> [[u8; 3]; 4] {
        let pixel = |x: u32, y: u32| -> [u8; 3] {
            let at = ((y * picture.width + x) * 3) as usize;
            // JPEG is lossy; the quarters differ by far more than that.
            [0, 1, 2].map(|channel| if picture.rgb[at + channel] > 127 { 255 } else { 0 })
        };
        let (right, bottom) = (picture.width - 3, picture.height - 3);
        [pixel(2, 2), pixel(right, 2), pixel(2, bottom), pixel(right, bottom)]
    }

    #[test]
    fn every_format_is_told_by_its_bytes_and_decoded() {
        for format in FORMATS {
            let picture = decode(&encode(quarters(32, 16), format), &LIMITS).unwrap();
            assert_eq!((picture.width, picture.height, picture.rgb.len()), (32, 16, 32 * 16 * 3), "{format:?}");
            assert_eq!(corners(&picture), [RED, GREEN, BLUE, BLACK], "{format:?}");
        }
    }

    #[test]
    fn lossless_formats_keep_every_value() {
        let image = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 50, 200]));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff] {
            assert_eq!(&decode(&encode(image.clone(), format), &LIMITS).unwrap().rgb, image.as_raw(), "{format:?}");
        }
    }

    #[test]
    fn exif_orientations_are_turned_upright() {
        let stored = jpeg(&quarters(64, 32));
        let upright = [
            (1, [RED, GREEN, BLUE, BLACK]),
            (2, [GREEN, RED, BLACK, BLUE]),
            (3, [BLACK, BLUE, GREEN, RED]),
            (4, [BLUE, BLACK, RED, GREEN]),
            (5, [RED, BLUE, GREEN, BLACK]),
            (6, [BLUE, RED, BLACK, GREEN]),
            (7, [BLACK, GREEN, BLUE, RED]),
            (8, [GREEN, BLACK, RED, BLUE]),
        ];
        for (orientation, expected) in upright {
            let picture = decode(&with_exif_orientation(&stored, orientation), &LIMITS).unwrap();
            let dimensions = if orientation < 5 { (64, 32) } else { (32, 64) };
            assert_eq!((picture.width, picture.height), dimensions, "{orientation}");
            assert_eq!(corners(&picture), expected, "{orientation}");
        }
    }

    #[test]
    fn senseless_orientations_leave_the_picture_as_it_is() {
        for orientation in [0, 9, 255] {
            let picture = decode(&with_exif_orientation(&jpeg(&quarters(64, 32)), orientation), &LIMITS).unwrap();
            assert_eq!(corners(&picture), [RED, GREEN, BLUE, BLACK]);
        }
    }

    #[test]
    fn transparency_is_laid_over_white_exactly() {
        let pixels = [[10, 200, 255, 255], [10, 200, 255, 0], [0, 0, 0, 128], [10, 200, 255, 51], [1, 2, 3, 254]];
        let image = RgbaImage::from_fn(5, 1, |x, _| Rgba(pixels[x as usize]));
        let expected = [[10, 200, 255], [255, 255, 255], [127, 127, 127], [206, 244, 255], [2, 3, 4]];
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
            let picture = decode(&encode(image.clone(), format), &LIMITS).unwrap();
            assert_eq!(picture.rgb, expected.concat(), "{format:?}");
        }
    }

    #[test]
    fn blending_rounds_to_the_nearest_for_every_color_and_alpha() {
        for (color, alpha) in (0..=255u8).flat_map(|color| (0..=255u8).map(move |alpha| (color, alpha))) {
            let exact = (f64::from(color) * f64::from(alpha) + 255.0 * (255.0 - f64::from(alpha))) / 255.0;
            assert_eq!(over_white(&[color, color, color, alpha]), [exact.round() as u8; 3], "{color} {alpha}");
        }
    }

    #[test]
    fn grey_and_deep_colors_become_eight_bit_rgb() {
        let grey = GrayImage::from_pixel(2, 1, Luma([77]));
        assert_eq!(decode(&encode(grey, ImageFormat::Png), &LIMITS).unwrap().rgb, [77; 6]);
        let deep: ImageBuffer<Luma<u16>, _> = ImageBuffer::from_pixel(1, 1, Luma([0x8000]));
        assert_eq!(decode(&encode(deep, ImageFormat::Png), &LIMITS).unwrap().rgb, [128; 3]);
        let veiled = GrayAlphaImage::from_pixel(1, 1, image::LumaA([0, 128]));
        assert_eq!(decode(&encode(veiled, ImageFormat::Png), &LIMITS).unwrap().rgb, [127; 3]);
        let grey = encode(GrayImage::from_pixel(16, 16, Luma([200])), ImageFormat::Jpeg);
        let picture = decode(&grey, &LIMITS).unwrap();
        assert!(picture.rgb.len() == 16 * 16 * 3 && picture.rgb.iter().all(|value| value.abs_diff(200) < 4));
    }

    #[test]
    fn of_an_animation_the_first_frame_is_taken() {
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for color in [[255, 0, 0, 255], [0, 255, 0, 255]] {
            encoder.encode_frame(image::Frame::new(RgbaImage::from_pixel(4, 4, Rgba(color)))).unwrap();
        }
        drop(encoder);
        assert_eq!(decode(&bytes, &LIMITS).unwrap().rgb, RED.repeat(16));
    }

    fn checksum(bytes: &[u8]) -> [u8; 4] {
        let remainder = bytes.iter().fold(u32::MAX, |remainder, byte| {
            (0..8).fold(remainder ^ u32::from(*byte), |bits, _| (bits >> 1) ^ (0xEDB8_8320 & (bits & 1).wrapping_neg()))
        });
        (!remainder).to_be_bytes()
    }

    fn png_that_declares(side: u32) -> Vec<u8> {
        let mut bytes = encode(quarters(8, 8), ImageFormat::Png);
        bytes[16..20].copy_from_slice(&side.to_be_bytes());
        bytes[20..24].copy_from_slice(&side.to_be_bytes());
        let sum = checksum(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&sum);
        bytes
    }

    #[test]
    fn bombs_are_refused_by_their_header() {
        let mut gif = encode(quarters(8, 8), ImageFormat::Gif);
        gif[6..10].fill(0xFF);
        let mut bmp = encode(quarters(8, 8), ImageFormat::Bmp);
        bmp[18..22].copy_from_slice(&60_000i32.to_le_bytes());
        bmp[22..26].copy_from_slice(&60_000i32.to_le_bytes());
        for (name, bomb) in [("png", png_that_declares(60_000)), ("gif", gif), ("bmp", bmp)] {
            let result = decode(&bomb, &LIMITS);
            assert!(matches!(result, Err(MediaError::OverLimits { .. })), "{name}: {result:?}");
        }
        // Sides in bounds, but 225 million pixels.
        let error = decode(&png_that_declares(15_000), &LIMITS).unwrap_err();
        assert!(error.to_string().contains("225000000 pixels of 40000000"), "{error}");
    }

    #[test]
    fn each_limit_counts_on_its_own() {
        let bytes = jpeg(&quarters(64, 32));
        let is_over = |limits| matches!(decode(&bytes, &limits), Err(MediaError::OverLimits { .. }));
        assert!(is_over(DecodeLimits { side: 63, ..LIMITS }));
        assert!(is_over(DecodeLimits { pixels: 64 * 32 - 1, ..LIMITS }));
        assert!(is_over(DecodeLimits { allocation: 64 * 32 * 3 - 1, ..LIMITS }));
        assert!(!is_over(DecodeLimits { side: 64, pixels: 64 * 32, allocation: 64 * 32 * 3 }));
    }

    #[test]
    fn truncated_files_are_undecodable() {
        for format in FORMATS {
            let bytes = encode(quarters(64, 64), format);
            for length in [bytes.len() / 2, bytes.len() * 3 / 4, 16] {
                let result = decode(&bytes[..length], &LIMITS);
                assert!(matches!(result, Err(MediaError::Undecodable { .. })), "{format:?} {length}: {result:?}");
            }
        }
    }

    #[test]
    fn what_is_no_picture_is_undecodable() {
        for bytes in [&b""[..], &[0; 64], b"<svg/>", b"GIF", b"RIFF\0\0\0\0WEBP", b"\xFF\xD8\xFF"] {
            let result = decode(bytes, &LIMITS);
            assert!(matches!(result, Err(MediaError::Undecodable { .. })), "{bytes:?}: {result:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn mutated_pictures_give_a_picture_within_limits_or_an_error(
            format in 0..FORMATS.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            keep in any::<prop::sample::Index>(),
            truncate in any::<bool>(),
        ) {
            let limits = DecodeLimits { pixels: 1 << 20, side: 2048, allocation: 16 << 20 };
            let mut bytes = encode(quarters(32, 16), FORMATS[format]);
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if truncate {
                bytes.truncate(keep.index(bytes.len()));
            }
            if let Ok(picture) = decode(&bytes, &limits) {
                let pixels = u64::from(picture.width) * u64::from(picture.height);
                prop_assert!(pixels <= limits.pixels && picture.rgb.len() as u64 == pixels * 3);
            }
        }

        #[test]
        fn random_bytes_never_get_out_of_hand(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(decode(&bytes, &LIMITS).is_err());
        }
    }
}
