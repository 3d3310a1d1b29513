//! Draws one thing as a picture: its outline in a colour and a pattern, shaded, before a cluttered background.
//!
//! This file knows nothing of assets or texts. A [`Scene`] always gives the same pixels.

use image::ExtendedColorType;
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tiny_skia::{
    Color, FillRule, FilterQuality, GradientStop, LineCap, LinearGradient, Paint, Path, PathBuilder, Pattern, Pixmap,
    Point, Rect, Shader, SpreadMode, Stroke, Transform,
};

use super::silhouette::{self, Part, Tone};

/// What a picture shows, and the seed of everything that is left to chance.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    pub(super) silhouette: &'static str,
    pub(super) colour: [u8; 3],
    pub(super) pattern: &'static str,
    /// A detail is drawn larger than the frame.
    pub(super) close: bool,
    pub(super) seed: u64,
}

/// How the pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// With this quality, 1 to 100.
    Jpeg(u8),
    Png,
    /// Lossless.
    WebP,
}

impl Encoding {
    /// The end of a file name, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg(_) => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }
}

/// A picture that belongs to an asset; drawn only when its bytes are asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// File name, unique within a catalogue.
    pub name: String,
    /// `main`, `detail` or `creative`.
    pub role: &'static str,
    pub scene: Scene,
    pub encoding: Encoding,
}

impl Picture {
    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        let pixmap = self.scene.draw();
        let (width, height) = (pixmap.width(), pixmap.height());
        let pixels: Vec<u8> = pixmap.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        let mut bytes = Vec::new();
        let kind = ExtendedColorType::Rgb8;
        let written = match self.encoding {
            Encoding::Jpeg(quality) => {
                JpegEncoder::new_with_quality(&mut bytes, quality).write_image(&pixels, width, height, kind)
            }
            Encoding::Png => PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
                .write_image(&pixels, width, height, kind),
            Encoding::WebP => WebPEncoder::new_lossless(&mut bytes).write_image(&pixels, width, height, kind),
        };
        written.expect("a buffer in memory takes every picture of at most 320 pixels a side");
        bytes
    }
}

impl Scene {
    fn draw(&self) -> Pixmap {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let width = random.random_range(160..=320);
        let height = (width as f32 * random.random_range(0.85..1.15)).clamp(160.0, 320.0) as u32;
        let mut pixmap = Pixmap::new(width, height).expect("neither side is zero");
        background(&mut pixmap, &mut random);
        let place = self.place(width as f32, height as f32, &mut random);
        shadow(&mut pixmap, place);
        let tile = tile(self.pattern, self.colour);
        for part in silhouette::parts(self.silhouette) {
            self.paint(&mut pixmap, part, &tile, place);
        }
        if random.random_bool(0.12) {
            badge(&mut pixmap, &mut random);
        }
        pixmap
    }

    /// From the outline's square to pixels.
    fn place(&self, width: f32, height: f32, random: &mut ChaCha8Rng) -> Transform {
        let share = if self.close { random.random_range(1.15..1.4) } else { random.random_range(0.72..0.92) };
        let scale = width.min(height) / 200.0 * share;
        let mirrored = if random.random_bool(0.5) { -scale } else { scale };
        let slack = 0.05 * width.min(height);
        let (right, down) = (random.random_range(-slack..slack), random.random_range(-slack..slack));
        Transform::from_scale(mirrored, scale * random.random_range(0.93..1.07))
            .post_concat(Transform::from_rotate(random.random_range(-14.0..14.0)))
            .post_translate(width / 2.0 + right, height / 2.0 + down)
    }

    fn paint(&self, pixmap: &mut Pixmap, part: &Part, tile: &Pixmap, place: Transform) {
        let flat = match part.tone {
            Tone::Body | Tone::Tint => self.colour,
            Tone::Dark => mixed(self.colour, [0, 0, 0], 0.3),
            Tone::Light => mixed(self.colour, [255, 255, 255], 0.35),
            Tone::Fixed(colour) => colour,
        };
        let mut paint = solid(flat, 255);
        if let Some(width) = part.stroke {
            let stroke = Stroke { width, line_cap: LineCap::Round, ..Stroke::default() };
            pixmap.stroke_path(&part.path, &paint, &stroke, place, None);
            return;
        }
        if part.tone == Tone::Body && self.pattern != "plain" {
            let size = Transform::from_scale(CELL / TILE as f32, CELL / TILE as f32);
            paint.shader = Pattern::new(tile.as_ref(), SpreadMode::Repeat, FilterQuality::Bilinear, 1.0, size);
        }
        pixmap.fill_path(&part.path, &paint, FillRule::EvenOdd, place, None);
        if !matches!(part.tone, Tone::Fixed(_)) {
            shade(pixmap, &part.path, place);
        }
    }
}

