//! The picture of a thing: turned, lit, half hidden, before clutter, with a badge, and stored with losses.
//!
//! It knows outlines, surfaces and lettering, no texts. A [`Photo`] always gives the same bytes. Invariant: the mask shows
//! exactly where the thing is seen, so nothing that hides it belongs to it.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tiny_skia::{BlendMode, FillRule, LineCap, Paint, Path, PathBuilder, Pixmap, Point, Rect, Stroke, Transform};

use super::super::silhouette::{self, Part, Tone};
use super::facts::Finish;
use super::lettering::outline;
use super::surface::{Covering, finish, mixed, sheen, solid};

/// What a picture shows, and the seed of everything that is left to chance.
#[derive(Debug, Clone, PartialEq)]
pub struct Photo {
    /// File name, unique within a catalogue; always a JPEG.
    pub name: String,
    /// `main`, `detail` or `creative`.
    pub role: &'static str,
    pub(super) silhouette: &'static str,
    pub(super) colour: [u8; 3],
    pub(super) pattern: &'static str,
    pub(super) finish: Finish,
    pub(super) badge: Option<String>,
    /// A detail is drawn larger than the frame.
    pub(super) is_close: bool,
    pub(super) seed: u64,
}

impl Photo {
    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let Canvas { mut pixels, mut random, .. } = self.draw();
        light(&mut pixels, &mut random);
        let rgb: Vec<u8> = pixels.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        let quality = random.random_range(35..=95);
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, quality)
            .write_image(&rgb, pixels.width(), pixels.height(), ExtendedColorType::Rgb8)
            .expect("a buffer in memory takes every picture of at most 320 pixels a side");
        bytes
    }

    /// Where the thing is seen: a PNG of the same size, white on black.
    pub fn mask(&self) -> Vec<u8> {
        let Canvas { mask, .. } = self.draw();
        let seen: Vec<u8> = mask.pixels().iter().map(|pixel| if pixel.alpha() > 127 { 255 } else { 0 }).collect();
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
            .write_image(&seen, mask.width(), mask.height(), ExtendedColorType::L8)
            .expect("a buffer in memory takes every picture of at most 320 pixels a side");
        bytes
    }

    fn draw(&self) -> Canvas {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let width = random.random_range(160..=288);
        let height = (f64::from(width) * random.random_range(0.85..1.15)).clamp(160.0, 288.0) as u32;
        let blank = || Pixmap::new(width, height).expect("neither side is zero");
        let mut canvas = Canvas { pixels: blank(), mask: blank(), random };
        canvas.backdrop();
        let place = canvas.place(self.is_close);
        canvas.shadow(place);
        let covering = Covering::new(self.pattern, self.colour, &mut canvas.random);
        for part in silhouette::parts(self.silhouette) {
            self.paint(&mut canvas, part, covering.as_ref(), place);
        }
        if canvas.random.random_bool(0.2) && !self.is_close {
            canvas.occlude(place);
        }
        if let Some(word) = &self.badge {
            canvas.badge(word);
        }
        canvas
    }

    fn paint(&self, canvas: &mut Canvas, part: &Part, covering: Option<&Covering>, place: Transform) {
        let flat = match part.tone {
            Tone::Body | Tone::Tint => self.colour,
            Tone::Dark => mixed(self.colour, [0, 0, 0], 0.28),
            Tone::Light => mixed(self.colour, [255, 255, 255], 0.3),
            Tone::Fixed(colour) => colour,
        };
        let white = solid([255, 255, 255], 255);
        if let Some(width) = part.stroke {
            let stroke = Stroke { width, line_cap: LineCap::Round, ..Stroke::default() };
            canvas.pixels.stroke_path(&part.path, &solid(flat, 255), &stroke, place, None);
            canvas.mask.stroke_path(&part.path, &white, &stroke, place, None);
            return;
        }
        let paint = match covering {
            Some(covering) if part.tone == Tone::Body => covering.paint(),
            _ => solid(flat, 255),
        };
        canvas.pixels.fill_path(&part.path, &paint, FillRule::EvenOdd, place, None);
        canvas.mask.fill_path(&part.path, &white, FillRule::EvenOdd, place, None);
        if !matches!(part.tone, Tone::Fixed(_)) {
            finish(&mut canvas.pixels, &part.path, place, self.finish);
            // A thin edge, so that a white thing shows before a white wall.
            let edge = Stroke { width: 2.5, ..Stroke::default() };
            canvas.pixels.stroke_path(&part.path, &solid([20, 20, 24], 130), &edge, place, None);
        }
    }
}

