//! Where a file holds data and where it has holes.

use std::os::fd::BorrowedFd;

use crate::sys::{self, Errno, Result};

/// A range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Bytes to read.
    Data {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// No bytes: reads as zeros.
    Hole {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Extent {
    /// First byte behind the range.
    pub fn end(self) -> u64 {
        match self {
            Extent::Data { offset, len } | Extent::Hole { offset, len } => offset + len,
        }
    }
}

/// The extent that starts at `offset` of a file of `size` bytes, or `None` at its end. A filesystem that does not know
/// holes has data everywhere (lseek(2)).
///
/// # Errors
/// As lseek(2).
pub fn next_extent(file: BorrowedFd<'_>, offset: u64, size: u64) -> Result<Option<Extent>> {
    if offset >= size {
        return Ok(None);
    }
    let data = match sys::lseek(file, offset as i64, libc::SEEK_DATA) {
        Ok(data) => data.min(size),
        Err(Errno::ENXIO) => size,
        Err(errno) => return Err(errno),
    };
    if data > offset {
        return Ok(Some(Extent::Hole { offset, len: data - offset }));
    }
    let hole = match sys::lseek(file, offset as i64, libc::SEEK_HOLE) {
        Ok(hole) => hole.min(size),
        Err(Errno::ENXIO) => size,
        Err(errno) => return Err(errno),
    };
    Ok(Some(Extent::Data { offset, len: hole.max(offset + 1) - offset }))
}

/// Granularity at which filesystems with the usual block size agree about holes.
pub const HOLE_UNIT: u64 = 4096;

/// Whether the block around byte `at` holds data.
///
/// # Errors
/// As lseek(2).
pub fn block_is_data(file: BorrowedFd<'_>, at: u64) -> Result<bool> {
    let block = at / HOLE_UNIT * HOLE_UNIT;
    Ok(matches!(next_extent(file, block, block + HOLE_UNIT)?, Some(Extent::Data { .. })))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_and_holes_alternate() {
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 512 * 1024).unwrap();
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some(extent) = next_extent(file.as_fd(), at, 1 << 20).unwrap() {
            at = extent.end();
            seen.push(extent);
        }
        let expected = [
            Extent::Hole { offset: 0, len: 512 * 1024 },
            Extent::Data { offset: 512 * 1024, len: 4096 },
            Extent::Hole { offset: 516 * 1024, len: 508 * 1024 },
        ];
        assert_eq!(seen, expected);
    }
}
