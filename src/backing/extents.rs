//! Where a file holds data and where it has holes.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::forget_cached;
use crate::sys::{self, Errno, MappedExtent, Result};

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
    /// First byte of the range.
    pub fn offset(self) -> u64 {
        match self {
            Extent::Data { offset, .. } | Extent::Hole { offset, .. } => offset,
        }
    }

    /// First byte behind the range.
    pub fn end(self) -> u64 {
        match self {
            Extent::Data { offset, len } | Extent::Hole { offset, len } => offset + len,
        }
    }
}

/// The extent that starts at `offset` of a file of `size` bytes, or `None` at its end. A filesystem that does not know
/// holes has data everywhere (lseek(2)), and space that is reserved and holds nothing counts as data while the page cache has
/// something of it (mapping_seek_hole_data in mm/filemap.c): see [`extents_of_read`].
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

/// Data and holes of what was read (`bytes`) at `offset`, whoever else has read there. A block of zeros is data where zeros
/// are on the disk, and a hole where there is none, or only reserved space. What is not zero is data.
///
/// # Errors
/// As fsync(2) and lseek(2).
pub fn extents_of_read(file: BorrowedFd<'_>, offset: u64, bytes: &[u8]) -> Result<Vec<Extent>> {
    let end = offset + bytes.len() as u64;
    let mut found = Vec::new();
    if !zero_blocks(offset, bytes).any(|(_, is_zero)| is_zero) {
        add_extent(&mut found, offset..end, Kind::Data);
        return Ok(found);
    }
    let written = written(file, offset..end)?;
    for (block, is_zero) in zero_blocks(offset, bytes) {
        let is_written = written.iter().any(|part| part.start <= block.start && block.end <= part.end);
        add_extent(&mut found, block, if is_zero && !is_written { Kind::Hole } else { Kind::Data });
    }
    Ok(found)
}

/// The blocks that were read, each cut to what was, and whether it is zeros only.
fn zero_blocks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (Range<u64>, bool)> {
    let end = offset + bytes.len() as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let block = at..(at + 1).next_multiple_of(HOLE_UNIT).min(end);
        at = block.end;
        let part = &bytes[(block.start - offset) as usize..(block.end - offset) as usize];
        Some((block, part.iter().all(|byte| *byte == 0)))
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Hole,
}

/// Adds `range`, joined with what is of its kind before it.
fn add_extent(found: &mut Vec<Extent>, range: Range<u64>, kind: Kind) {
    let added = range.end - range.start;
    match (found.last_mut(), kind) {
        _ if added == 0 => {}
        (Some(Extent::Data { len, .. }), Kind::Data) | (Some(Extent::Hole { len, .. }), Kind::Hole) => *len += added,
        (_, Kind::Data) => found.push(Extent::Data { offset: range.start, len: added }),
        (_, Kind::Hole) => found.push(Extent::Hole { offset: range.start, len: added }),
    }
}

/// The parts of `range` that the disk holds something of, widened to [`HOLE_UNIT`], in order, apart from each other; what is
/// dirty is written first. Space that is reserved holds nothing, neither does space that will be once it is needed: xfs keeps
/// some behind every file that grows.
///
/// # Errors
/// As fsync(2) and lseek(2).
pub(super) fn written(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let extents = match sys::fiemap(file, at..range.end) {
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS) => return written_by_seek(file, range),
            extents => extents?,
        };
        let holds = |extent: &&MappedExtent| extent.flags & (MappedExtent::UNWRITTEN | MappedExtent::DELAYED) == 0;
        extents.iter().filter(holds).for_each(|extent| add_part(&mut found, &extent.range, &range));
        at = match extents.last() {
            Some(last) if last.flags & MappedExtent::LAST == 0 => last.range.end.max(at + 1),
            _ => range.end,
        };
    }
    Ok(found)
}

/// For a filesystem that does not tell: once nothing is in memory only, and as little as can be is in memory at all.
fn written_by_seek(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    sys::fdatasync(file)?;
    forget_cached(file, 0, 0)?;
    data_in(file, range)
}

/// What counts as data in `range` right now (see [`next_extent`]), widened to [`HOLE_UNIT`], in order, apart from each other.
///
/// # Errors
/// As lseek(2).
pub(super) fn data_in(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while let Some(extent) = next_extent(file, at, range.end)? {
        if let Extent::Data { offset, len } = extent {
            add_part(&mut found, &(offset..offset + len), &range);
        }
        at = extent.end();
    }
    Ok(found)
}

/// Adds what of `part` is in `range`, widened, joined with what it touches.
fn add_part(found: &mut Vec<Range<u64>>, part: &Range<u64>, range: &Range<u64>) {
    let start = (part.start / HOLE_UNIT * HOLE_UNIT).max(range.start);
    let end = part.end.checked_next_multiple_of(HOLE_UNIT).unwrap_or(u64::MAX).min(range.end);
    match found.last_mut() {
        _ if start >= end => {}
        Some(last) if start <= last.end => last.end = last.end.max(end),
        _ => found.push(start..end),
    }
}

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

    #[test]
    fn blocks_are_cut_to_what_was_read() {
        let mut bytes = vec![7; 3 * 4096];
        // Where each begins, and how long it is.
        let zeros = |offset, bytes: &[u8]| {
            let zeros = zero_blocks(offset, bytes).filter(|(_, is_zero)| *is_zero);
            zeros.map(|(block, _)| (block.start, block.end - block.start)).collect::<Vec<_>>()
        };
        assert!(zeros(0, &bytes).is_empty() && zeros(100, &bytes).is_empty() && zeros(0, &[]).is_empty());
        bytes[5000..5000 + 4096].fill(0);
        assert!(zeros(0, &bytes).is_empty(), "no block is all zeros");
        assert_eq!(zeros(4096 - 5000 % 4096, &bytes), [(8192, 4096)]);
        assert_eq!(zeros(4090, &[0, 0, 0, 0, 0, 0, 7]), [(4090, 6)]);
        assert_eq!(zeros(4090, &[7, 7, 7, 7, 7, 7, 0]), [(4096, 1)]);
    }

    /// Reserved, zeros written, a hole, and data, all of it in memory.
    #[test]
    fn reserved_space_that_was_read_is_a_hole_and_written_zeros_are_data() {
        let file = tempfile::tempfile_in(".").unwrap();
        sys::fallocate(file.as_fd(), 0, 0, 32 << 10).unwrap();
        file.write_all_at(&[0; 8 << 10], 8 << 10).unwrap();
        file.write_all_at(&[1; 4 << 10], 16 << 10).unwrap();
        file.set_len(64 << 10).unwrap();
        let mut bytes = vec![9; 64 << 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let expected = [
            Extent::Hole { offset: 0, len: 8 << 10 },
            Extent::Data { offset: 8 << 10, len: 12 << 10 },
            Extent::Hole { offset: 20 << 10, len: 44 << 10 },
        ];
        assert_eq!(extents_of_read(file.as_fd(), 0, &bytes).unwrap(), expected);
        assert_eq!(
            extents_of_read(file.as_fd(), 9 << 10, &bytes[9 << 10..10 << 10]).unwrap(),
            [Extent::Data { offset: 9 << 10, len: 1 << 10 }]
        );
        assert_eq!(written_by_seek(file.as_fd(), 0..64 << 10).unwrap(), written(file.as_fd(), 0..64 << 10).unwrap());
    }
}
