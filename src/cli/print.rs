//! Lines, JSON and errors.

use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use super::cannot_write;
use crate::control::{Failure, VERSION, printable};

/// One line of the result, safe for a terminal.
pub(super) fn say(output: &mut dyn Write, line: &str) -> Result<(), Failure> {
    writeln!(output, "{}", printable(line)).map_err(cannot_write)
}

/// `value` as one JSON object on one line, with the version beside its fields.
pub(super) fn print_json(output: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    let mut json = serde_json::to_value(value).map_err(|e| cannot_write(e.into()))?;
    if let Value::Object(fields) = &mut json {
        fields.insert("v".to_owned(), VERSION.into());
    }
    writeln!(output, "{json}").map_err(cannot_write)
}

/// Reports a failure on standard error: what happened, and what to do next.
pub fn report(failure: &Failure) {
    let mut error = std::io::stderr().lock();
    // When standard error is gone too, the exit code is all that is left.
    let _ = writeln!(error, "dtfs: {}", printable(&failure.message));
    if let Some(remedy) = &failure.remedy {
        let _ = writeln!(error, "  next: {}", printable(remedy));
    }
}
