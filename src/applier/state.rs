//! State records: what an object is at the place where they stand in the stream.

use std::os::fd::{AsFd, BorrowedFd};

use super::attributes::CAPABILITY;
use super::catalog::Known;
use super::listing::Part;
use super::{Applier, Missing, Outcome};
use crate::backing::{BLOCK_BYTES, DataMap, Extent, HOLE_UNIT, block_digest, forget_cached, next_extent};
use crate::base::Oid;
use crate::record::{Attrs, Op, Shape, Xattr};
use crate::sys::{self, Errno, InodeFlags};

/// Longest range that is asked for at once.
const NEED_BYTES: u64 = 1 << 20;

impl Applier {
    pub(super) fn perform_state(&mut self, oid: Oid, op: &Op, payload: &[u8]) -> Outcome<()> {
        match op {
            Op::StateDir { .. } => match Part::of(op) {
                Some(part) => self.perform_part(oid, &part),
                None => Ok(()),
            },
            Op::StateObject { shape, attrs, xattrs, flags } => {
                self.set_object(oid, shape, attrs, (xattrs, flags))?;
                self.touch_listed(oid, *attrs, *flags);
                Ok(())
            }
            Op::StateAttrs { attrs, xattrs, flags } => match self.catalog.get(oid)? {
                Some(row) if row.known > Known::Placeholder => {
                    if let Some(fd) = self.fd(oid)? {
                        self.set_late_hints(oid, row.kind, fd.as_fd(), flags)?;
                    }
                    self.set_state_of(oid, row.kind, attrs, xattrs)?;
                    self.touch_listed(oid, *attrs, *flags);
                    Ok(())
                }
                _ => {
                    self.need(oid);
                    Ok(())
                }
            },
            Op::StateAlike { shape, attrs, xattrs, flags } => match self.is_alike(oid, shape, attrs)? {
                true => {
                    if let Some(fd) = self.fd(oid)? {
                        self.set_late_hints(oid, shape.kind, fd.as_fd(), flags)?;
                    }
                    self.set_state_of(oid, shape.kind, attrs, xattrs)?;
                    self.touch_listed(oid, *attrs, *flags);
                    self.end_object(oid, attrs)
                }
                false => {
                    self.need(oid);
                    Ok(())
                }
            },
            Op::StateEnd { attrs } => self.end_object(oid, attrs),
            Op::StateData { attrs, .. } | Op::StateHole { attrs, .. } | Op::StateHash { attrs, .. } => {
                match self.catalog.get(oid)? {
                    Some(row) if row.known > Known::Placeholder && row.kind == libc::S_IFREG => {
                        self.set_content(oid, op, payload)?;
                        self.touch(oid, *attrs);
                    }
                    // Its head is missing here: a piece alone says nothing.
                    _ => self.need(oid),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the file here has the size and the time of modification of the source's, and is no rest of an unfinished one:
    /// that has both before it has its content.
    fn is_alike(&mut self, oid: Oid, shape: &Shape, attrs: &Attrs) -> Outcome<bool> {
        let whole = |known| matches!(known, Known::Complete | Known::Placeholder);
        if !self.catalog.get(oid)?.is_some_and(|row| row.kind == shape.kind && whole(row.known)) {
            return Ok(false);
        }
        let Some(fd) = self.fd(oid)? else { return Ok(false) };
        let stat = sys::fstat(fd.as_fd())?;
        // What this group has changed gets its time when the group ends.
        let mtime = self.touched.get(&oid).and_then(|touched| touched.attrs).map_or(stat.mtime, |attrs| attrs.mtime);
        Ok(stat.size == attrs.size && mtime == attrs.mtime)
    }

    fn set_object(
        &mut self,
        oid: Oid,
        shape: &Shape,
        attrs: &Attrs,
        (xattrs, flags): (&[Xattr], &InodeFlags),
    ) -> Outcome<()> {
        self.ensure(oid, shape)?;
        if self.catalog.get(oid)?.is_some_and(|row| row.known <= Known::Placeholder) {
            self.catalog.set_known(oid, Known::Partial)?;
        }
        if let Some(fd) = self.fd(oid)?.filter(|_| !(self.fresh.contains(oid) && flags.is_plain())) {
            self.set_hints(oid, shape.kind, fd.as_fd(), flags)?;
        }
        self.set_state_of(oid, shape.kind, attrs, xattrs)
    }

    /// Size and xattrs; the rest of the attributes are set when the group ends.
    fn set_state_of(&mut self, oid: Oid, kind: u32, attrs: &Attrs, xattrs: &[Xattr]) -> Outcome<()> {
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        if kind == libc::S_IFREG {
            if self.is_keeping() && sys::fstat(fd.as_fd())?.size != attrs.size {
                self.keep_content(oid, fd.as_fd())?;
            }
            self.set_size(fd.as_fd(), attrs.size)?;
        }
        match self.fresh.contains(oid) && xattrs.is_empty() {
            true => Ok(()),
            false => {
                self.fresh.remove(oid);
                self.replace_xattrs(fd.as_fd(), xattrs)
            }
        }
    }

    fn end_object(&mut self, oid: Oid, attrs: &Attrs) -> Outcome<()> {
        match self.catalog.get(oid)? {
            Some(row) if row.known > Known::Placeholder => {
                self.catalog.set_known(oid, Known::Complete)?;
                self.catalog.unblock(oid);
                self.touch(oid, *attrs);
                if row.kind == libc::S_IFDIR {
                    self.ask_for_children(oid)?;
                }
            }
            _ => self.need(oid),
        }
        Ok(())
    }

    fn set_content(&mut self, oid: Oid, op: &Op, payload: &[u8]) -> Outcome<()> {
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        let fd = fd.as_fd();
        match op {
            Op::StateData { offset, .. } => {
                if self.is_keeping() && !holds(fd, payload, *offset)? {
                    self.keep_content(oid, fd)?;
                }
                self.save_capability(oid, fd)?;
                Ok(self.tree.mutate().write_all(fd, payload, *offset)?)
            }
            Op::StateHole { offset, len, .. } => self.set_hole(oid, fd, (*offset, *len)),
            Op::StateHash { offset, len, digests, .. } => self.compare(oid, fd, (*offset, *len), digests),
            _ => Ok(()),
        }
    }

    /// A repair of data must not cost the object its capability, which the kernel drops at every write.
    fn save_capability(&mut self, oid: Oid, fd: BorrowedFd<'_>) -> Outcome<()> {
        if self.fresh.contains(oid) || self.touched.get(&oid).is_some_and(|touched| touched.capability.is_some()) {
            return Ok(());
        }
        if let Some(value) = self.tree.xattr(fd, CAPABILITY)? {
            self.touched.entry(oid).or_default().capability = Some(value);
        }
        Ok(())
    }

    fn set_hole(&mut self, oid: Oid, fd: BorrowedFd<'_>, (offset, len): (u64, u64)) -> Outcome<()> {
        let size = sys::fstat(fd)?.size;
        let end = (offset + len).min(size);
        match next_extent(fd, offset, end)? {
            None => Ok(()),
            Some(Extent::Hole { len, .. }) if offset + len >= end => Ok(()),
            Some(_) => {
                self.keep_content(oid, fd)?;
                // A punch that ends in the middle of the last block only zeroes it: it goes when the block is named whole.
                let stop = if end == size { end.next_multiple_of(HOLE_UNIT).min(i64::MAX as u64) } else { end };
                Ok(self.tree.mutate().punch_hole(fd, offset, stop - offset)?)
            }
        }
    }

    /// Asks for the blocks that differ, neighbours together.
    fn compare(&mut self, oid: Oid, fd: BorrowedFd<'_>, (start, len): (u64, u64), digests: &[[u8; 16]]) -> Outcome<()> {
        if start % BLOCK_BYTES != 0 || digests.len() as u64 != len.div_ceil(BLOCK_BYTES) {
            return Err(Errno::EINVAL.into());
        }
        forget_cached(fd, start, len)?;
        let size = sys::fstat(fd)?.size;
        let map = DataMap::of(fd, start, (start + len).min(size))?;
        let mut differing: Option<Missing> = None;
        let mut differs = false;
        for (i, digest) in digests.iter().enumerate() {
            let offset = start + i as u64 * BLOCK_BYTES;
            let block = BLOCK_BYTES.min(start + len - offset);
            let same = offset < size && block_digest(fd, &map, offset, block, size)? == *digest;
            differs |= !same;
            match (&mut differing, same) {
                (_, true) => self.missing.extend(differing.take()),
                (Some(range), false) if range.len + block <= NEED_BYTES => range.len += block,
                (_, false) => {
                    self.missing.extend(differing.take());
                    differing = Some(Missing { oid, offset, len: block });
                }
            }
        }
        map.forget_holes(fd)?;
        if differs {
            // What is asked for comes when the object counts as compared.
            self.keep_content(oid, fd)?;
        }
        self.missing.extend(differing);
        Ok(())
    }
}

/// Whether the file has these bytes there.
fn holds(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Outcome<bool> {
    let mut present = vec![0; bytes.len()];
    let whole = sys::fstat(fd)?.size >= offset + bytes.len() as u64;
    if whole {
        sys::read_exact_at(fd, &mut present, offset)?;
    }
    Ok(whole && present == bytes)
}