/// A picture under work.
struct Canvas {
    pixels: Pixmap,
    mask: Pixmap,
    random: ChaCha8Rng,
}

impl Canvas {
    fn size(&self) -> (f32, f32) {
        (self.pixels.width() as f32, self.pixels.height() as f32)
    }

    /// A wall in some light or dark tone, and two to nine shapes in any colour on it.
    fn backdrop(&mut self) {
        let (width, height) = self.size();
        let random = &mut self.random;
        let base: i32 = match random.random_range(0..10) {
            0..=5 => random.random_range(185..238),
            6..=8 => random.random_range(110..170),
            _ => random.random_range(50..90),
        };
        let tone: [u8; 3] = std::array::from_fn(|_| (base + random.random_range(-14..=14)) as u8);
        self.pixels.fill(tiny_skia::Color::from_rgba8(tone[0], tone[1], tone[2], 255));
        for _ in 0..random.random_range(2..10) {
            let colour: [u8; 3] = std::array::from_fn(|_| random.random());
            let paint = solid(colour, random.random_range(40..150));
            let size = random.random_range(0.06..0.28) * width;
            let (x, y) = (random.random_range(-size..width), random.random_range(-size..height));
            if let Some(path) = shape((x, y, size), random) {
                let turn = Transform::from_rotate_at(random.random_range(0.0..90.0), x, y);
                self.pixels.fill_path(&path, &paint, FillRule::Winding, turn, None);
            }
        }
    }

    /// From the outline's square to pixels: scaled, mirrored, turned by up to 28 degrees, shifted.
    fn place(&mut self, is_close: bool) -> Transform {
        let (width, height) = self.size();
        let random = &mut self.random;
        let share = if is_close { random.random_range(1.15..1.4) } else { random.random_range(0.6..0.9) };
        let side = width.min(height);
        let scale = side / 200.0 * share;
        let mirrored = if random.random_bool(0.5) { -scale } else { scale };
        let slack = side * (1.0 - share).max(0.04) * 0.3;
        let (right, down) = (random.random_range(-slack..slack), random.random_range(-slack..slack));
        Transform::from_scale(mirrored, scale * random.random_range(0.92..1.08))
            .post_concat(Transform::from_rotate(random.random_range(-28.0..28.0)))
            .post_translate(width / 2.0 + right, height / 2.0 + down)
    }

    fn shadow(&mut self, place: Transform) {
        let area = Rect::from_ltrb(-84.0, 80.0, 92.0, 108.0);
        if let Some(path) = area.and_then(PathBuilder::from_oval) {
            self.pixels.fill_path(&path, &solid([0, 0, 0], 36), FillRule::Winding, place, None);
        }
    }

    /// Something stands before the thing, at its rim, and hides up to about a fifth of it.
    fn occlude(&mut self, place: Transform) {
        let random = &mut self.random;
        let angle: f32 = random.random_range(0.0..std::f32::consts::TAU);
        let (x, y) = (angle.cos() * 88.0, angle.sin() * 88.0);
        let size = random.random_range(44.0..78.0);
        let tone = random.random_range(60..220);
        let Some(path) = shape((x - size / 2.0, y - size / 2.0, size), random) else { return };
        self.pixels.fill_path(&path, &solid([tone, tone, tone], 255), FillRule::Winding, place, None);
        let from_left =
            sheen(Point::from_xy(x - size, y), Point::from_xy(x + size, y), &[(0.0, 255, 60), (1.0, 0, 90)]);
        self.pixels.fill_path(&path, &from_left, FillRule::Winding, place, None);
        self.hide(&path, place);
    }

    /// Takes what lies under the path out of the mask.
    fn hide(&mut self, path: &Path, place: Transform) {
        let paint = Paint { blend_mode: BlendMode::Clear, ..Paint::default() };
        self.mask.fill_path(path, &paint, FillRule::Winding, place, None);
    }

