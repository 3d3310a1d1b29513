//! Arithmetic that vector loops share.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Values that make it worth waking another thread.
const SHARE: usize = 1 << 15;

/// So many whole rows that a thread has enough to do with them.
pub fn shared_rows(width: usize) -> usize {
    SHARE.div_ceil(width.max(1))
}

/// Works pieces off in vector registers, on all threads if there are several.
pub fn work_off<P: WithSimd<Output = ()> + Send>(pieces: Vec<P>) {
    let arch = Arch::new();
    match pieces.len() {
        0 | 1 => pieces.into_iter().for_each(|piece| arch.dispatch(piece)),
        _ => pieces.into_par_iter().for_each(|piece| arch.dispatch(piece)),
    }
}

/// `a * b + c`, with one rounding where the processor has that.
#[inline(always)]
pub fn multiply_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}

/// Numbers that loops take at a time: two registers of AVX2, one of AVX-512.
pub const LANES: usize = 16;

/// Joins the lower half with the upper half, lane by lane, until one is left.
#[inline(always)]
pub fn halved(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// A stored number that can be widened.
pub trait Stored: Copy + Sync {
    const IS_WIDE: bool = false;

    fn widen(self) -> f32;

    /// The numbers as f32, in `room` unless they are that already.
    #[inline(always)]
    fn wide<'a>(stored: &'a [Self], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..stored.len()];
        for (wide, stored) in room.iter_mut().zip(stored) {
            *wide = stored.widen();
        }
        room
    }
}

impl Stored for f32 {
    const IS_WIDE: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn wide<'a>(stored: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        stored
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Stored for f16 {
    /// Exact, without branches, so that it is vectorised: the exponent is moved by a product.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        // Infinities and NaN keep the highest exponent.
        let highest = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | highest | sign)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    #[allow(unsafe_code)]
    fn wide<'a>(stored: &'a [Self], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..stored.len()];
        if is_x86_feature_detected!("f16c") && is_x86_feature_detected!("avx") {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { widen_by_instruction(stored, room) };
        } else {
            for (wide, stored) in room.iter_mut().zip(stored) {
                *wide = stored.widen();
            }
        }
        room
    }
}

/// Both are of one length.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[target_feature(enable = "avx,f16c")]
fn widen_by_instruction(stored: &[f16], wide: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (eights, rest) = stored.as_chunks::<8>();
    let (wide_eights, wide_rest) = wide.as_chunks_mut::<8>();
    for (wide, stored) in wide_eights.iter_mut().zip(eights) {
        // SAFETY: eight numbers are read, and eight written.
        unsafe { _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(stored.as_ptr().cast()))) };
    }
    for (wide, stored) in wide_rest.iter_mut().zip(rest) {
        *wide = stored.widen();
    }
}

/// Asks the memory for a line that will be read soon; it need not exist.
#[inline(always)]
#[allow(unsafe_code)]
pub fn fetch_line<T>(place: *const T) {
    // SAFETY: nothing is read, wherever this points.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// `e^x` for `x <= 0`, within two units in the last place; 0 below -87. The polynomial is that of Cephes' `expf`
/// (Moshier), on `x - n ln 2`, which lies within half of ln 2; branches would keep it from being vectorised.
#[inline(always)]
pub fn exponential<S: Simd>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    // A comparison with NaN is false, so NaN stays.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = multiply_add::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = multiply_add::<S>(whole, -0.693_359_4, clamped);
    let rest = multiply_add::<S>(whole, 2.121_944_4e-4, rest);
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        sum = multiply_add::<S>(sum, rest, coefficient);
    }
    let value = multiply_add::<S>(sum, rest * rest, rest) + 1.0;
    // The whole number is in the lowest bits still; as an exponent it has 127 added to it.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LOWEST { 0.0 } else { value * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials<'a>(&'a [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, _simd: S) -> Vec<f32> {
            self.0.iter().map(|x| exponential::<S>(*x)).collect()
        }
    }

    #[test]
    fn the_exponential_is_near_the_exact_one_and_keeps_nan() {
        let inputs: Vec<f32> = (0..=8700).map(|step| -step as f32 / 100.0).collect();
        for (x, found) in inputs.iter().zip(Arch::new().dispatch(Exponentials(&inputs))) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(found) - exact).abs() <= 2.5e-7 * exact, "e^{x} = {found}");
        }
        let odd = Arch::new().dispatch(Exponentials(&[-100.0, f32::NEG_INFINITY, f32::NAN, 0.0]));
        assert_eq!((odd[0], odd[1], odd[3]), (0.0, 0.0, 1.0));
        assert!(odd[2].is_nan());
    }

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (found, expected) = (half.widen(), half.to_f32());
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{bits:#x}: {found} is not {expected}");
        }
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for count in [1, 8, 65_536] {
            let (part, mut room) = (&all[..count], vec![0.0; count]);
            let found = f16::wide(part, &mut room).iter().map(|value| value.to_bits());
            let is_nan = |half: &f16, bits: u32| half.is_nan() && f32::from_bits(bits).is_nan();
            assert!(part.iter().zip(found).all(|(half, bits)| half.widen().to_bits() == bits || is_nan(half, bits)));
        }
    }
}
