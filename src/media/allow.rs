//! The allow-list: which references may be read. Pure: no clock, no network, no file system.
//!
//! A reference is covered when an entry has its scheme, its bucket, host and port or folder, and a prefix of its path
//! by whole segments. Nothing is normalised on the way: a reference that needs it (`..`, `%2e%2e`, a backslash) is
//! refused, so that what was checked is what is read. What it does not know: symbolic links (see `folder`) and what
//! a host name resolves to (see `address`).

use std::borrow::Cow;
use std::fmt;
use std::path::{Component, PathBuf};

use url::{Host, Url};

use super::api::MediaError;

/// Longer references are refused; every store and server has a lower limit anyway.
const LONGEST_REFERENCE: usize = 8192;
/// The longest key that S3, Cloud Storage and Azure take, in bytes.
const LONGEST_KEY: usize = 1024;

/// The three kinds of bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BucketScheme {
    S3,
    CloudStorage,
    Azure,
}

impl BucketScheme {
    fn parse(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::CloudStorage),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::CloudStorage => "gs",
            Self::Azure => "az",
        }
    }
}

impl fmt::Display for BucketScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a permitted medium lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `key` is the object's name as it is: nothing in it is percent-decoded.
    Bucket { scheme: BucketScheme, bucket: String, key: String },
    /// `https`, or `http` where an entry says so.
    Web(Url),
    /// An absolute path whose text lies in a listed folder; links are not resolved yet.
    File(PathBuf),
}

/// An entry of `media.allow` that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("media.allow: {entry:?} {detail}")]
pub struct EntryError {
    pub entry: String,
    pub detail: String,
}

/// The parsed entries of `media.allow`. Empty: nothing may be read.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    buckets: Vec<BucketEntry>,
    hosts: Vec<HostEntry>,
    folders: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct BucketEntry {
    scheme: BucketScheme,
    bucket: String,
    prefix: String,
}

#[derive(Debug, Clone)]
struct HostEntry {
    scheme: String,
    host: Host<String>,
    port: u16,
    prefix: String,
}

impl AllowList {
    /// Parses all entries; returns every one that is wrong.
    pub fn parse(entries: &[String]) -> Result<Self, Vec<EntryError>> {
        let mut list = Self::default();
        let mut errors = Vec::new();
        for entry in entries {
            if let Err(detail) = list.add(entry) {
                errors.push(EntryError { entry: entry.clone(), detail });
            }
        }
        if errors.is_empty() { Ok(list) } else { Err(errors) }
    }

    /// Decides about one reference: where it lies, or why it may not be read.
    pub fn check(&self, url: &str) -> Result<Location, MediaError> {
        let location = parse_reference(url).map_err(|detail| MediaError::Malformed { url: url.to_owned(), detail })?;
        if let Location::Bucket { key, .. } = &location
            && (key.is_empty() || key.ends_with('/'))
        {
            return Err(MediaError::Malformed { url: url.to_owned(), detail: "it names no object".to_owned() });
        }
        if self.covers(&location) {
            return Ok(location);
        }
        Err(MediaError::Forbidden { url: url.to_owned(), detail: "no entry of media.allow covers it".to_owned() })
    }

