//! Arithmetic that vector loops share.

use pulp::Simd;

/// `a * b + c`, with one rounding where the processor has that.
#[inline(always)]
pub fn multiply_add<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR { a * b + c } else { a.mul_add(b, c) }
}
