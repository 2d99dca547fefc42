//! Data, attributes and xattrs of objects whose state is known here. For others these records are skipped: their state is
//! still to come, stamped later than the record, or they are gone.

use std::os::fd::{AsFd, BorrowedFd};

use super::catalog::Known;
use super::objects::c_name;
use super::{Applier, Outcome};
use crate::backing::{Growth, HOLE_UNIT, block_is_data};
use crate::base::{Oid, faults};
use crate::record::{Attrs, FIRST_BLOCK_IS_DATA, LAST_BLOCK_IS_DATA, Op};
use crate::sys::Errno;

impl Applier {
    pub(super) fn perform_data(&mut self, oid: Oid, op: &Op, payload: &[u8]) -> Outcome<()> {
        let kind = match self.catalog.get(oid)? {
            Some(row) if row.known > Known::Placeholder => row.kind,
            _ => return Ok(()),
        };
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        if matches!(op, Op::SetXattr { .. } | Op::SetFlags { .. }) {
            self.fresh.remove(oid);
        }
        let fd = fd.as_fd();
        if matches!(op, Op::Write { .. } | Op::Truncate { .. } | Op::Allocate { .. }) {
            self.keep_content(oid, fd)?;
        }
        let tree = self.tree.mutate();
        let attrs = match op {
            Op::Write { offset, attrs } => {
                self.keep_hole_at_end(fd, Growth::Write { offset: *offset, len: payload.len() as u64 })?;
                tree.write_all(fd, payload, *offset)?;
                attrs
            }
            Op::Truncate { attrs } => {
                self.set_size(fd, attrs.size)?;
                attrs
            }
            Op::Allocate { mode, offset, len, attrs } => {
                self.allocate(fd, *mode, (*offset, *len), attrs)?;
                attrs
            }
            Op::SetAttr { attrs } => attrs,
            Op::SetXattr { xattr, attrs } => {
                self.set_xattr(fd, &c_name(&xattr.name)?, &xattr.value)?;
                attrs
            }
            Op::RemoveXattr { name, attrs } => {
                match tree.remove_xattr(fd, &c_name(name)?) {
                    Ok(()) | Err(Errno::ENODATA) => {}
                    Err(errno) => return Err(errno.into()),
                }
                attrs
            }
            Op::SetFlags { flags, attrs } => {
                self.set_late_hints(oid, kind, fd, flags)?;
                self.touched.entry(oid).or_default().flags = Some(*flags);
                attrs
            }
            _ => return Ok(()),
        };
        self.touch(oid, *attrs);
        Ok(())
    }

    /// ftruncate(2), which leaves a hole at the old end alone.
    pub(super) fn set_size(&self, fd: BorrowedFd<'_>, size: u64) -> Outcome<()> {
        self.keep_hole_at_end(fd, Growth::Size(size))?;
        Ok(self.tree.mutate().truncate(fd, size)?)
    }

    /// What ends in a hole, and is about to grow, is cut at the beginning of that block, which loses nothing: this filesystem
    /// would make data of the block otherwise. Where the source's did, a record says so.
    fn keep_hole_at_end(&self, fd: BorrowedFd<'_>, growth: Growth) -> Outcome<()> {
        match self.tree.hole_at_end(fd, growth)? {
            Some(_) if faults::skipped("applier.hole_at_end") => Ok(()),
            Some(hole) => Ok(self.tree.mutate().truncate(fd, hole.block_start())?),
            None => Ok(()),
        }
    }

    fn allocate(&self, fd: BorrowedFd<'_>, mode: i32, (offset, len): (u64, u64), attrs: &Attrs) -> Outcome<()> {
        // Collapse and insert move data and cannot be performed twice; a source sends their effect as data.
        const KNOWN: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let cut = mode & (FIRST_BLOCK_IS_DATA | LAST_BLOCK_IS_DATA);
        let mode = mode & !cut;
        if mode & !KNOWN != 0 || len == 0 {
            return Err(Errno::EINVAL.into());
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            self.keep_hole_at_end(fd, Growth::Size(offset.saturating_add(len)))?;
        }
        match self.tree.mutate().allocate(fd, mode, offset, len) {
            // This filesystem cannot: what counts is what a reader sees.
            Err(Errno::EOPNOTSUPP) if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 => {
                self.write_zeros(fd, offset, len.min(attrs.size.saturating_sub(offset)))?;
            }
            Err(Errno::EOPNOTSUPP) => {}
            other => other?,
        }
        self.set_size(fd, attrs.size)?;
        self.fill_cut_blocks(fd, cut, (offset, len), attrs.size)
    }

    /// Makes data of the blocks at the ends of a punched range where the source has data: zeros, as there.
    fn fill_cut_blocks(&self, fd: BorrowedFd<'_>, cut: i32, (offset, len): (u64, u64), size: u64) -> Outcome<()> {
        let end = offset + len;
        let first = (FIRST_BLOCK_IS_DATA, offset, offset.next_multiple_of(HOLE_UNIT).min(end));
        let last = (LAST_BLOCK_IS_DATA, (end / HOLE_UNIT * HOLE_UNIT).max(offset), end);
        for (bit, from, to) in [first, last] {
            if cut & bit != 0 && from < size && !block_is_data(fd, from)? {
                self.write_zeros(fd, from, to.min(size) - from)?;
            }
        }
        Ok(())
    }

    fn write_zeros(&self, fd: BorrowedFd<'_>, mut offset: u64, mut len: u64) -> Outcome<()> {
        let zeros = vec![0; 1 << 20];
        while len > 0 {
            let step = len.min(zeros.len() as u64);
            self.tree.mutate().write_all(fd, &zeros[..step as usize], offset)?;
            offset += step;
            len -= step;
        }
        Ok(())
    }
}
