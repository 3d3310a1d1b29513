//! Arithmetic that vector loops share.

use pulp::Simd;

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
    use pulp::{Arch, WithSimd};

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
}
