//! A file that ends in a hole, and grows.
//!
//! Where a file ends in the middle of a block, btrfs writes zeros behind that place before the size moves
//! (btrfs_truncate_block, called by btrfs_cont_expand in fs/btrfs/inode.c and by btrfs_fallocate in fs/btrfs/file.c), and does
//! so in a hole as well: that block holds data afterwards. ext4, xfs and tmpfs leave the hole. So a source whose tree is
//! on btrfs says that it happened, and a target on btrfs keeps it from happening.

use std::os::fd::BorrowedFd;

use super::extents::{HOLE_UNIT, block_is_data};
use super::tree::Tree;
use crate::sys::{self, Result};

/// What is about to happen to a file.
#[derive(Clone, Copy, Debug)]
pub enum Growth {
    /// Bytes are written.
    Write {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// It gets at least this size in bytes: truncate(2), fallocate(2).
    Size(u64),
}

/// The size in bytes of a file that ends in the middle of a block which is a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HoleAtEnd(u64);

impl Growth {
    /// Whether it makes a file of `size` bytes longer, other than by writing into its last block.
    fn leaves_behind(self, size: u64) -> bool {
        match self {
            Growth::Write { offset, len } => len > 0 && offset >= size.next_multiple_of(HOLE_UNIT),
            Growth::Size(after) => after > size,
        }
    }
}

impl Tree {
    /// The end of `file` when it lies in a hole that this filesystem makes data of by `growth`. Costs nothing where the
    /// filesystem does not do that.
    ///
    /// # Errors
    /// As fstat(2) and lseek(2).
    pub fn hole_at_end(&self, file: BorrowedFd<'_>, growth: Growth) -> Result<Option<HoleAtEnd>> {
        if !self.fills_tails {
            return Ok(None);
        }
        let size = sys::fstat(file)?.size;
        let unmoved = size % HOLE_UNIT == 0 || !growth.leaves_behind(size);
        Ok((!unmoved && !block_is_data(file, size)?).then_some(HoleAtEnd(size)))
    }
}

impl HoleAtEnd {
    /// Where the hole was filled, now that the file has `size` bytes: first byte and length.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn filled(self, file: BorrowedFd<'_>, size: u64) -> Result<Option<(u64, u64)>> {
        let end = self.0.next_multiple_of(HOLE_UNIT).min(size);
        Ok((end > self.0 && block_is_data(file, self.0)?).then(|| (self.0, end - self.0)))
    }

    /// Where its block begins. A file that ends there instead has lost nothing, and grows without being filled.
    pub fn block_start(self) -> u64 {
        self.0 / HOLE_UNIT * HOLE_UNIT
    }
}
