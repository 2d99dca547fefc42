//! The state of everything that is not a directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{CHUNK_BYTES, is_gone, state, xattrs_of};
use crate::backing::{
    BLOCK_BYTES, DataMap, Extent, TreeView, block_digest, extents_of_read, forget_cached, next_extent,
};
use crate::base::{ObjectKey, Oid, Tid};
use crate::record::{Attrs, Encoded, Op, Shape};
use crate::sys::{self, Errno, InodeFlags, Result};

/// Whether the target may have the content already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    /// It has nothing: send the data.
    No,
    /// It may: send digests, the target asks for what differs.
    Digests,
    /// It may, and where size and time of modification are the same that is believed.
    Attributes,
}

/// A file below this size is sent whole: asking costs more than sending.
const COMPARE_FROM_BYTES: u64 = 16 << 10;

/// A piece of an object's state as it was at `stamp`.
pub struct ObjectReading {
    /// TID of the last change it includes.
    pub stamp: Tid,
    /// The state records, in order.
    pub records: Vec<Encoded>,
    /// Where the next piece starts; `None` when this was the last.
    pub next: Option<u64>,
    /// Bytes of content that it stands for.
    pub covered: u64,
}

/// Reads the object `oid` from `offset` on: what it is (when `offset` is 0) and up to [`CHUNK_BYTES`] of its data.
/// A hole of any length counts as nothing. An object that is gone yields a record that says so.
///
/// # Errors
/// As open(2), read(2) and stat(2).
pub fn read_object(view: &dyn TreeView, oid: Oid, offset: u64, compare: Compare) -> Result<ObjectReading> {
    locked(view, oid, |reader| reader.piece(offset, compare))
}

/// Reads `len` bytes of the file `oid` from `offset`, at most [`CHUNK_BYTES`] of them.
///
/// # Errors
/// As [`read_object`].
pub fn read_range(view: &dyn TreeView, oid: Oid, offset: u64, len: u64) -> Result<ObjectReading> {
    locked(view, oid, |reader| reader.range(offset, len))
}

/// As [`read_range`], for a range that changed after the target had the object: attributes, xattrs and flags come first,
/// and a range of length 0 is nothing but them. Serves every kind of object.
///
/// # Errors
/// As [`read_object`].
pub fn read_changed(view: &dyn TreeView, oid: Oid, offset: u64, len: u64) -> Result<ObjectReading> {
    locked(view, oid, |reader| reader.changed(offset, len))
}

pub(super) fn locked(
    view: &dyn TreeView,
    oid: Oid,
    read: impl FnOnce(&mut Reader<'_>) -> Result<Option<u64>>,
) -> Result<ObjectReading> {
    let gone =
        |stamp| ObjectReading { stamp, records: vec![state(oid, stamp, &Op::StateGone, &[])], next: None, covered: 0 };
    let Some(key) = view.key_of(oid)? else {
        return Ok(gone(view.stamp()));
    };
    let guard = view.lock(key);
    let stamp = view.stamp();
    let outcome = Reader::open(view, oid, key, stamp).and_then(|mut reader| {
        let next = read(&mut reader)?;
        Ok((reader.records, next, reader.covered))
    });
    drop(guard);
    match outcome {
        Ok((records, next, covered)) => Ok(ObjectReading { stamp, records, next, covered }),
        Err(errno) if is_gone(errno) => Ok(gone(stamp)),
        Err(errno) => Err(errno),
    }
}

pub(super) struct Reader<'a> {
    view: &'a dyn TreeView,
    oid: Oid,
    stamp: Tid,
    /// Open for reading when the object is a regular file or a directory, else O_PATH.
    fd: OwnedFd,
    pub(super) stat: sys::Stat,
    records: Vec<Encoded>,
    covered: u64,
}

