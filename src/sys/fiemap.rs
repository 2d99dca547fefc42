//! Where a file's extents lie: FS_IOC_FIEMAP (Documentation/filesystems/fiemap.rst).

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, Result, check, retry};

/// One extent of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappedExtent {
    /// Its bytes in the file; may begin before what was asked for and end behind it.
    pub range: Range<u64>,
    /// FIEMAP_EXTENT_* bits.
    pub flags: u32,
}

impl MappedExtent {
    /// No extent is behind this one (FIEMAP_EXTENT_LAST).
    pub const LAST: u32 = 0x1;
    /// There is no place on the disk yet (FIEMAP_EXTENT_DELALLOC).
    pub const DELAYED: u32 = 0x4;
    /// Reserved: reads as zeros until it is written (FIEMAP_EXTENT_UNWRITTEN).
    pub const UNWRITTEN: u32 = 0x800;
}

/// Most extents of one call.
pub const FIEMAP_EXTENTS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct RawMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; FIEMAP_EXTENTS],
}

/// The first extents of `file` that touch `range`, at most [`FIEMAP_EXTENTS`], in order. What is dirty in the file is written
/// first (FIEMAP_FLAG_SYNC).
///
/// # Errors
/// EOPNOTSUPP where the filesystem cannot tell.
pub fn fiemap(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<MappedExtent>> {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const FIEMAP_FLAG_SYNC: u32 = 0x1;
    let mut map = RawMap {
        start: range.start,
        length: range.end.saturating_sub(range.start),
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: FIEMAP_EXTENTS as u32,
        reserved: 0,
        extents: [RawExtent::default(); FIEMAP_EXTENTS],
    };
    // SAFETY: the kernel reads the head of the struct and writes that and at most `extent_count` extents behind it.
    retry(|| check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) }))?;
    let found = map.extents.get(..map.mapped_extents as usize).ok_or(Errno::EOVERFLOW)?;
    let extent =
        |raw: &RawExtent| MappedExtent { range: raw.logical..raw.logical.saturating_add(raw.length), flags: raw.flags };
    Ok(found.iter().map(extent).collect())
}
