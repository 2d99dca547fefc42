//! Digests that say whether two files hold the same in one block: the same bytes and the same holes.

use std::os::fd::BorrowedFd;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{Extent, HOLE_UNIT, next_extent};
use crate::base::faults;
use crate::sys::{self, Result};

/// Length of a compared block.
pub const BLOCK_BYTES: u64 = 128 << 10;

/// The digest of `len` bytes (at most [`BLOCK_BYTES`]) at `offset` of `file`, whose size is `size`. Blocks that read the
/// same but have holes in other places differ.
///
/// # Errors
/// As pread(2) and lseek(2).
pub fn block_digest(file: BorrowedFd<'_>, offset: u64, len: u64, size: u64) -> Result<[u8; 16]> {
    let end = (offset + len).min(size);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; (end - offset) as usize];
    let mut at = offset;
    while let Some(extent) = next_extent(file, at, end)? {
        if let Extent::Data { offset: from, len } = extent {
            let part = &mut buffer[(from - offset) as usize..][..len as usize];
            sys::read_exact_at(file, part, from)?;
            hasher.update(&(from / HOLE_UNIT).to_le_bytes());
            hasher.update(&(from + len).div_ceil(HOLE_UNIT).to_le_bytes());
        }
        at = extent.end();
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
