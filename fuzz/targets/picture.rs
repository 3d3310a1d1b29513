//! Any bytes are a picture within the limits or a rejection.
#![no_main]

use assay::media::{DecodeLimits, decode};
use libfuzzer_sys::fuzz_target;

const LIMITS: DecodeLimits = DecodeLimits { pixels: 1_000_000, side: 4_096, allocation: 64 << 20 };

fuzz_target!(|bytes: &[u8]| {
    if let Ok(picture) = decode(bytes, &LIMITS) {
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        assert!(pixels <= LIMITS.pixels && picture.width.max(picture.height) <= LIMITS.side);
        assert_eq!(picture.rgb.len() as u64, pixels * 3);
    }
});
