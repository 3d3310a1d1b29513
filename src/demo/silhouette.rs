//! The outlines of things, read from `silhouettes.txt`.
//!
//! An outline is a list of parts, each a path and the tone it is painted in. This file knows nothing of colours, sizes
//! or pictures; every coordinate lies on a square of about -100 to 100, y downwards.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder, Rect};

/// How a part relates to the colour of its thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// The thing's colour and pattern.
    Body,
    Dark,
    Light,
    /// The thing's colour without its pattern.
    Tint,
    /// A colour of its own, whatever the thing's colour: red, green, blue.
    Fixed([u8; 3]),
}

/// One layer of an outline.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub tone: Tone,
    /// Width of the stroke; none for a filled part.
    pub stroke: Option<f32>,
    pub path: Path,
}

static OUTLINES: LazyLock<BTreeMap<&'static str, Vec<Part>>> = LazyLock::new(|| {
    let mut outlines: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    let mut name = "";
    for line in include_str!("silhouettes.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.contains(' ') {
            false => name = line,
            true => outlines.entry(name).or_default().push(part(line).expect("silhouettes.txt is tested")),
        }
    }
    outlines
});

/// The parts of the outline called `name`, undermost first; empty when there is none.
pub(super) fn parts(name: &str) -> &'static [Part] {
    OUTLINES.get(name).map_or(&[], Vec::as_slice)
}

/// Whether the outline called `name` has a part that shows a pattern.
pub(super) fn shows_pattern(name: &str) -> bool {
    parts(name).iter().any(|part| part.tone == Tone::Body)
}

fn part(line: &str) -> Option<Part> {
    let mut words = line.split_whitespace().peekable();
    let tone = match words.next()? {
        "body" => Tone::Body,
        "dark" => Tone::Dark,
        "light" => Tone::Light,
        "tint" => Tone::Tint,
        "steel" => Tone::Fixed([70, 74, 82]),
        "white" => Tone::Fixed([250, 250, 248]),
        "glow" => Tone::Fixed([255, 190, 40]),
        "leaf" => Tone::Fixed([70, 150, 70]),
        "glass" => Tone::Fixed([190, 222, 240]),
        _ => return None,
    };
    let stroke = words.peek().and_then(|word| word.parse().ok());
    if stroke.is_some() {
        words.next();
    }
    let mut builder = PathBuilder::new();
    while let Some(command) = words.next() {
        draw(command, &mut words, &mut builder)?;
    }
    Some(Part { tone, stroke, path: builder.finish()? })
}

fn draw<'a>(command: &str, words: &mut impl Iterator<Item = &'a str>, builder: &mut PathBuilder) -> Option<()> {
    let mut number = || words.next().and_then(|word| word.parse::<f32>().ok());
    match command {
        "M" => builder.move_to(number()?, number()?),
        "L" => builder.line_to(number()?, number()?),
        "Q" => builder.quad_to(number()?, number()?, number()?, number()?),
        "C" => builder.cubic_to(number()?, number()?, number()?, number()?, number()?, number()?),
        "Z" => builder.close(),
        "E" => {
            let (x, y, across, down) = (number()?, number()?, number()?, number()?);
            builder.push_oval(Rect::from_ltrb(x - across, y - down, x + across, y + down)?);
        }
        "R" => {
            let (x, y, width, height, radius) = (number()?, number()?, number()?, number()?, number()?);
            rounded_rectangle(builder, Rect::from_xywh(x, y, width, height)?, radius);
        }
        _ => return None,
    }
    Some(())
}

fn rounded_rectangle(builder: &mut PathBuilder, area: Rect, radius: f32) {
    let (left, top, right, bottom) = (area.left(), area.top(), area.right(), area.bottom());
    let radius = radius.min(area.width() / 2.0).min(area.height() / 2.0);
    builder.move_to(left + radius, top);
    builder.line_to(right - radius, top);
    builder.quad_to(right, top, right, top + radius);
    builder.line_to(right, bottom - radius);
    builder.quad_to(right, bottom, right - radius, bottom);
    builder.line_to(left + radius, bottom);
    builder.quad_to(left, bottom, left, bottom - radius);
    builder.line_to(left, top + radius);
    builder.quad_to(left, top, left + radius, top);
    builder.close();
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::taxonomy::categories;
    use super::*;

    #[test]
    fn every_category_has_an_outline_of_its_own_with_a_part_in_its_colour() {
        let mut seen = HashSet::new();
        for category in categories() {
            let parts = parts(category.silhouette);
            let coloured = |part: &Part| matches!(part.tone, Tone::Body | Tone::Tint);
            assert!(parts.iter().any(coloured), "{} shows no colour", category.silhouette);
            assert!(seen.insert(category.silhouette), "{} serves two categories", category.silhouette);
        }
    }

    #[test]
    fn outlines_stay_near_the_square_they_are_drawn_on() {
        for (name, parts) in OUTLINES.iter() {
            for part in parts {
                let bounds = part.path.bounds();
                let furthest = [bounds.left(), bounds.top(), bounds.right(), bounds.bottom()];
                assert!(furthest.iter().all(|edge| edge.abs() <= 125.0), "{name} leaves its square: {bounds:?}");
            }
        }
    }

    #[test]
    fn a_line_with_an_unknown_word_is_no_part() {
        assert!(part("body M 0 0 L 5 5 L 9 0 Z").is_some());
        assert!(part("gold M 0 0 L 5 5 L 9 0 Z").is_none());
        assert!(part("body M 0 0 L 5 X").is_none());
    }
}
