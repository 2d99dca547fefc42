//! Reading a TOML file into a type, with errors that name the line and the word that was meant.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{ConfigError, nearest};

/// Reads `bytes` as the content of `file`, which is only used in messages; `otherwise` is what to do about a line whose
/// remedy is not known better.
///
/// # Errors
/// `Line`, when something in it does not mean anything.
pub(super) fn parse<T: DeserializeOwned>(file: &Path, bytes: &[u8], otherwise: &str) -> Result<T, ConfigError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        line_error(file, line, "it is not UTF-8", "rewrite the line")
    })?;
    toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let line = 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        line_error(file, line, e.message(), &remedy(e.message(), otherwise))
    })
}

fn line_error(file: &Path, line: usize, problem: &str, remedy: &str) -> ConfigError {
    ConfigError::Line { file: file.to_owned(), line, problem: problem.to_owned(), remedy: remedy.to_owned() }
}

/// The parser names the unknown word first and then the words it expected, all between backquotes.
fn remedy(message: &str, otherwise: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted[..] {
        [typed, ref known @ ..] if message.starts_with("unknown") => match nearest(typed, known.iter().copied()) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("known here: {}", known.join(", ")),
        },
        _ => otherwise.to_owned(),
    }
}