/// Side of a pattern's tile in its own pixels.
const TILE: u32 = 48;
/// Side of a pattern's tile on the outline's square.
const CELL: f32 = 48.0;

fn solid(colour: [u8; 3], alpha: u8) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(colour[0], colour[1], colour[2], alpha);
    paint
}

fn mixed(colour: [u8; 3], other: [u8; 3], share: f32) -> [u8; 3] {
    std::array::from_fn(|channel| {
        (f32::from(colour[channel]) * (1.0 - share) + f32::from(other[channel]) * share) as u8
    })
}

fn gradient(from: Point, to: Point, first: Color, last: Color) -> Shader<'static> {
    let stops = vec![GradientStop::new(0.0, first), GradientStop::new(1.0, last)];
    LinearGradient::new(from, to, stops, SpreadMode::Pad, Transform::identity()).unwrap_or(Shader::SolidColor(first))
}

fn background(pixmap: &mut Pixmap, random: &mut ChaCha8Rng) {
    let (width, height) = (pixmap.width() as f32, pixmap.height() as f32);
    let base = if random.random_bool(0.8) { random.random_range(190..240) } else { random.random_range(120..165) };
    let mut tone = || -> [u8; 3] { std::array::from_fn(|_| (base + random.random_range(-14..=14)) as u8) };
    let colours = [tone(), tone()].map(|tone| Color::from_rgba8(tone[0], tone[1], tone[2], 255));
    let bottom = Point::from_xy(0.0, height);
    let paint =
        Paint { shader: gradient(Point::from_xy(0.0, 0.0), bottom, colours[0], colours[1]), ..Paint::default() };
    if let Some(area) = Rect::from_xywh(0.0, 0.0, width, height) {
        pixmap.fill_rect(area, &paint, Transform::identity(), None);
    }
    for _ in 0..random.random_range(0..5) {
        let colour: [u8; 3] = std::array::from_fn(|_| random.random());
        let paint = solid(colour, random.random_range(20..70));
        let size = random.random_range(0.08..0.3) * width;
        let (x, y) = (random.random_range(-size..width), random.random_range(-size..height));
        let area = Rect::from_xywh(x, y, size * random.random_range(0.5..1.5), size);
        let shape = area.and_then(|area| match random.random_bool(0.5) {
            true => PathBuilder::from_oval(area),
            false => Some(PathBuilder::from_rect(area)),
        });
        if let Some(path) = shape {
            pixmap.fill_path(&path, &paint, FillRule::Winding, Transform::identity(), None);
        }
    }
}

fn shadow(pixmap: &mut Pixmap, place: Transform) {
    let area = Rect::from_ltrb(-84.0, 82.0, 92.0, 108.0);
    if let Some(path) = area.and_then(PathBuilder::from_oval) {
        pixmap.fill_path(&path, &solid([0, 0, 0], 34), FillRule::Winding, place, None);
    }
}

