//! Reads the state of an object while it changes, and yields it as state records for a target: the initial mirror, a
//! comparison after an unclean stop, and whatever a target asks for are all done with these readings.
//!
//! Invariants:
//! - Every reading is made under the object's lock and stamped with the TID of the last change it can include. Merged
//!   into the stream right behind that TID, it is exact.
//! - At most [`CHUNK_BYTES`] of a file, and a part of a directory, are read under one lock, so that a writer waits for
//!   milliseconds, not for a file.
//! - Reading leaves no access time and no record, and opens nothing but regular files and directories for reading.

mod census;
mod changed;
mod check;
mod directory;
mod object;

pub use crate::backing::TreeView;
pub use census::Census;
pub use changed::{Changed, ChangedSince};
pub use check::{name_in, read_check, read_suspect};
pub use directory::{Child, DirReading, DirWalk, Follow, is_dir};
pub use object::{Compare, ObjectReading, read_changed, read_object, read_range};

use crate::base::{Oid, Tid};
use crate::record::{Draft, Encoded, Op, Xattr};
use crate::sys::{Errno, Result};
use std::os::fd::BorrowedFd;

/// Most of a file that is read under one lock.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// A state record: its TID is the stamp.
fn state(oid: Oid, stamp: Tid, op: &Op, payload: &[u8]) -> Encoded {
    Draft::new(oid, op, payload).seal(stamp, 0)
}

/// All xattrs, as long as they fit a record. More than that (a filesystem may hold any number of 64 KiB values) puts the
/// object aside, and stops nothing else.
fn xattrs_of(tree: &crate::backing::Tree, fd: BorrowedFd<'_>) -> Result<Vec<Xattr>> {
    // The rest is for the entries of a part of a directory, or for headers.
    const ROOM: usize = crate::record::MAX_RECORD_BYTES / 2;
    let all = tree.xattrs(fd, crate::record::RESERVED_XATTR_PREFIX)?;
    match all.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>() <= ROOM {
        true => Ok(all.into_iter().map(|(name, value)| Xattr { name, value }).collect()),
        false => Err(Errno::E2BIG),
    }
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ESTALE | Errno::ENOENT)
}
