//! Resizing 8-bit RGB exactly as the reference image processors do.
//!
//! The method is the antialiased two-pass filter of Pillow and torchvision: width first, then height, an 8-bit picture
//! between them, 16-bit integer weights. Each pass runs alone through `fast_image_resize`, which weighs the same way
//! but would run the passes in the other order. Invariant: the result is the reference's, bit for bit, for reductions
//! of up to 128 times, beyond which one level of difference is possible.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};

use super::api::Picture;

/// A rectangle of the resized picture, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

/// The filter of both passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    /// Cubic convolution with a = -0.5.
    Bicubic,
}

/// Resizes `picture` to `width` by `height` and returns the part inside `window`, `window.width * window.height * 3`
/// bytes. The picture's bytes must fit its size, and the window must lie inside `width` by `height`.
pub fn resize(
    picture: Picture<'_>,
    (width, height): (u32, u32),
    window: Window,
    filter: Filter,
) -> Result<Vec<u8>, ResizeError> {
    let mut resizer = Resizer::new();
    let filter = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    let invalid = |_| ResizeError::PixelTypesAreDifferent;
    let source = ImageRef::new(picture.width, picture.height, picture.rgb, PixelType::U8x3).map_err(invalid)?;
    let mut narrow = Image::new(width, picture.height, PixelType::U8x3);
    resizer.resize(&source, &mut narrow, &options)?;
    // Weights are scaled by the largest of the whole axis, so a pass may leave out other rows, but none of its own axis.
    let mut columns = Image::new(window.width, height, PixelType::U8x3);
    let only = options.crop(f64::from(window.left), 0.0, f64::from(window.width), f64::from(picture.height));
    resizer.resize(&narrow, &mut columns, &only)?;
    let row = window.width as usize * 3;
    let first = window.top as usize * row;
    let mut bytes = columns.into_vec();
    bytes.truncate(first + window.height as usize * row);
    bytes.drain(..first);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    /// The same method written down plainly, to compare with.
    mod plain {
        use super::super::Filter;

        fn weight(filter: Filter, at: f64) -> f64 {
            let (x, a) = (at.abs(), -0.5);
            match filter {
                Filter::Bilinear => (1.0 - x).max(0.0),
                Filter::Bicubic if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
                Filter::Bicubic => 0.0,
            }
        }

        /// For each output position the first input position and its integer weights; and their binary point.
        fn taps(from: usize, to: usize, filter: Filter) -> (Vec<(usize, Vec<i64>)>, u32) {
            let scale = from as f64 / to as f64;
            let stretch = scale.max(1.0);
            let support = stretch * if filter == Filter::Bilinear { 1.0 } else { 2.0 };
            let rows: Vec<(usize, Vec<f64>)> = (0..to)
                .map(|index| {
                    let center = scale * (index as f64 + 0.5);
                    let low = (center - support + 0.5).max(0.0) as usize;
                    let high = ((center + support + 0.5) as usize).min(from);
                    let weights: Vec<f64> = (low..high)
                        .map(|position| weight(filter, (position as f64 - center + 0.5) / stretch))
                        .collect();
                    let total: f64 = weights.iter().sum();
                    (low, weights.into_iter().map(|value| value / total).collect())
                })
                .collect();
            let largest = rows.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
            let mut point = 0;
            while point < 22 && (0.5 + largest * f64::from(1 << (point + 1))) < f64::from(1 << 15) {
                point += 1;
            }
            let whole = |value: &f64| (value * f64::from(1 << point)).round() as i64;
            (rows.iter().map(|(low, weights)| (*low, weights.iter().map(whole).collect())).collect(), point)
        }

        /// One pass along an axis of `from` positions that lie `stride` bytes apart.
        fn pass(bytes: &[u8], from: usize, to: usize, stride: usize, filter: Filter) -> Vec<u8> {
            if from == to {
                return bytes.to_vec();
            }
            let (rows, point) = taps(from, to, filter);
            let mut out = Vec::new();
            for line in bytes.chunks(from * stride) {
                for (low, weights) in &rows {
                    for inner in 0..stride {
                        let start = 1_i64 << (point - 1);
                        let sum = weights.iter().enumerate().fold(start, |sum, (tap, weight)| {
                            sum + weight * i64::from(line[(low + tap) * stride + inner])
                        });
                        out.push((sum >> point).clamp(0, 255) as u8);
                    }
                }
            }
            out
        }

        pub fn resize(bytes: &[u8], from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<u8> {
            let narrow = pass(bytes, from.0, to.0, 3, filter);
            pass(&narrow, from.1, to.1, to.0 * 3, filter)
        }
    }

    fn check(rng: &mut impl Rng, from: (u32, u32), to: (u32, u32), filter: Filter) {
        let bytes: Vec<u8> = (0..from.0 * from.1 * 3).map(|_| rng.random()).collect();
        let picture = Picture { width: from.0, height: from.1, rgb: &bytes };
        let all = Window { left: 0, top: 0, width: to.0, height: to.1 };
        let wide = |(a, b): (u32, u32)| (a as usize, b as usize);
        let expected = plain::resize(&bytes, wide(from), wide(to), filter);
        assert!(resize(picture, to, all, filter).unwrap() == expected, "{from:?} to {to:?} {filter:?}");

        let (left, top) = (rng.random_range(0..to.0), rng.random_range(0..to.1));
        let part = Window { left, top, width: to.0 - left, height: rng.random_range(1..=to.1 - top) };
        let rows = expected.chunks(to.0 as usize * 3).skip(top as usize).take(part.height as usize);
        let cut: Vec<u8> = rows.flat_map(|row| row[left as usize * 3..].to_vec()).collect();
        assert!(resize(picture, to, part, filter).unwrap() == cut, "{from:?} to {to:?} {part:?} {filter:?}");
    }

    #[test]
    fn every_pixel_equals_the_plain_two_pass_filter() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for _ in 0..60 {
                let mut side = || rng.random_range(1..160);
                let (from, to) = ((side(), side()), (side(), side()));
                check(&mut rng, from, to, filter);
            }
            for (from, to) in [((64, 64), (64, 64)), ((128, 64), (64, 32)), ((97, 40), (97, 13)), ((2000, 3), (31, 3))]
            {
                check(&mut rng, from, to, filter);
            }
        }
    }
}
