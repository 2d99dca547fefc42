//! Why a volume cannot be opened or mounted, and what an operator can do about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::backing::BackingError;
use crate::config::TargetName;
use crate::control::{ExitCode, Failure, Holders, Objects, Opener, look_below};
use crate::fuse::MountError;
use crate::journal::JournalError;
use crate::stack::StackError;

/// Why a volume cannot be opened or mounted.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum VolumeError {
    #[error(transparent)]
    Backing(#[from] BackingError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("{path}: in use by {}", list(.holders))]
    InUse {
        /// The mount point.
        path: PathBuf,
        holders: Holders,
    },
    #[error("{path}: files below it are open for writing, or may be, and what is written to them would not be seen: {}",
        list(&writers(.holders)))]
    OpenFiles {
        /// The directory.
        path: PathBuf,
        holders: Holders,
    },
    #[error("{path} is a copy of another source: what is written here would not be known there")]
    IsCopy {
        /// The directory.
        path: PathBuf,
    },
    #[error("target {target} is served already, by {}", if *.by_command { "another command" } else { "the daemon" })]
    Running { target: TargetName, by_command: bool },
    #[error("{path}: {cause}")]
    Io {
        /// The directory.
        path: PathBuf,
        cause: std::io::Error,
    },
}

/// Each process once.
fn list(holders: &Holders) -> String {
    let name = |(pid, command): (u32, &str)| format!("pid {pid} ({command})");
    let names: BTreeMap<u32, &str> =
        holders.openers.iter().map(|opener| (opener.pid, opener.command.as_str())).collect();
    let mut names: Vec<String> = names.into_iter().map(name).collect();
    names.extend(holders.unseen.iter().map(ToString::to_string));
    if names.is_empty() { "somebody /proc does not show".to_owned() } else { names.join(", ") }
}

fn writers(holders: &Holders) -> Holders {
    let mut writers = holders.clone();
    writers.openers.retain(|opener: &Opener| opener.writes);
    writers
}

/// Who holds files at or below `path`.
pub(in crate::daemon) fn holders_below(path: &Path) -> Holders {
    let dev = std::fs::symlink_metadata(path).map(|root| std::os::unix::fs::MetadataExt::dev(&root));
    dev.map(|dev| look_below(dev, path, Objects::Named).holders()).unwrap_or_default()
}

impl VolumeError {
    /// Who stands in the way.
    pub(in crate::daemon) fn holders(&self) -> Holders {
        match self {
            VolumeError::InUse { holders, .. } | VolumeError::OpenFiles { holders, .. } => holders.clone(),
            _ => Holders::default(),
        }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        let code = match &error {
            VolumeError::Backing(BackingError::InnerMounts { .. } | BackingError::Unsupported { .. }) => {
                ExitCode::Refused
            }
            VolumeError::OpenFiles { .. } | VolumeError::IsCopy { .. } => ExitCode::Refused,
            VolumeError::InUse { .. } | VolumeError::Running { .. } => ExitCode::Busy,
            VolumeError::Mount(MountError::Busy { .. }) | VolumeError::Journal(JournalError::Busy { .. }) => {
                ExitCode::Busy
            }
            _ => ExitCode::Failed,
        };
        let failure = Failure::new(code, &error);
        match &error {
            VolumeError::InUse { .. } | VolumeError::Mount(MountError::Busy { .. }) => {
                failure.with_remedy("end the programs that use it, or unmount with --lazy")
            }
            VolumeError::OpenFiles { .. } => failure.with_remedy(
                "end these programs, or mount with --allow-open: then the files are compared until they are closed, and \
                 everything once when a program that could not be looked into has gone on or ended",
            ),
            VolumeError::Backing(BackingError::InnerMounts { .. }) => failure.with_remedy(
                "unmount them first, and mount them again on top; or choose submounts=ignore: they stay out",
            ),
            VolumeError::IsCopy { .. } => failure
                .with_remedy("make it a master with dtfs promote, or take the entry away with dtfs forget volume"),
            VolumeError::Running { by_command: true, .. } => {
                failure.with_remedy("one session to a target at a time: end the other one")
            }
            VolumeError::Running { by_command: false, .. } => {
                failure.with_remedy("it is kept up to date all the time; dtfs wait waits until it has everything")
            }
            _ => failure,
        }
    }
}
