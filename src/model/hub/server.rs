//! Tests only: the few answers of the hub that fetching a model needs, on this machine, with troubles on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Who does not bring this token is refused.
    NeedsToken(String),
    /// The first answer that is longer ends after so many bytes.
    CutAt(usize),
    /// A longer range than one byte is answered with the whole file.
    IgnoresRanges,
    /// This file is listed and not there.
    Lacks(String),
    /// Files are in another place, as large ones are.
    Elsewhere,
}

/// Serves one folder as `org/name` until it is dropped.
pub struct HubServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    trouble: Trouble,
    was_cut: AtomicBool,
    stopped: AtomicBool,
    /// Path and range of each request.
    asked: Mutex<Vec<(String, String)>>,
}

impl HubServer {
    pub fn start(folder: &Path, trouble: Trouble) -> Self {
        let mut files = BTreeMap::new();
        read(folder, "", &mut files);
        let (was_cut, stopped, asked) = Default::default();
        let shared = Arc::new(Shared { files, trouble, was_cut, stopped, asked });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stopped.load(Ordering::SeqCst) {
                    break;
                }
                // Whoever hangs up early is part of some tests.
                let _ = served.answer(&stream.unwrap());
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The paths that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    pub fn ranges(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().iter().map(|(_, range)| range.clone()).collect()
    }

    pub fn etag(&self, file: &str) -> String {
        etag(&self.shared.files[file])
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Shared {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let range = header("range");
        self.asked.lock().unwrap().push((path.clone(), range.clone()));
        let refused =
            matches!(&self.trouble, Trouble::NeedsToken(token) if header("authorization") != format!("Bearer {token}"));
        if refused {
            return write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        if path.starts_with("/api/models/org/name/revision/") {
            let siblings: Vec<_> = self.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
            let body = serde_json::json!({ "id": "org/name", "sha": COMMIT, "siblings": siblings }).to_string();
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        if let Some(file) = path.strip_prefix("/elsewhere/") {
            return self.send(stream, &self.files[file], &range);
        }
        let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")).unwrap_or_default();
        if let (Trouble::Elsewhere, Some(content)) = (&self.trouble, self.files.get(file)) {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: http://{}/elsewhere/{file}\r\nX-Linked-Etag: \"{}\"\r\n\
                 X-Repo-Commit: {COMMIT}\r\nETag: \"other\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                stream.local_addr()?,
                etag(content)
            );
        }
        let is_gone = matches!(&self.trouble, Trouble::Lacks(gone) if gone == file);
        match self.files.get(file).filter(|_| !is_gone) {
            Some(content) => self.send(stream, content, &range),
            None => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        }
    }

    fn send(&self, mut stream: &TcpStream, content: &[u8], range: &str) -> std::io::Result<()> {
        let (first, last) = range.strip_prefix("bytes=").unwrap_or("0-").split_once('-').unwrap_or(("0", ""));
        let first: usize = first.parse().unwrap_or_default();
        let end = last.parse::<usize>().map_or(content.len(), |last| content.len().min(last + 1));
        if first >= content.len() && first > 0 {
            return write!(
                stream,
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        let (first, end) = match self.trouble == Trouble::IgnoresRanges && last.is_empty() {
            true => (0, content.len()),
            false => (first, end),
        };
        let body = &content[first..end];
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \"{}\"\r\n\
             X-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            body.len(),
            end.saturating_sub(1),
            content.len(),
            etag(content)
        )?;
        match self.trouble {
            Trouble::CutAt(length) if body.len() > length && !self.was_cut.swap(true, Ordering::SeqCst) => {
                stream.write_all(&body[..length])
            }
            _ => stream.write_all(body),
        }
    }
}

fn etag(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => read(&entry.path(), &format!("{name}/"), files),
            false => {
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
}