fn tile(pattern: &str, colour: [u8; 3]) -> Pixmap {
    let side = TILE as f32;
    let mut tile = Pixmap::new(TILE, TILE).expect("a tile has pixels");
    tile.fill(Color::from_rgba8(colour[0], colour[1], colour[2], 255));
    let luminance = 0.3 * f32::from(colour[0]) + 0.59 * f32::from(colour[1]) + 0.11 * f32::from(colour[2]);
    let ink = solid(if luminance > 150.0 { [52, 50, 56] } else { [250, 246, 234] }, 255);
    let rectangle =
        |x: f32, y: f32, width: f32, height: f32| Rect::from_xywh(x * side, y * side, width * side, height * side);
    let areas = match pattern {
        "striped" => vec![rectangle(0.0, 0.0, 1.0, 0.4)],
        "checked" => vec![rectangle(0.0, 0.0, 0.5, 0.5), rectangle(0.5, 0.5, 0.5, 0.5)],
        _ => Vec::new(),
    };
    for area in areas.into_iter().flatten() {
        tile.fill_rect(area, &ink, Transform::identity(), None);
    }
    let middle = side / 2.0;
    if let ("dotted", Some(dot)) = (pattern, PathBuilder::from_circle(middle, middle, side * 0.28)) {
        tile.fill_path(&dot, &ink, FillRule::Winding, Transform::identity(), None);
    }
    if pattern == "zigzag" {
        let mut line = PathBuilder::new();
        line.move_to(-middle, side * 0.2);
        for (corner, y) in [0.8, 0.2, 0.8, 0.2].into_iter().enumerate() {
            line.line_to(corner as f32 * middle, side * y);
        }
        let stroke = Stroke { width: side * 0.22, ..Stroke::default() };
        if let Some(path) = line.finish() {
            tile.stroke_path(&path, &ink, &stroke, Transform::identity(), None);
        }
    }
    tile
}

/// Light from the upper left and a thin edge, so that a white thing shows before a white wall.
fn shade(pixmap: &mut Pixmap, path: &Path, place: Transform) {
    let (first, last) = (Color::from_rgba8(255, 255, 255, 46), Color::from_rgba8(0, 0, 0, 66));
    let shader = gradient(Point::from_xy(-80.0, -90.0), Point::from_xy(80.0, 90.0), first, last);
    let paint = Paint { shader, anti_alias: true, ..Paint::default() };
    pixmap.fill_path(path, &paint, FillRule::EvenOdd, place, None);
    let edge = Stroke { width: 2.5, ..Stroke::default() };
    pixmap.stroke_path(path, &solid([20, 20, 24], 130), &edge, place, None);
}

/// A sticker in a corner, as shops put on their pictures.
fn badge(pixmap: &mut Pixmap, random: &mut ChaCha8Rng) {
    let (width, height) = (pixmap.width() as f32, pixmap.height() as f32);
    let radius = 0.09 * width;
    let x = if random.random_bool(0.5) { radius * 1.3 } else { width - radius * 1.3 };
    let colours = [[222, 40, 60], [30, 130, 90], [30, 80, 180]];
    let colour = colours[random.random_range(0..colours.len())];
    let y = if random.random_bool(0.7) { radius * 1.3 } else { height - radius * 1.3 };
    for (share, paint) in [(1.0, solid(colour, 255)), (0.45, solid([255, 255, 255], 255))] {
        if let Some(path) = PathBuilder::from_circle(x, y, radius * share) {
            pixmap.fill_path(&path, &paint, FillRule::Winding, Transform::identity(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(pattern: &'static str) -> Scene {
        Scene { silhouette: "shirt", colour: [206, 32, 38], pattern, close: false, seed: 7 }
    }

    #[test]
    fn a_scene_always_gives_the_same_pixels_and_another_seed_gives_others() {
        assert_eq!(scene("striped").draw(), scene("striped").draw());
        assert_ne!(scene("striped").draw(), Scene { seed: 8, ..scene("striped") }.draw());
    }

    #[test]
    fn every_pattern_changes_the_picture() {
        let plain = scene("plain").draw();
        for pattern in ["striped", "dotted", "checked", "zigzag"] {
            assert_ne!(scene(pattern).draw(), plain, "{pattern}");
        }
    }

    #[test]
    fn the_middle_of_a_plain_thing_has_its_colour() {
        let pixmap = scene("plain").draw();
        let pixel = pixmap.pixel(pixmap.width() / 2, pixmap.height() / 2).unwrap();
        assert!(pixel.red() > 140 && pixel.green() < 90 && pixel.blue() < 90, "{pixel:?}");
    }

    #[test]
    fn every_encoding_decodes_to_the_same_size() {
        let scene = scene("dotted");
        let size = (scene.draw().width(), scene.draw().height());
        for encoding in [Encoding::Jpeg(80), Encoding::Png, Encoding::WebP] {
            let picture = Picture { name: "x".into(), role: "main", scene: scene.clone(), encoding };
            let bytes = std::io::Cursor::new(picture.encode());
            let decoded = image::ImageReader::new(bytes).with_guessed_format().unwrap().decode().unwrap();
            assert_eq!((decoded.width(), decoded.height()), size);
        }
    }
}
