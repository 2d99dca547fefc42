//! Digests that say whether two files hold the same in one block: the same bytes and the same holes.

use std::os::fd::BorrowedFd;

use super::{Extent, HOLE_UNIT, next_extent};
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
