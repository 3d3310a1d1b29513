//! Reading files of listed folders. Blocking: callers run it off the async threads.
//!
//! A file is read only when what was opened lies, with every link resolved, in the canonical form of a listed folder, and
//! only when it is a regular file: a pipe would block for ever. The canonical folders are remembered,
//! and looked up again when a file seems to lie outside, because a folder may be a link that is switched over.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use super::api::{Media, MediaError};
use super::body::content_hash;

/// The listed folders.
#[derive(Debug)]
pub struct Folders {
    roots: Vec<Root>,
}

#[derive(Debug)]
struct Root {
    listed: PathBuf,
    canonical: RwLock<Option<PathBuf>>,
}

impl Folders {
    pub fn new(listed: &[PathBuf]) -> Self {
        let roots = listed.iter().map(|listed| Root { listed: listed.clone(), canonical: RwLock::new(None) });
        Self { roots: roots.collect() }
    }

    /// Reads the whole file, at most `limit` bytes. `path` has passed the allow-list; `url` is for messages.
    pub fn read(&self, url: &str, path: &Path, limit: u64) -> Result<Media, MediaError> {
        let failed = |error: io::Error| self.failure(url, path, &error);
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            let detail = "it is a folder or a device, not a regular file".to_owned();
            return Err(MediaError::Refused { url: url.to_owned(), detail });
        }
        let file = match open_without_links(path).map_err(failed)? {
            Some(file) if self.lists(path) => file,
            _ => self.open_inside(url, path)?,
        };
        let too_large = || MediaError::TooLarge { url: url.to_owned(), limit };
        if metadata.len() > limit {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        // The file may grow while it is read.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(too_large());
        }
        let sha256 = content_hash(&bytes);
        Ok(Media { bytes: bytes.into(), sha256 })
    }

    /// Whether the text of the path lies in a listed folder.
    fn lists(&self, path: &Path) -> bool {
        let is_below = |rest: &Path| rest.components().all(|part| matches!(part, Component::Normal(_)));
        self.roots.iter().any(|root| path.strip_prefix(&root.listed).is_ok_and(is_below))
    }

    /// Opens what the path leads to, over links, when it lies in a listed folder.
    fn open_inside(&self, url: &str, path: &Path) -> Result<File, MediaError> {
        let failed = |error: io::Error| self.failure(url, path, &error);
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let opened = real_path(&file, path).map_err(failed)?;
        if !self.contains(&opened) {
            let detail = format!("it leads to {}, outside of the listed folders", opened.display());
            return Err(MediaError::Forbidden { url: url.to_owned(), detail });
        }
        Ok(file)
    }

    fn contains(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| root.contains(path)) || self.roots.iter().any(|root| root.contains_anew(path))
    }

    fn failure(&self, url: &str, path: &Path, error: &io::Error) -> MediaError {
        let url = url.to_owned();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => match self.missing_root(path) {
                Some(root) => {
                    let detail = format!("the folder {} is not there; is it mounted?", root.display());
                    MediaError::Unavailable { url, detail, retry_after: None }
                }
                None => MediaError::NotFound { url },
            },
            ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
                MediaError::Malformed { url, detail: format!("no file can have this name ({error})") }
            }
            _ => MediaError::Unavailable { url, detail: error.to_string(), retry_after: None },
        }
    }

    /// The listed folder that should hold `path`, when none of those that could is there.
    fn missing_root(&self, path: &Path) -> Option<&Path> {
        let mut holders = self.roots.iter().map(|root| root.listed.as_path()).filter(|root| path.starts_with(root));
        let first = holders.next()?;
        let any_there = first.exists() || holders.any(Path::exists);
        (!any_there).then_some(first)
    }
}

/// The file, when no link leads to it; none when one does, or when the kernel or a sandbox does not know how to tell.
///
/// As below, opening does not block, should a pipe take the file's place just now.
#[cfg(target_os = "linux")]
fn open_without_links(path: &Path) -> io::Result<Option<File>> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    use rustix::io::Errno;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::LOOP | Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_without_links(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Where the opened file lies with every link resolved. Linux tells it in one call; elsewhere the path is walked.
fn real_path(file: &File, path: &Path) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).or_else(|_| fs::canonicalize(path))
}

impl Root {
    fn contains(&self, path: &Path) -> bool {
        let canonical = self.canonical.read().unwrap_or_else(PoisonError::into_inner);
        canonical.as_ref().is_some_and(|root| path.starts_with(root))
    }

