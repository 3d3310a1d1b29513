//! What covers a thing: its pattern in its colour, and how its material answers light.
//!
//! It draws tiles and overlays, no outlines. Invariant: a pattern's ink covers at most 45 % of the surface, so that the
//! colour of the thing stays the one that is seen most.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tiny_skia::{
    Color, FillRule, FilterQuality, GradientStop, LinearGradient, Paint, Path, PathBuilder, Pattern, Pixmap, Point,
    Rect, SpreadMode, Stroke, Transform,
};

use super::facts::Finish;

/// Side of a pattern's tile in its own pixels.
const TILE: u32 = 48;
/// Side of the tile of marble, which must not repeat on one thing.
const SLAB: u32 = 320;

pub(super) fn solid(colour: [u8; 3], alpha: u8) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(colour[0], colour[1], colour[2], alpha);
    paint
}

pub(super) fn mixed(colour: [u8; 3], other: [u8; 3], share: f32) -> [u8; 3] {
    std::array::from_fn(|channel| {
        (f32::from(colour[channel]) * (1.0 - share) + f32::from(other[channel]) * share) as u8
    })
}

/// A gradient of black or white, given as lightness and alpha at each place.
pub(super) fn sheen(from: Point, to: Point, stops: &[(f32, u8, u8)]) -> Paint<'static> {
    let stops = stops
        .iter()
        .map(|(at, light, alpha)| GradientStop::new(*at, Color::from_rgba8(*light, *light, *light, *alpha)));
    let shader = LinearGradient::new(from, to, stops.collect(), SpreadMode::Pad, Transform::identity());
    Paint { shader: shader.unwrap_or(tiny_skia::Shader::SolidColor(Color::TRANSPARENT)), ..Paint::default() }
}

/// The tile of a pattern, and how it lies on the outline's square.
pub(super) struct Covering {
    tile: Pixmap,
    lie: Transform,
}

impl Covering {
    /// None for a plain surface.
    pub(super) fn new(pattern: &str, colour: [u8; 3], random: &mut ChaCha8Rng) -> Option<Self> {
        let luminance = 0.3 * f32::from(colour[0]) + 0.59 * f32::from(colour[1]) + 0.11 * f32::from(colour[2]);
        let ink = if luminance > 130.0 { [40, 38, 46] } else { [250, 247, 238] };
        let is_slab = pattern == "marbled";
        let side = if is_slab { SLAB } else { TILE };
        let mut tile = Pixmap::new(side, side)?;
        tile.fill(Color::from_rgba8(colour[0], colour[1], colour[2], 255));
        match pattern {
            "striped" | "checked" => blocks(&mut tile, pattern, ink),
            "dotted" => dot(&mut tile, ink),
            "zigzag" => zigzag(&mut tile, ink),
            "marbled" => veins(&mut tile, ink, random),
            _ => return None,
        }
        let size = random.random_range(0.6..0.95);
        let turn = random.random_range(-20.0..20.0);
        // A slab has its middle where the thing has it, so that its seams lie outside.
        let middle = if is_slab { -(SLAB as f32) / 2.0 } else { 0.0 };
        let (right, down) = (random.random_range(-24.0..24.0), random.random_range(-24.0..24.0));
        let lie = Transform::from_translate(middle, middle)
            .post_scale(size, size)
            .post_concat(Transform::from_rotate(turn))
            .post_translate(right, down);
        Some(Self { tile, lie })
    }

    pub(super) fn paint(&self) -> Paint<'_> {
        let shader = Pattern::new(self.tile.as_ref(), SpreadMode::Repeat, FilterQuality::Bilinear, 1.0, self.lie);
        Paint { shader, anti_alias: true, ..Paint::default() }
    }
}

fn blocks(tile: &mut Pixmap, pattern: &str, ink: [u8; 3]) {
    let side = TILE as f32;
    let areas = match pattern {
        "striped" => vec![Rect::from_xywh(0.0, 0.0, side, side * 0.4)],
        _ => vec![
            Rect::from_xywh(0.0, 0.0, side * 0.47, side * 0.47),
            Rect::from_xywh(side * 0.5, side * 0.5, side * 0.47, side * 0.47),
        ],
    };
    for area in areas.into_iter().flatten() {
        tile.fill_rect(area, &solid(ink, 255), Transform::identity(), None);
    }
}

