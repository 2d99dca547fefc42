//! Readings for a check: what a target's object is compared with, nothing of it is changed.

use std::os::fd::AsFd;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::object::{Reader, locked};
use super::{CHUNK_BYTES, ObjectReading, TreeView, is_gone};
use crate::backing::{Extent, HOLE_UNIT, next_extent};
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
            forget_cached(reader)?;
            let end = (offset + len).min(reader.stat.size);
            reader.data(offset, end)?;
        }
        Ok(None)
    })
}

/// Pages that were read over reserved space count as data (iomap's SEEK_DATA): they go, so that the map is the disk's. Not
/// before what is dirty was written, for that keeps its neighbours in one folio. A lost write is told to every descriptor
/// that was open then, so the volume's own syncfs still hears of one that is told here (fs/sync.c, errseq).
fn forget_cached(reader: &Reader<'_>) -> Result<()> {
    sys::fdatasync(reader.file())?;
    posix_fadvise(reader.file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

/// Whether the file `oid` has space on the disk that holds no data: reserved by fallocate(2), or what the filesystem needs to
/// describe many extents. Such ranges read as zeros, and count as data while a page of them is in memory: whether a target
/// has a hole or zeros there says nothing.
///
/// # Errors
/// As open(2), lseek(2) and stat(2).
pub fn has_reserved(view: &dyn TreeView, oid: Oid) -> Result<bool> {
    let mut reserved = false;
    locked(view, oid, |reader| {
        if reader.is_file() {
            forget_cached(reader)?;
            let (mut at, mut data) = (0, 0);
            while let Some(extent) = next_extent(reader.file(), at, reader.stat.size)? {
                if let Extent::Data { offset, len } = extent {
                    data += (offset + len).next_multiple_of(HOLE_UNIT) - offset;
                }
                at = extent.end();
            }
            reserved = sys::fstat(reader.file())?.blocks * 512 > data;
        }
        Ok(None)
    })?;
    Ok(reserved)
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