    /// A word on a plate in a corner, a little turned.
    fn badge(&mut self, word: &str) {
        let (width, height) = self.size();
        let Some((letters, long, high)) = outline(word) else { return };
        let random = &mut self.random;
        let cell = (width * random.random_range(0.28..0.4) / long).min(width * 0.016);
        let (half, tall) = (long * cell / 2.0 + 2.2 * cell, high * cell / 2.0 + 2.0 * cell);
        let x = if random.random_bool(0.5) { half + 4.0 } else { width - half - 4.0 };
        let y = if random.random_bool(0.6) { tall + 6.0 } else { height - tall - 6.0 };
        let plates = [[220, 30, 50], [20, 120, 80], [24, 70, 170], [250, 205, 30], [20, 20, 24], [250, 250, 250]];
        let plate: [u8; 3] = plates[random.random_range(0..plates.len())];
        let ink =
            if plate.iter().map(|channel| u32::from(*channel)).sum::<u32>() > 380 { [24, 24, 28] } else { [255; 3] };
        let turned = Transform::from_rotate(random.random_range(-10.0..10.0)).post_translate(x, y);
        if let Some(area) = Rect::from_ltrb(-half, -tall, half, tall).map(PathBuilder::from_rect) {
            self.pixels.fill_path(&area, &solid(plate, 255), FillRule::Winding, turned, None);
            self.hide(&area, turned);
        }
        let lettered = Transform::from_scale(cell, cell).post_concat(turned);
        self.pixels.fill_path(&letters, &solid(ink, 255), FillRule::Winding, lettered, None);
    }
}

/// A round or square thing with its upper left corner and size.
fn shape((x, y, size): (f32, f32, f32), random: &mut ChaCha8Rng) -> Option<Path> {
    let area = Rect::from_xywh(x, y, size * random.random_range(0.6..1.5), size)?;
    match random.random_bool(0.5) {
        true => PathBuilder::from_oval(area),
        false => Some(PathBuilder::from_rect(area)),
    }
}

/// Brighter on one side than on the other, and the noise of a small sensor.
fn light(pixels: &mut Pixmap, random: &mut ChaCha8Rng) {
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let middle: f32 = random.random_range(0.88..1.1);
    let (across, down): (f32, f32) = (random.random_range(-0.12..0.12), random.random_range(-0.12..0.12));
    let noise: i32 = random.random_range(0..9);
    let mut grains = SmallNoise(random.random());
    for (at, pixel) in pixels.data_mut().chunks_exact_mut(4).enumerate() {
        let (x, y) = ((at % width) as f32 / width as f32 - 0.5, (at / width) as f32 / height as f32 - 0.5);
        let brightness = ((middle + across * x + down * y) * 256.0) as i32;
        let grain = grains.next(noise);
        for channel in &mut pixel[..3] {
            *channel = (((i32::from(*channel) * brightness) >> 8) + grain).clamp(0, 255) as u8;
        }
    }
}

/// Noise that costs a few instructions a pixel (xorshift): nobody depends on how random it is.
struct SmallNoise(u32);

impl SmallNoise {
    fn next(&mut self, most: i32) -> i32 {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 16) as i32 % (2 * most + 1) - most
    }
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageReader};

    use super::*;

    fn photo(pattern: &'static str) -> Photo {
        Photo {
            name: "a.jpg".into(),
            role: "main",
            silhouette: "shirt",
            colour: [208, 30, 36],
            pattern,
            finish: Finish::Cloth,
            badge: None,
            is_close: false,
            seed: 7,
        }
    }

    fn read(bytes: Vec<u8>) -> DynamicImage {
        ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().unwrap().decode().unwrap()
    }

    #[test]
    fn a_photo_always_gives_the_same_bytes_and_another_seed_gives_others() {
        assert_eq!(photo("striped").encode(), photo("striped").encode());
        assert_ne!(photo("striped").encode(), Photo { seed: 8, ..photo("striped") }.encode());
    }

    #[test]
    fn every_pattern_and_finish_and_badge_changes_the_picture() {
        let plain = photo("plain").encode();
        for pattern in ["striped", "dotted", "checked", "zigzag", "marbled"] {
            assert_ne!(photo(pattern).encode(), plain, "{pattern}");
        }
        for finish in [Finish::Matte, Finish::Wood, Finish::Glossy, Finish::Metal] {
            assert_ne!(Photo { finish, ..photo("plain") }.encode(), plain, "{finish:?}");
        }
        assert_ne!(Photo { badge: Some("SALE".into()), ..photo("plain") }.encode(), plain);
    }

    #[test]
    fn under_the_mask_most_of_a_plain_thing_has_its_colour() {
        for seed in 0..12 {
            let photo = Photo { seed, ..photo("plain") };
            let (picture, mask) = (read(photo.encode()).to_rgb8(), read(photo.mask()).to_luma8());
            assert_eq!(picture.dimensions(), mask.dimensions());
            let seen = || picture.pixels().zip(mask.pixels()).filter(|(_, mask)| mask.0[0] > 0);
            let is_red = |[red, green, blue]: [u8; 3]| red / 2 > green && red / 2 > blue;
            let red = seen().filter(|(pixel, _)| is_red(pixel.0)).count();
            assert!(seen().count() > 1000 && red * 10 > seen().count() * 8, "{red} of {} in {seed}", seen().count());
        }
    }
}
