//! How a command ends.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, NameProblem, Refusal, RefusalKind};

/// The exit code of a command, the same for every command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Ok = 0,
    /// It failed for a reason that has no code of its own.
    Failed = 1,
    /// The command or a configuration file is wrong.
    Usage = 2,
    /// No daemon answers.
    NoDaemon = 3,
    /// A target is behind, or the time ran out.
    Behind = 4,
    /// Somebody else is at it; try again.
    Busy = 5,
    /// A comparison found differences.
    Differences = 6,
    /// Refused, because it would endanger data.
    Refused = 7,
    /// Some of several things were done.
    Partly = 8,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> std::process::ExitCode {
        std::process::ExitCode::from(code as u8)
    }
}

/// What happened, to what, and what to do next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the command ends.
    pub code: ExitCode,
    /// What happened, to what. One sentence without a full stop.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure without a remedy.
    pub fn new(code: ExitCode, message: impl std::fmt::Display) -> Failure {
        Failure { code, message: message.to_string(), remedy: None }
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Failure {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let code = match error {
            ConfigError::Io { .. } => ExitCode::Failed,
            _ => ExitCode::Usage,
        };
        Failure { code, remedy: error.remedy().map(str::to_owned), message: error.to_string() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let code = match refusal.kind() {
            RefusalKind::Usage => ExitCode::Usage,
            RefusalKind::Safety => ExitCode::Refused,
        };
        Failure::new(code, &refusal).with_remedy(refusal.remedy())
    }
}

impl From<NameProblem> for Failure {
    fn from(problem: NameProblem) -> Failure {
        Failure::new(ExitCode::Usage, problem)
    }
}
