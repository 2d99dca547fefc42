//! Digests that say whether two files hold the same in one block: the same bytes and the same holes.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::extents::data_in;
use super::{Extent, HOLE_UNIT, extents_of_read};
use crate::base::faults;
use crate::sys::{self, Result};

/// Length of a compared block.
pub const BLOCK_BYTES: u64 = 128 << 10;

/// Where a range of a file holds data, looked up before any of it is read. What is read, and what is read ahead of that,
/// leaves pages in memory, and over space that is reserved but holds nothing these count as data (mapping_seek_hole_data
/// in mm/filemap.c, for extents that are unwritten: xfs reserves beyond the end of any file that grows).
pub struct DataMap {
    range: Range<u64>,
    data: Vec<Range<u64>>,
}

impl DataMap {
    /// Of `file` from `offset` to `end`, both at or before its end.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn of(file: BorrowedFd<'_>, offset: u64, end: u64) -> Result<DataMap> {
        let data = data_in(file, offset..end)?;
        Ok(DataMap { range: offset..end, data })
    }

    /// The data from `offset` to `end`, in order.
    fn within(&self, offset: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
        let cut = move |part: &Range<u64>| part.start.max(offset)..part.end.min(end);
        self.data.iter().map(cut).filter(|part| part.start < part.end)
    }

    /// Lets the pages go that reading has left, where there are holes: whoever looks next finds these. One folio may hold data
    /// and what is behind it.
    ///
    /// # Errors
    /// As posix_fadvise(2).
    pub fn forget_holes(&self, file: BorrowedFd<'_>) -> Result<()> {
        let len = self.range.end.saturating_sub(self.range.start);
        match self.data.iter().map(|part| part.end - part.start).sum::<u64>() < len {
            true => forget_cached(file, self.range.start, len),
            false => Ok(()),
        }
    }
}

/// Digest of `len` bytes (at most [`BLOCK_BYTES`]) at `offset` of `file`, whose size is `size` and whose data is in `map`.
/// Blocks that read the same but have holes in other places differ.
///
/// # Errors
/// As pread(2) and [`extents_of_read`].
pub fn block_digest(file: BorrowedFd<'_>, map: &DataMap, offset: u64, len: u64, size: u64) -> Result<[u8; 16]> {
    let end = (offset + len).min(size);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; (end - offset) as usize];
    for part in map.within(offset, end) {
        let bytes = &mut buffer[(part.start - offset) as usize..(part.end - offset) as usize];
        sys::read_exact_at(file, bytes, part.start)?;
        for extent in extents_of_read(file, part.start, bytes)? {
            if let Extent::Data { offset, len } = extent {
                hasher.update(&(offset / HOLE_UNIT).to_le_bytes());
                hasher.update(&(offset + len).div_ceil(HOLE_UNIT).to_le_bytes());
            }
        }
    }
    hasher.update(&buffer);
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(digest)
}

/// Sees to it that the next read of this range is of what the disk holds; a `len` of 0 reaches to the end. A page whose way to
/// the disk failed counts as clean afterwards (errseq_t, mm/filemap.c), and a comparison of what is in memory would find
/// nothing. Pages that are dirty, or mapped by a program, stay: those are still to be written, or in use.
///
/// # Errors
/// As posix_fadvise(2).
pub fn forget_cached(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    faults::step("backing.forget_cached", || {
        posix_fadvise(file, offset as i64, len as i64, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
    })
}
