//! What can go wrong in the journal, with the facts as fields.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::base::{DatabaseError, Tid, VolumeUuid};
use crate::record::DecodeError;

/// An error of the journal, the segment log or the store.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A system call on one of the journal's files failed.
    #[error("{}: {what}: {errno}", path.display())]
    Io {
        /// The call or step.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// SQLite refused a step on `state.db`.
    #[error("state database: {what}: {cause}")]
    Sqlite {
        /// The step.
        what: &'static str,
        /// SQLite's reason.
        #[source]
        cause: rusqlite::Error,
    },
    /// The state database cannot be opened so that its commits are durable.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Another process (or another opener in this one) holds the journal.
    #[error("{}: in use by another process", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The volume is latched Failed: a write or sync of the log failed, so nothing after it can be trusted to be on disk.
    #[error("the journal has failed: {reason}")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// Another copy went on without this one.
    #[error("another copy of the volume was promoted: this one takes no changes any more")]
    Superseded,
    /// Bytes that were durable are no longer what was written.
    #[error("{} at byte {offset}: {what}", path.display())]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A frame's body does not hold records, although its checksum is right.
    #[error("{} at byte {offset}: {cause}", path.display())]
    Record {
        /// The segment file.
        path: PathBuf,
        /// Where the frame begins.
        offset: u64,
        /// What the record lacks.
        #[source]
        cause: DecodeError,
    },
    /// The asked place is older than what is kept.
    #[error("records after the asked place are trimmed; the oldest place kept is {oldest}")]
    Trimmed {
        /// The oldest cursor that can be served.
        oldest: Tid,
    },
    /// A frame does not continue the log.
    #[error("frame follows {prev}, but the log ends at {expected}")]
    Order {
        /// The frame's previous TID.
        prev: Tid,
        /// The log's last TID.
        expected: Tid,
    },
    /// A record or frame body that no segment can take.
    #[error("{bytes} bytes do not fit, the most is {most}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// The file was written by a newer or unknown program.
    #[error("{}: format {found} is not known (known: {known})", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// The segment belongs to another volume.
    #[error("{}: belongs to volume {found}", path.display())]
    Foreign {
        /// The segment file.
        path: PathBuf,
        /// Whose it is.
        found: VolumeUuid,
    },
    /// A row of `state.db` that the program cannot have written.
    #[error("state database: {what} is not allowed: {value}")]
    Row {
        /// Table and column.
        what: &'static str,
        /// What stands there.
        value: String,
    },
}

impl JournalError {
    /// Whether what was written before may be lost although it was thought to be on the disk, or to get there.
    pub fn is_failed_sync(&self) -> bool {
        matches!(
            self,
            JournalError::Io { what: "fdatasync" | "fsync" | "sync directory", .. } | JournalError::Failed { .. }
        )
    }

    /// The errno of a disk that has no room, when that is all that is wrong.
    pub fn full(&self) -> Option<Errno> {
        match self {
            JournalError::Io { errno: errno @ (Errno::ENOSPC | Errno::EDQUOT), .. } => Some(*errno),
            _ => None,
        }
    }

    /// What a filesystem operation answers when the journal refuses it: the disk's own ENOSPC or EDQUOT, EROFS for
    /// a volume that another copy has superseded, else EIO.
    pub fn errno(&self) -> Errno {
        match self {
            JournalError::Io { errno: errno @ (Errno::ENOSPC | Errno::EDQUOT), .. } => *errno,
            JournalError::Sqlite { cause, .. } if is_disk_full(cause) => Errno::ENOSPC,
            JournalError::Busy { .. } => Errno::EBUSY,
            JournalError::Superseded => Errno::EROFS,
            JournalError::TooLarge { .. } => Errno::EFBIG,
            _ => Errno::EIO,
        }
    }
}

fn is_disk_full(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Names the step and the file of a failed system call.
pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> JournalError {
    let path = path.to_owned();
    move |errno| JournalError::Io { what, path, errno }
}

/// As [`io`], for std's errors.
pub(super) fn std_io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |cause| JournalError::Io { what, path, errno: Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EIO)) }
}

/// Names the step of a failed statement.
pub(super) fn sql(what: &'static str) -> impl FnOnce(rusqlite::Error) -> JournalError {
    move |cause| JournalError::Sqlite { what, cause }
}
