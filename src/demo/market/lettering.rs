//! Words as outlines, for badges: capitals and the few signs that badges have.
//!
//! It knows cells of a grid, no colours. Invariant: a sign that `letters.txt` does not have leaves a gap.

use std::collections::HashMap;
use std::sync::LazyLock;

use tiny_skia::{Path, PathBuilder, Rect};

const WIDTH: usize = 5;
const HEIGHT: usize = 7;

static LETTERS: LazyLock<HashMap<char, Vec<&'static str>>> = LazyLock::new(|| {
    let mut letters: HashMap<char, Vec<&str>> = HashMap::new();
    let mut letter = ' ';
    for line in include_str!("letters.txt").lines().skip(1).filter(|line| !line.is_empty()) {
        match line.chars().next().filter(|_| line.chars().count() == 1) {
            Some(name) => letter = name,
            None => letters.entry(letter).or_default().push(line),
        }
    }
    letters
});

/// The outline of a word with its middle at the origin, one unit a cell, and its width and height. None for a word
/// without any visible sign.
pub(super) fn outline(word: &str) -> Option<(Path, f32, f32)> {
    let advance = WIDTH + 1;
    let (width, height) = ((word.chars().count() * advance).saturating_sub(1) as f32, HEIGHT as f32);
    let mut builder = PathBuilder::new();
    for (place, sign) in word.chars().enumerate() {
        for (down, row) in LETTERS.get(&sign).into_iter().flatten().enumerate() {
            let filled = row.bytes().enumerate().filter(|(_, cell)| *cell == b'#');
            // A little larger than its cell, so that neighbours leave no seam.
            let cell = |(across, _): (usize, u8)| {
                let (x, y) = ((place * advance + across) as f32 - width / 2.0, down as f32 - height / 2.0);
                Rect::from_xywh(x - 0.04, y - 0.04, 1.08, 1.08)
            };
            filled.filter_map(cell).for_each(|cell| builder.push_rect(cell));
        }
    }
    Some((builder.finish()?, width, height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_has_its_cells() {
        assert_eq!(LETTERS.len(), 31);
        for (sign, rows) in LETTERS.iter() {
            assert_eq!(rows.len(), HEIGHT, "{sign}");
            assert!(rows.iter().all(|row| row.len() == WIDTH), "{sign}");
        }
        assert!(('A'..='Z').all(|letter| LETTERS.contains_key(&letter)));
    }

    #[test]
    fn a_word_is_as_wide_as_its_signs_and_around_the_origin() {
        let (path, width, height) = outline("SALE").unwrap();
        assert_eq!((width, height), (23.0, 7.0));
        let bounds = path.bounds();
        assert!((bounds.left() + bounds.right()).abs() < 0.2 && (bounds.top() + bounds.bottom()).abs() < 0.2);
        assert!(outline("  ").is_none() && outline("é").is_none());
    }
}
