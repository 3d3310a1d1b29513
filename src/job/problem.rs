//! One thing that is wrong in a file that a person wrote: where it is, what is wrong and what to do.
//!
//! It does not know what kind of file it is about. Every complaint about jobs, schemas and configuration is a
//! [`Problem`], so that all of them print alike.

use std::fmt;
use std::path::{Path, PathBuf};

/// Prints as `file:line: key: message`; parts that are unknown are left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or what stands in for one, such as an environment variable.
    pub file: PathBuf,
    /// Counts from 1; none when the complaint is about the file as a whole, or about something that is missing in it.
    pub line: Option<usize>,
    /// Path of the key, such as `tables.commit.rows` or `embeddings[0].model`; empty for the whole file.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A complaint about the file as a whole.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, key: String::new(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_prints_as_editors_expect_it() {
        let problem =
            Problem { line: Some(3), key: "kind".into(), ..Problem::of_file(Path::new("a.toml"), "is wrong") };
        assert_eq!(problem.to_string(), "a.toml:3: kind: is wrong");
        assert_eq!(Problem::of_file(Path::new("a.toml"), "is empty").to_string(), "a.toml: is empty");
    }
}
