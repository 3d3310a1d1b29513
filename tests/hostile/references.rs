//! References to what must not be read: the inside of networks, other files, other buckets, detours.

/// Every reference, given a permitted folder and a permitted host that redirects elsewhere.
pub fn references(folder: &str, host: &str) -> Vec<String> {
    let port = host.rsplit(':').next().expect("a port");
    let mut all: Vec<String> = [
        // Addresses of the inside, in the many ways to write them.
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://0.0.0.0/a.png",
        "http://2130706433/a.png",
        "http://0x7f000001/a.png",
        "http://0177.0.0.1/a.png",
        "http://127.1/a.png",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://10.0.0.1/a.png",
        "https://192.168.0.1/a.png",
        "https://[fd00:ec2::254]/latest/",
        // Other schemes and other places.
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "s3://other-bucket/a.png",
        "s3://assay/secrets/a.png",
        "s3://assay/media-of-others/a.png",
        "gs://bucket/a.png",
        "az://container/a.png",
        // What is no reference.
        "",
        " ",
        "a.png",
        "//127.0.0.1/a.png",
        "s3://",
        "s3:///a.png",
        "s3://assay/media/",
        "http://",
        "s3://assay/media/\u{0}a.png",
        "s3://assay/media/a.png\r\nHost: evil",
    ]
    .map(str::to_owned)
    .into();
    for step in ["../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "..%5c", "./../", "..;/"] {
        all.push(format!("file://{folder}/{step}secret.png"));
        all.push(format!("s3://assay/media/{step}secrets/a.png"));
        all.push(format!("{host}/pictures/{step}secret.png"));
    }
    all.push(format!("file://{folder}/link.png"));
    all.push(format!("file://{folder}"));
    all.push(format!("file://{folder}-of-others/a.png"));
    // A permitted host that sends the reader elsewhere; and names that only look like it.
    all.extend(["inside", "file", "other-port", "itself"].map(|target| format!("{host}/pictures/redirect/{target}")));
    all.push(format!("http://127.0.0.1:{port}@evil.invalid/pictures/a.png"));
    all.push(format!("http://evil@127.0.0.1:{port}/pictures/a.png"));
    all.push(format!("http://127.0.0.1.evil.invalid:{port}/pictures/a.png"));
    all.push(format!("{host}/pictures-of-others/a.png"));
    all.push(format!("s3://assay/media/{}", "a".repeat(9_000)));
    all
}
