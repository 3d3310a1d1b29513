//! Whatever a reference looks like, what is permitted lies below an entry of the allow-list.
#![no_main]

use std::path::{Component, Path};
use std::sync::LazyLock;

use assay::media::{AllowList, Location};
use libfuzzer_sys::fuzz_target;

static ALLOW: LazyLock<AllowList> = LazyLock::new(|| {
    let entries = ["s3://shop/pictures", "https://cdn.example.com/media", "file:///data/media"].map(str::to_owned);
    AllowList::parse(&entries).expect("the entries are right")
});

fuzz_target!(|reference: &str| {
    match ALLOW.check(reference) {
        Ok(Location::Bucket { bucket, key, .. }) => {
            assert!(bucket == "shop" && !key.split('/').any(|part| part == ".."));
            assert!(key == "pictures" || key.starts_with("pictures/"));
        }
        Ok(Location::Web(url)) => {
            assert!(url.scheme() == "https" && url.host_str() == Some("cdn.example.com"));
            assert!(url.path() == "/media" || url.path().starts_with("/media/"));
        }
        Ok(Location::File(path)) => {
            assert!(path.starts_with(Path::new("/data/media")));
            assert!(!path.components().any(|part| part == Component::ParentDir));
        }
        Err(error) => assert!(!error.reason().is_empty()),
    }
});