fn dot(tile: &mut Pixmap, ink: [u8; 3]) {
    let middle = TILE as f32 / 2.0;
    if let Some(dot) = PathBuilder::from_circle(middle, middle, middle * 0.6) {
        tile.fill_path(&dot, &solid(ink, 255), FillRule::Winding, Transform::identity(), None);
    }
}

fn zigzag(tile: &mut Pixmap, ink: [u8; 3]) {
    let side = TILE as f32;
    let mut line = PathBuilder::new();
    line.move_to(-side / 2.0, side * 0.2);
    for (corner, y) in [0.8, 0.2, 0.8, 0.2].into_iter().enumerate() {
        line.line_to(corner as f32 * side / 2.0, side * y);
    }
    let stroke = Stroke { width: side * 0.2, ..Stroke::default() };
    if let Some(path) = line.finish() {
        tile.stroke_path(&path, &solid(ink, 255), &stroke, Transform::identity(), None);
    }
}

/// Wavy lines that wander, cross and change their width.
fn veins(tile: &mut Pixmap, ink: [u8; 3], random: &mut ChaCha8Rng) {
    let side = SLAB as f32;
    for _ in 0..random.random_range(9..14) {
        let mut line = PathBuilder::new();
        let (mut x, mut y) = (random.random_range(-20.0..side), -10.0);
        line.move_to(x, y);
        while y < side {
            let bend = (x + random.random_range(-46.0..46.0), y + random.random_range(6.0..24.0));
            (x, y) = (x + random.random_range(-34.0..40.0), bend.1 + random.random_range(6.0..24.0));
            line.quad_to(bend.0, bend.1, x, y);
        }
        let stroke = Stroke { width: random.random_range(1.5..7.0), ..Stroke::default() };
        if let Some(path) = line.finish() {
            tile.stroke_path(&path, &solid(ink, random.random_range(150..255)), &stroke, Transform::identity(), None);
        }
    }
}

/// Lays the light that a finish throws back over a part that is already painted.
pub(super) fn finish(pixmap: &mut Pixmap, path: &Path, place: Transform, finish: Finish) {
    let (from, to) = (Point::from_xy(-80.0, -90.0), Point::from_xy(80.0, 90.0));
    let paint = match finish {
        Finish::Matte => sheen(from, to, &[(0.0, 255, 34), (1.0, 0, 56)]),
        Finish::Cloth | Finish::Wood => sheen(from, to, &[(0.0, 255, 22), (1.0, 0, 46)]),
        Finish::Glossy => sheen(from, to, &[(0.0, 255, 50), (0.3, 255, 120), (0.36, 255, 10), (1.0, 0, 60)]),
        Finish::Metal => sheen(
            from,
            to,
            &[(0.0, 0, 34), (0.25, 255, 96), (0.42, 0, 24), (0.6, 255, 80), (0.8, 0, 44), (1.0, 255, 20)],
        ),
    };
    pixmap.fill_path(path, &paint, FillRule::EvenOdd, place, None);
    let Some((tile, size)) = grain(finish) else { return };
    let shader = Pattern::new(
        tile.as_ref(),
        SpreadMode::Repeat,
        FilterQuality::Bilinear,
        1.0,
        Transform::from_scale(size, size),
    );
    pixmap.fill_path(path, &Paint { shader, anti_alias: true, ..Paint::default() }, FillRule::EvenOdd, place, None);
}

/// Threads of cloth, or fibres of wood: fine and faint, so that nobody takes them for a pattern.
fn grain(finish: Finish) -> Option<(Pixmap, f32)> {
    let mut tile = Pixmap::new(12, 12)?;
    let lines: &[[f32; 4]] = match finish {
        Finish::Cloth => &[[0.0, 0.0, 12.0, 3.0], [0.0, 6.0, 12.0, 3.0], [0.0, 0.0, 3.0, 12.0], [6.0, 0.0, 3.0, 12.0]],
        Finish::Wood => &[[0.0, 1.0, 12.0, 2.0], [0.0, 6.0, 12.0, 1.0], [0.0, 9.0, 12.0, 1.0]],
        _ => return None,
    };
    for [x, y, width, height] in lines {
        if let Some(area) = Rect::from_xywh(*x, *y, *width, *height) {
            tile.fill_rect(area, &solid([0, 0, 0], 16), Transform::identity(), None);
        }
    }
    Some((tile, 0.5))
}
