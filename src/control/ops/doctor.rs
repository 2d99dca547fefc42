//! `dtfs doctor`: what on this host stands in the way of replication, or will one day.

mod host;
mod state;

use serde::Serialize;

use crate::config::Paths;
use crate::control::Failure;

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// It works, and is not as it should be.
    Warning,
    /// Something does not work, or data are not replicated.
    Error,
}

impl Severity {
    /// The word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Its name, the same in every version.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found, in one sentence.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { id, severity, what: what.into(), fix: fix.into() }
    }
}

/// Everything that is found, the worst first. Changes nothing.
///
/// # Errors
/// When the configuration cannot be read at all.
pub fn doctor(paths: &Paths) -> Result<Vec<Finding>, Failure> {
    let mut findings = host::look(paths)?;
    findings.extend(state::look(paths)?);
    findings.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.id));
    Ok(findings)
}
