//! Any bytes are an asset or a rejection that says why, and an asset keeps its promises.
#![no_main]

use std::sync::LazyLock;

use assay::domain::AssetKind;
use assay::job::{MessageDecoder, check_key};
use libfuzzer_sys::fuzz_target;

static DECODERS: LazyLock<[MessageDecoder; 2]> =
    LazyLock::new(|| [AssetKind::Product, AssetKind::Ad].map(MessageDecoder::new));

fuzz_target!(|payload: &[u8]| {
    for decoder in DECODERS.iter() {
        match decoder.decode(payload) {
            Ok(asset) => {
                assert!(!asset.id.is_empty() && asset.kind() == decoder.kind());
                assert!(check_key(&asset, Some(&asset.id)).is_ok());
            }
            Err(error) => assert!(error.to_string().len() < 16_384 && !error.reason().is_empty()),
        }
    }
});
