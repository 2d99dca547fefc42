//! Readings for a check: what a target's object is compared with, nothing of it is changed.

use std::os::fd::AsFd;

use super::object::locked;
use super::{CHUNK_BYTES, ObjectReading, TreeView, is_gone};
use crate::backing::forget_cached;
use crate::base::{Name, Oid};
use crate::sys::{self, DirStream, Result};

/// Reads the object `oid` (no directory) from `offset` on: what it is (when `offset` is 0) and the digests of up to
/// [`CHUNK_BYTES`] of its data. Returns how many bytes that covers, too.
///
/// # Errors
/// As [`super::read_object`].
pub fn read_check(view: &dyn TreeView, oid: Oid, offset: u64) -> Result<(ObjectReading, u64)> {
    let mut covered = 0;
    let reading = locked(view, oid, |reader| {
        if offset == 0 {
            reader.head()?;
        }
        if !reader.is_file() || offset >= reader.stat.size {
            return Ok(None);
        }
        let end = reader.digests(offset)?;
        // More than that was a hole.
        covered = (end - offset).min(CHUNK_BYTES);
        Ok((end < reader.stat.size).then_some(end))
    })?;
    Ok((reading, covered))
}

/// Reads what `oid` is, and `len` bytes of a file from `offset` (at most [`CHUNK_BYTES`] of data) as they are, with
/// their holes: for a second look at what seemed to differ.
///
/// # Errors
/// As [`super::read_object`].
pub fn read_suspect(view: &dyn TreeView, oid: Oid, offset: u64, len: u64) -> Result<ObjectReading> {
    locked(view, oid, |reader| {
        reader.head()?;
        if reader.is_file() && len > 0 {
            forget_cached(reader.file(), offset, len)?;
            let end = (offset + len).min(reader.stat.size);
            reader.data(offset, end)?;
        }
        Ok(None)
    })
}

/// A name that the object `oid` has in the directory `dir` now.
///
/// # Errors
/// As open(2), getdents64(2) and stat(2). A directory that is gone has no names.
pub fn name_in(view: &dyn TreeView, dir: Oid, oid: Oid) -> Result<Option<Name>> {
    let (Some(key), Some(wanted)) = (view.key_of(dir)?, view.key_of(oid)?) else { return Ok(None) };
    let tree = view.tree();
    let fd = match tree.open_key(key, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME) {
        Err(errno) if is_gone(errno) => return Ok(None),
        fd => fd?,
    };
    let mut stream = DirStream::new(sys::reopen(fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME)?);
    while let Some(entry) = stream.next_entry()? {
        let Ok(name) = Name::new(&entry.name) else { continue };
        if tree.lookup(fd.as_fd(), &name).is_ok_and(|found| found.key == wanted) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
