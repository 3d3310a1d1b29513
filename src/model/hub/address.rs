//! Where a model is published: organisation, name, revision, and the file if the repository has several models.
//!
//! Invariant: an address that was read names no place outside of its repository's folder.

use std::fmt;
use std::path::Path;

const SCHEME: &str = "hf://";
const USUAL_REVISION: &str = "main";

/// Why a location is none of the hub's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {detail}; write hf://org/name, hf://org/name@revision or hf://org/name/file.gguf")]
pub struct AddressError {
    pub location: String,
    pub detail: String,
}

/// `hf://org/name`, `hf://org/name@revision`, `hf://org/name/file.gguf[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    /// `org/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The one file that is meant.
    pub file: Option<String>,
}

impl HubAddress {
    /// None for a path of this machine.
    pub fn read(location: &Path) -> Result<Option<Self>, AddressError> {
        let Some(location) = location.to_str() else { return Ok(None) };
        let Some(rest) = location.strip_prefix(SCHEME) else { return Ok(None) };
        let refused = |detail: &str| AddressError { location: location.to_owned(), detail: detail.to_owned() };
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, revision),
            None => (rest, USUAL_REVISION),
        };
        let parts: Vec<&str> = path.split('/').collect();
        if !parts.iter().chain(&revision.split('/').collect::<Vec<_>>()).all(|part| is_plain(part)) {
            return Err(refused("a part of it is empty, `.`, `..` or has a letter that names do not have"));
        }
        let (repository, file) = match parts.as_slice() {
            [_, _] => (path.to_owned(), None),
            [organisation, name, file @ ..] if file.last().is_some_and(|last| last.ends_with(".gguf")) => {
                (format!("{organisation}/{name}"), Some(file.join("/")))
            }
            [_, _, ..] => return Err(refused("only a .gguf file can be named inside of a repository")),
            _ => return Err(refused("it has no organisation")),
        };
        Ok(Some(Self { repository, revision: revision.to_owned(), file }))
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}", self.repository)?;
        if let Some(file) = &self.file {
            write!(formatter, "/{file}")?;
        }
        if self.revision != USUAL_REVISION {
            write!(formatter, "@{}", self.revision)?;
        }
        Ok(())
    }
}

fn is_plain(part: &str) -> bool {
    let known = |letter: char| letter.is_ascii_alphanumeric() || "-_.+".contains(letter);
    !part.is_empty() && part != "." && part != ".." && part.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(location: &str) -> Result<Option<HubAddress>, AddressError> {
        HubAddress::read(Path::new(location))
    }

    #[test]
    fn an_address_is_shown_as_it_was_written() {
        for location in [
            "hf://sentence-transformers/all-MiniLM-L6-v2",
            "hf://org/name@v1.0",
            "hf://org/name@refs/pr/3",
            "hf://org/name/Q4/model-Q4_K_M.gguf@0123abc",
        ] {
            assert_eq!(read(location).unwrap().unwrap().to_string(), location);
        }
        assert_eq!(read("hf://org/name@main").unwrap().unwrap().to_string(), "hf://org/name");
        assert_eq!(read("models/hf:/name").unwrap(), None);
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_right_way_to_write_it() {
        for location in [
            "hf://gpt2",
            "hf://org/../name",
            "hf://org/name@",
            "hf://org/name@../../x",
            "hf://org/name/config.json",
            "hf://org/na me",
            "hf://",
        ] {
            let refusal = read(location).unwrap_err().to_string();
            assert!(refusal.contains(location) && refusal.contains("hf://org/name@revision"), "{refusal}");
        }
    }
}