    fn contains_anew(&self, path: &Path) -> bool {
        let Ok(fresh) = fs::canonicalize(&self.listed) else { return false };
        let contains = path.starts_with(&fresh);
        *self.canonical.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        contains
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Blame;
    use std::os::unix::fs::symlink;

    struct Scene {
        _folder: tempfile::TempDir,
        root: PathBuf,
        outside: PathBuf,
        folders: Folders,
    }

    fn scene() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("media");
        let outside = folder.path().join("secret");
        fs::create_dir_all(root.join("deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("a.jpg"), b"abc").unwrap();
        fs::write(outside.join("key"), b"secret").unwrap();
        let folders = Folders::new(std::slice::from_ref(&root));
        Scene { _folder: folder, root, outside, folders }
    }

    #[test]
    fn a_file_is_read_whole_with_its_hash() {
        let scene = scene();
        let media = scene.folders.read("u", &scene.root.join("a.jpg"), 3).unwrap();
        assert_eq!(&media.bytes[..], b"abc");
        assert_eq!(media.sha256, content_hash(b"abc"));
        let error = scene.folders.read("u", &scene.root.join("a.jpg"), 2).unwrap_err();
        assert!(matches!(error, MediaError::TooLarge { limit: 2, .. }));
    }

    #[test]
    fn links_out_of_the_folder_are_forbidden_and_links_within_are_not() {
        let scene = scene();
        symlink(scene.outside.join("key"), scene.root.join("file-link")).unwrap();
        symlink(&scene.outside, scene.root.join("deep/folder-link")).unwrap();
        symlink(scene.root.join("a.jpg"), scene.root.join("deep/inner")).unwrap();
        for path in ["file-link", "deep/folder-link/key"] {
            let error = scene.folders.read("u", &scene.root.join(path), 100).unwrap_err();
            assert!(matches!(error, MediaError::Forbidden { .. }), "{path}: {error}");
        }
        assert!(scene.folders.read("u", &scene.root.join("deep/inner"), 100).is_ok());
    }

    #[test]
    fn a_link_from_one_listed_folder_into_another_is_followed() {
        let scene = scene();
        symlink(scene.outside.join("key"), scene.root.join("link")).unwrap();
        let both = Folders::new(&[scene.root.clone(), scene.outside.clone()]);
        assert_eq!(&both.read("u", &scene.root.join("link"), 100).unwrap().bytes[..], b"secret");
    }

    #[test]
    fn a_listed_link_may_be_switched_over() {
        let scene = scene();
        let link = scene.root.with_file_name("current");
        symlink(&scene.root, &link).unwrap();
        let folders = Folders::new(std::slice::from_ref(&link));
        assert!(folders.read("u", &link.join("a.jpg"), 100).is_ok());
        fs::remove_file(&link).unwrap();
        symlink(&scene.outside, &link).unwrap();
        assert!(folders.read("u", &link.join("key"), 100).is_ok());
    }

    #[test]
    fn only_regular_files_are_read() {
        let scene = scene();
        let pipe = scene.root.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe, scene.root.join("deep")] {
            let error = scene.folders.read("u", &path, 100).unwrap_err();
            assert!(matches!(error, MediaError::Refused { .. }), "{error}");
        }
        let devices = Folders::new(&[PathBuf::from("/dev")]);
        assert!(matches!(devices.read("u", Path::new("/dev/zero"), 100), Err(MediaError::Refused { .. })));
    }

    #[test]
    fn a_missing_file_is_the_assets_fault_and_a_missing_folder_is_not() {
        let scene = scene();
        for path in ["none.jpg", "a.jpg/below"] {
            let error = scene.folders.read("u", &scene.root.join(path), 100).unwrap_err();
            assert!(matches!(error, MediaError::NotFound { .. }), "{path}: {error}");
        }
        let error = scene.folders.read("u", &scene.root.join("n".repeat(300)), 100).unwrap_err();
        assert_eq!(error.blame(), Blame::Asset, "{error}");
        fs::remove_dir_all(&scene.root).unwrap();
        let error = scene.folders.read("u", &scene.root.join("a.jpg"), 100).unwrap_err();
        assert!(error.to_string().contains("is it mounted"), "{error}");
        assert_eq!(error.blame(), Blame::World);
    }
}
