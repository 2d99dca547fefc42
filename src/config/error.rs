//! What can be wrong with a configuration file.

use std::io;
use std::path::{Path, PathBuf};

/// A configuration file that cannot be read, trusted, understood or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A line does not mean anything.
    #[error("{}:{line}: {problem}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// Somebody else could have written the file, or it is not a plain file.
    #[error("{}: {problem}", file.display())]
    Unsafe {
        /// The file.
        file: PathBuf,
        /// Which rule it breaks.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The request does not fit what the file says now.
    #[error("{}: {problem}", file.display())]
    Conflict {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
    /// The system refused to read or write it.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The step that failed, as a verb.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ConfigError {
    /// The file concerned.
    pub fn file(&self) -> &Path {
        match self {
            ConfigError::Line { file, .. }
            | ConfigError::Unsafe { file, .. }
            | ConfigError::Conflict { file, .. }
            | ConfigError::Io { file, .. } => file,
        }
    }

    /// The line concerned, counted from 1.
    pub fn line(&self) -> Option<usize> {
        match self {
            ConfigError::Line { line, .. } => Some(*line),
            _ => None,
        }
    }

    /// What to do next.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            ConfigError::Line { remedy, .. }
            | ConfigError::Unsafe { remedy, .. }
            | ConfigError::Conflict { remedy, .. } => Some(remedy),
            ConfigError::Io { .. } => None,
        }
    }

    pub(super) fn io(file: &Path, action: &'static str, source: impl Into<io::Error>) -> ConfigError {
        ConfigError::Io { file: file.to_owned(), action, source: source.into() }
    }
}