impl<'a> Reader<'a> {
    fn open(view: &'a dyn TreeView, oid: Oid, key: ObjectKey, stamp: Tid) -> Result<Reader<'a>> {
        let tree = view.tree();
        let mut fd = tree.open_key(key, libc::O_PATH)?;
        let stat = sys::fstat(fd.as_fd())?;
        // Nothing else is opened for reading: a fifo would block, a device would act.
        if matches!(stat.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
            fd = tree.open_key(key, libc::O_RDONLY | libc::O_NOATIME)?;
        }
        Ok(Reader { view, oid, stamp, fd, stat, records: Vec::new(), covered: 0 })
    }

    pub(super) fn is_file(&self) -> bool {
        self.stat.mode & libc::S_IFMT == libc::S_IFREG
    }

    fn is_dir(&self) -> bool {
        self.stat.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn attrs(&self) -> Attrs {
        Attrs::of(&self.stat)
    }

    fn push(&mut self, op: &Op, payload: &[u8]) {
        self.records.push(state(self.oid, self.stamp, op, payload));
    }

    fn piece(&mut self, offset: u64, compare: Compare) -> Result<Option<u64>> {
        if compare == Compare::Attributes && self.is_file() {
            return self.alike();
        }
        if offset == 0 {
            self.head()?;
        }
        if self.is_file() && compare == Compare::Digests {
            // Also of a small one: what is sent must be what is there after the next start, too.
            forget_cached(self.file(), offset, CHUNK_BYTES)?;
        }
        let end = match (self.is_file(), compare) {
            (false, _) => self.stat.size,
            (true, Compare::Digests) if self.stat.size >= COMPARE_FROM_BYTES => self.digests(offset)?,
            (true, _) => self.data(offset, self.stat.size)?,
        };
        if end < self.stat.size {
            return Ok(Some(end));
        }
        self.push(&Op::StateEnd { attrs: self.attrs() }, &[]);
        Ok(None)
    }

    fn alike(&mut self) -> Result<Option<u64>> {
        let op = Op::StateAlike {
            shape: Shape::of(self.file(), &self.stat)?,
            attrs: self.attrs(),
            xattrs: xattrs_of(self.view.tree(), self.file())?,
            flags: self.flags()?,
        };
        self.push(&op, &[]);
        self.covered = self.stat.size.min(self.stat.blocks * 512);
        Ok(None)
    }

    fn range(&mut self, offset: u64, len: u64) -> Result<Option<u64>> {
        if !self.is_file() {
            return Err(Errno::ESTALE);
        }
        let end = (offset + len).min(self.stat.size);
        let next = self.data(offset, end)?;
        Ok((next < end).then_some(next))
    }

    fn changed(&mut self, offset: u64, len: u64) -> Result<Option<u64>> {
        let op = Op::StateAttrs {
            attrs: self.attrs(),
            xattrs: xattrs_of(self.view.tree(), self.file())?,
            flags: self.flags()?,
        };
        self.push(&op, &[]);
        match self.is_file() {
            true => self.range(offset, len),
            false => Ok(None),
        }
    }

    fn flags(&self) -> Result<InodeFlags> {
        match self.is_file() || self.is_dir() {
            true => sys::inode_flags_get(self.file()),
            false => sys::inode_flags_of_path(self.file()),
        }
    }

    pub(super) fn head(&mut self) -> Result<()> {
        let op = Op::StateObject {
            shape: Shape::of(self.file(), &self.stat)?,
            attrs: self.attrs(),
            xattrs: xattrs_of(self.view.tree(), self.file())?,
            flags: self.flags()?,
        };
        self.push(&op, &[]);
        Ok(())
    }

    /// Data and holes from `offset` to `end`, until [`CHUNK_BYTES`] of data are read. Returns where it stopped.
    pub(super) fn data(&mut self, offset: u64, end: u64) -> Result<u64> {
        let mut at = offset;
        let mut left = CHUNK_BYTES;
        let attrs = self.attrs();
        while let Some(extent) = next_extent(self.file(), at, end)? {
            match extent {
                Extent::Hole { offset, len } => self.push(&Op::StateHole { offset, len, attrs }, &[]),
                Extent::Data { .. } if left == 0 => return Ok(at),
                Extent::Data { offset, len } => {
                    let take = len.min(left);
                    let mut bytes = vec![0; take as usize];
                    sys::read_exact_at(self.file(), &mut bytes, offset)?;
                    self.push_data(offset, &bytes)?;
                    self.covered += take;
                    left -= take;
                    if take < len {
                        return Ok(offset + take);
                    }
                }
            }
            at = extent.end();
        }
        Ok(at.max(end))
    }

    /// What was read at `offset`. Not all of it is data: see [`extents_of_read`].
    fn push_data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let attrs = self.attrs();
        for extent in extents_of_read(self.file(), offset, bytes)? {
            match extent {
                Extent::Hole { offset, len } => self.push(&Op::StateHole { offset, len, attrs }, &[]),
                Extent::Data { offset: from, len } => {
                    let part = &bytes[(from - offset) as usize..][..len as usize];
                    self.push(&Op::StateData { offset: from, attrs }, part);
                }
            }
        }
        Ok(())
    }

    /// Digests of the blocks from `offset`, [`CHUNK_BYTES`] of them; ranges without any data are said to be holes.
    pub(super) fn digests(&mut self, offset: u64) -> Result<u64> {
        let size = self.stat.size;
        let attrs = self.attrs();
        if let Some(Extent::Hole { len, .. }) = next_extent(self.file(), offset, size)? {
            let whole = if offset + len == size { len } else { len / BLOCK_BYTES * BLOCK_BYTES };
            if whole > 0 {
                self.push(&Op::StateHole { offset, len: whole, attrs }, &[]);
                return Ok(offset + whole);
            }
        }
        let end = (offset + CHUNK_BYTES).min(size);
        let map = DataMap::of(self.file(), offset, end)?;
        let mut digests = Vec::new();
        let mut at = offset;
        while at < end {
            digests.push(block_digest(self.file(), &map, at, BLOCK_BYTES, size)?);
            at += BLOCK_BYTES;
        }
        map.forget_holes(self.file())?;
        self.push(&Op::StateHash { offset, len: end - offset, digests, attrs }, &[]);
        self.covered += end - offset;
        Ok(end)
    }
}