    /// Every listed bucket, once.
    pub fn buckets(&self) -> Vec<(BucketScheme, &str)> {
        let mut buckets: Vec<_> = self.buckets.iter().map(|entry| (entry.scheme, entry.bucket.as_str())).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    /// The listed folders, as they were written.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Whether an entry names this host in so many words, on any port.
    pub fn names_host(&self, name: &str) -> bool {
        self.hosts.iter().any(|entry| matches!(&entry.host, Host::Domain(host) if host == name))
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        if entry.contains('*') {
            return Err("has a wildcard; leave it out, an entry covers everything below it".to_owned());
        }
        match parse_reference(entry)? {
            Location::Bucket { scheme, bucket, key } => {
                let prefix = key.trim_end_matches('/').to_owned();
                self.buckets.push(BucketEntry { scheme, bucket, prefix });
            }
            Location::Web(url) => {
                if url.query().is_some() || url.fragment().is_some() {
                    return Err("has a query or a fragment; an entry is a host with an optional path".to_owned());
                }
                let host = url.host().map(|host| host.to_owned()).ok_or("has no host")?;
                let port = url.port_or_known_default().ok_or("has no port")?;
                let prefix = url.path().trim_end_matches('/').to_owned();
                self.hosts.push(HostEntry { scheme: url.scheme().to_owned(), host, port, prefix });
            }
            Location::File(folder) => self.folders.push(folder),
        }
        Ok(())
    }

    fn covers(&self, location: &Location) -> bool {
        match location {
            Location::Bucket { scheme, bucket, key } => self.buckets.iter().any(|entry| {
                entry.scheme == *scheme
                    && entry.bucket == *bucket
                    && (entry.prefix.is_empty() || is_below(key, &entry.prefix))
            }),
            Location::Web(url) => self.hosts.iter().any(|entry| {
                entry.scheme == url.scheme()
                    && url.host().is_some_and(|host| host.to_owned() == entry.host)
                    && url.port_or_known_default() == Some(entry.port)
                    && is_below(url.path(), &entry.prefix)
            }),
            Location::File(path) => self.folders.iter().any(|folder| path.starts_with(folder)),
        }
    }
}

/// Parses `s3://bucket` and its like into scheme and bucket; anything after the bucket is an error.
pub fn parse_bucket(text: &str) -> Result<(BucketScheme, String), String> {
    match parse_reference(text)? {
        Location::Bucket { scheme, bucket, key } if key.is_empty() => Ok((scheme, bucket)),
        _ => Err("is not a bucket; write s3://bucket, gs://bucket or az://container".to_owned()),
    }
}

/// Whether `path` is `prefix` or lies below it, by whole segments. An empty prefix covers every absolute path.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Reads a reference or an entry without changing what it names; the error says what is wrong with it.
fn parse_reference(text: &str) -> Result<Location, String> {
    if text.len() > LONGEST_REFERENCE {
        return Err(format!("is longer than {LONGEST_REFERENCE} bytes"));
    }
    // The URL parser strips and rewrites these silently; two readers of one reference must not see different things.
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err("has a control character, or white space around it".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or("has no scheme")?;
    let scheme = scheme.to_ascii_lowercase();
    let is_web = scheme == "https" || scheme == "http";
    let path_end = if is_web { rest.find(['?', '#']).unwrap_or(rest.len()) } else { rest.len() };
    refuse_traversal(&rest[..path_end], is_web)?;
    match scheme.as_str() {
        "file" => parse_file(text, rest),
        "https" | "http" => parse_web(text, &rest[..path_end]),
        _ => match BucketScheme::parse(&scheme) {
            Some(scheme) => parse_object(scheme, rest),
            None => Err(format!("has the scheme {scheme:?}")),
        },
    }
}

/// Refuses whatever some reader on the way could take for a step upwards or for another separator.
fn refuse_traversal(path: &str, is_web: bool) -> Result<(), String> {
    let mut plain = Cow::Borrowed(path);
    if plain.contains('%') {
        plain = plain.to_ascii_lowercase().into();
    }
    // Twice-encoded text is read like once-encoded text: a gateway may decode before the store does.
    while plain.contains("%25") {
        plain = plain.replace("%25", "%").into();
    }
    if plain.contains('\\') || plain.contains("%5c") || plain.contains("%00") {
        return Err("has a backslash or a null byte".to_owned());
    }
    // Web hosts give `%2F` a meaning of its own within one segment; elsewhere it only serves to disguise a separator.
    if !is_web && plain.contains("%2f") {
        return Err("has an encoded slash".to_owned());
    }
    if plain.contains('%') {
        plain = plain.replace("%2e", ".").replace("%2f", "/").into();
    }
    // Some servers cut parameters off a segment before they walk it: `..;x` is a step upwards for them.
    let walked = |segment: &str| segment.split(';').next().is_some_and(|name| name == "." || name == "..");
    if plain.split('/').any(walked) {
        return Err("has a segment `.` or `..`".to_owned());
    }
    Ok(())
}

fn parse_object(scheme: BucketScheme, rest: &str) -> Result<Location, String> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if bucket.is_empty() || !bucket.bytes().all(is_plain) {
        return Err("has no bucket, or one with characters that no bucket has".to_owned());
    }
    if key.len() > LONGEST_KEY {
        return Err(format!("has a key of more than {LONGEST_KEY} bytes"));
    }
    let inner = key.strip_suffix('/').unwrap_or(key);
    if !key.is_empty() && inner.split('/').any(str::is_empty) {
        return Err("has an empty segment in its key".to_owned());
    }
    Ok(Location::Bucket { scheme, bucket: bucket.to_owned(), key: key.to_owned() })
}

fn parse_web(text: &str, authority_and_path: &str) -> Result<Location, String> {
    let authority = authority_and_path.split('/').next().unwrap_or_default();
    if authority.is_empty() {
        return Err("has no host".to_owned());
    }
    if authority.contains('@') {
        return Err("has a user name or a password in it".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    Ok(Location::Web(url))
}

fn parse_file(text: &str, rest: &str) -> Result<Location, String> {
    if !rest.starts_with('/') {
        return Err("names a host; write file:///folder/file with three slashes".to_owned());
    }
    if text.contains(['?', '#']) {
        return Err("has a `?` or `#`; write %3F or %23 when the file's name has one".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    let path = url.to_file_path().map_err(|()| "is not an absolute path".to_owned())?;
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if is_plain { Ok(Location::File(path)) } else { Err("is not a plain absolute path".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        AllowList::parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn example() -> AllowList {
        list(&[
            "s3://shop/pictures",
            "s3://whole",
            "gs://ads/2024/spring/",
            "az://container",
            "https://cdn.example.com",
            "https://img.example.com:8443/public",
            "http://plain.example.com/a",
            "http://127.0.0.1:9000",
            "https://[2001:db8::1]",
            "file:///data/media",
        ])
    }

    #[test]
    fn listed_references_are_located() {
        for reference in [
            "s3://shop/pictures/a.jpg",
            "s3://shop/pictures",
            "S3://whole/any/key with space?and#more.jpg",
            "gs://ads/2024/spring/x.png",
            "az://container/a%20b.webp",
            "https://cdn.example.com/a.jpg?signature=../..&x=%2e%2e",
            "https://CDN.example.com:443/a.jpg",
            "https://cdn.example.com/o/images%2Fa.jpg",
            "https://img.example.com:8443/public/a",
            "http://plain.example.com:80/a/b",
            "http://127.0.0.1:9000/x",
            "https://[2001:db8::1]/x",
            "file:///data/media/a.jpg",
            "file:///data/media/a%20b%3F.jpg",
        ] {
            assert!(example().check(reference).is_ok(), "{reference}: {:?}", example().check(reference));
        }
    }

    #[test]
    fn what_no_entry_covers_is_forbidden() {
        for reference in [
            "s3://shop/other/a.jpg",
            "s3://shop/picturesque/a.jpg",
            "s3://shopping/pictures/a.jpg",
            "gs://shop/pictures/a.jpg",
            "gs://ads/2024/springtime/x.png",
            "https://cdn.example.com:8080/a.jpg",
            "https://cdn.example.com.evil.test/a.jpg",
            "https://cdn.example.com./a.jpg",
            "https://evil.test/cdn.example.com/a.jpg",
            "http://cdn.example.com/a.jpg",
            "https://img.example.com/public/a",
            "https://img.example.com:8443/publicity/a",
            "https://plain.example.com/a/b",
            "http://127.0.0.1/x",
            "http://localhost:9000/x",
            "http://0x7f.1/x",
            "http://[::ffff:127.0.0.1]:9000/x",
            "http://169.254.169.254/latest/meta-data",
            "file:///data/mediaeval/a.jpg",
            "file:///etc/passwd",
            "file:///",
        ] {
            let result = example().check(reference);
            assert!(matches!(result, Err(MediaError::Forbidden { .. })), "{reference}: {result:?}");
        }
    }

    #[test]
    fn hostile_references_are_malformed_even_under_a_listed_prefix() {
        for reference in [
            "",
            "a.jpg",
            "/data/media/a.jpg",
            "ftp://cdn.example.com/a.jpg",
            "data:image/png;base64,AAAA",
            "s3://",
            "s3:///pictures/a.jpg",
            "s3://whole",
            "s3://whole/",
            "s3://whole/folder/",
            "s3://whole//a.jpg",
            "s3://whole/a//b.jpg",
            "s3://user@whole/a.jpg",
            "s3://shop/pictures/../secret/a.jpg",
            "s3://shop/pictures/./a.jpg",
            "s3://shop/pictures/%2e%2e/a.jpg",
            "s3://shop/pictures/%2E./a.jpg",
            "s3://shop/pictures/%252e%252e/a.jpg",
            "s3://shop/pictures%2F..%2Fa.jpg",
            "s3://shop/pictures%2fa.jpg",
            "s3://shop/pictures\\..\\a.jpg",
            "https://cdn.example.com/../a",
            "https://cdn.example.com/x/%2e%2e/%2e%2e/a",
            "https://cdn.example.com/x/..%2f..%2fa",
            "https://cdn.example.com/x%5c..%5ca",
            "https://cdn.example.com\\@evil.test/a",
            "https://user@cdn.example.com/a",
            "https://user:word@cdn.example.com/a",
            "https://@cdn.example.com/a",
            "https:///cdn.example.com/a",
            "https:cdn.example.com/a",
            "https://cdn.example.com/a\u{0}b",
            "https://cdn.example.com/a%00b",
            "https://cdn.exa\nmple.com/a",
            " https://cdn.example.com/a",
            "file:///data/media/../../etc/passwd",
            "file:///data/media/%2e%2e/%2e%2e/etc/passwd",
            "file:///data/media/..%2f..%2fetc/passwd",
            "file:///data/media%2f..%2f..%2fetc/passwd",
            "file:///data/media/a%00.jpg",
            "file://localhost/data/media/a.jpg",
            "file://evil.test/data/media/a.jpg",
            "file://data/media/a.jpg",
            "file:///data/media/a.jpg?x",
        ] {
            let result = example().check(reference);
            assert!(matches!(result, Err(MediaError::Malformed { .. })), "{reference}: {result:?}");
        }
        assert!(example().check(&format!("https://cdn.example.com/{}", "a".repeat(9000))).is_err());
        assert!(example().check(&format!("s3://whole/{}", "a".repeat(1025))).is_err());
    }

    #[test]
    fn an_empty_list_permits_nothing() {
        for reference in ["s3://a/b", "https://a/b", "file:///a/b"] {
            assert!(matches!(list(&[]).check(reference), Err(MediaError::Forbidden { .. })));
        }
    }

    #[test]
    fn keys_and_queries_survive_unchanged() {
        let Ok(Location::Bucket { key, .. }) = example().check("s3://whole/a%20b?c#d.jpg") else { panic!() };
        assert_eq!(key, "a%20b?c#d.jpg");
        let Ok(Location::Web(url)) = example().check("https://cdn.example.com/a?b=c%2Fd&e") else { panic!() };
        assert_eq!(url.as_str(), "https://cdn.example.com/a?b=c%2Fd&e");
        let Ok(Location::File(path)) = example().check("file:///data/media/a%20b.jpg") else { panic!() };
        assert_eq!(path, PathBuf::from("/data/media/a b.jpg"));
    }

    #[test]
    fn every_bad_entry_is_named() {
        let entries = ["s3://ok", "s3://*", "cdn.example.com", "https://a/?q", "file:///a/../b", "ftp://x"];
        let entries: Vec<_> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        let errors = AllowList::parse(&entries).unwrap_err();
        let named: Vec<_> = errors.iter().map(|error| error.entry.as_str()).collect();
        assert_eq!(named, ["s3://*", "cdn.example.com", "https://a/?q", "file:///a/../b", "ftp://x"]);
        assert!(errors[0].to_string().contains("wildcard"));
    }

    #[test]
    fn buckets_are_listed_once_each() {
        let list = list(&["s3://b/x", "s3://b/y", "gs://b", "s3://a"]);
        let expected = [(BucketScheme::S3, "a"), (BucketScheme::S3, "b"), (BucketScheme::CloudStorage, "b")];
        assert_eq!(list.buckets(), expected);
    }

    proptest::proptest! {
        #[test]
        fn no_path_outside_the_folder_passes(tail in "[a-z./%2eEfF\\\\]{0,24}") {
            if let Ok(Location::File(path)) = example().check(&format!("file:///data/media/{tail}")) {
                let plain = path.components().all(|part| !matches!(part, Component::ParentDir | Component::CurDir));
                proptest::prop_assert!(plain && path.starts_with("/data/media"));
            }
        }
    }
}
