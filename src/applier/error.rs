//! What keeps a record from being performed, and whom it concerns.

use super::catalog::CatalogError;
use super::replica::ReplicaError;
use crate::base::{Oid, Tid};
use crate::sys::Errno;

/// Why a record could not be performed. The stream must stop: the record is performed again later.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The tree's filesystem refused.
    #[error("{word} of {oid} at {tid}: {errno}")]
    Tree {
        /// The record's kind.
        word: &'static str,
        /// Its object.
        oid: Oid,
        /// Its TID.
        tid: Tid,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The tree could not be made durable.
    #[error("syncfs of the target tree: {0}")]
    Sync(Errno),
    /// That the replica is in doubt could not be written down.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl ApplyError {
    /// The errno of a disk that has no room: what could not be done now can be done when there is some.
    pub fn full(&self) -> Option<Errno> {
        match self {
            ApplyError::Tree { errno: errno @ (Errno::ENOSPC | Errno::EDQUOT), .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether what was durable may be durable no more, so that the copy must be compared: a sync failed, or the catalog
    /// contradicts itself or could not be written.
    pub fn casts_doubt(&self) -> bool {
        match self {
            ApplyError::Sync(_) => true,
            ApplyError::Catalog(error) => !error.is_full(),
            _ => false,
        }
    }
}

/// What goes wrong inside: told apart so that the caller can name the record.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Errno(#[from] Errno),
    /// As `Errno`, and it lies with this one object.
    #[error("{0}")]
    Object(Errno),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Trouble {
    /// The errno, where that is all.
    pub(super) fn errno(self) -> Outcome<Errno> {
        match self {
            Trouble::Errno(errno) | Trouble::Object(errno) => Ok(errno),
            trouble @ Trouble::Catalog(_) => Err(trouble),
        }
    }

    /// Whether it lies with one object and would come again at every try, so that the stream goes on without that object.
    pub(super) fn lies_with_one_object(&self) -> bool {
        match self {
            Trouble::Object(_) => true,
            Trouble::Errno(errno) => blocks_one_object(*errno),
            Trouble::Catalog(_) => false,
        }
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Trouble>;

/// Errors that concern one object and would come again at every try, however often: what it is to have does not exist on
/// this filesystem. All others concern the disk, or are not known, and stop the stream.
fn blocks_one_object(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EFBIG
            | Errno::EOPNOTSUPP
            | Errno::E2BIG
            | Errno::EINVAL
            | Errno::EMLINK
            | Errno::EOVERFLOW
            | Errno::ENAMETOOLONG
            | Errno::EILSEQ
            | Errno::ERANGE
    )
}
