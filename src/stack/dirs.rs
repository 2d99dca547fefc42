//! Listing directories: readdir, readdirplus.

use std::os::fd::BorrowedFd;

use super::Stack;
use super::opens::{DirCursor, OpenDir};
use super::types::{Entry, FileId, Listed, NodeId, Room, kind};
use crate::base::Name;
use crate::sys::{self, DirEntry, Errno, Result};

/// Whether a listing looks its entries up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Names,
    Lookups,
}

impl Stack {
    /// Gives the entries of an open directory from `offset` on to `take`, until it has no room.
    ///
    /// Offsets are the backing filesystem's own cookies, so a listing goes on where it was while entries come and go.
    ///
    /// # Errors
    /// As getdents64(2).
    pub fn readdir(
        &self,
        id: FileId,
        node: NodeId,
        offset: u64,
        take: &mut dyn FnMut(&Listed<'_>) -> Room,
    ) -> Result<()> {
        self.list(id, node, offset, Detail::Names, take)
    }

    /// As [`Stack::readdir`], with a look-up of every entry but `.` and `..`. A look-up counts when its entry was taken.
    ///
    /// # Errors
    /// As getdents64(2).
    pub fn readdirplus(
        &self,
        id: FileId,
        node: NodeId,
        offset: u64,
        take: &mut dyn FnMut(&Listed<'_>) -> Room,
    ) -> Result<()> {
        self.list(id, node, offset, Detail::Lookups, take)
    }

    fn list(
        &self,
        id: FileId,
        node: NodeId,
        offset: u64,
        detail: Detail,
        take: &mut dyn FnMut(&Listed<'_>) -> Room,
    ) -> Result<()> {
        let dir = self.dir(id, node)?;
        let mut cursor = dir.cursor.lock();
        cursor.go_to(offset)?;
        while let Some((at, read)) = cursor.next_entry()? {
            if self.is_reserved(dir.key, &read.name) {
                continue;
            }
            let entry = match detail {
                Detail::Names => None,
                Detail::Lookups => self.listed_entry(cursor.stream.fd(), &read.name),
            };
            let listed = Listed {
                name: &read.name,
                ino: self.listed_ino(&dir, &read),
                d_type: listed_type(cursor.stream.fd(), &read),
                next_offset: read.next_offset as u64,
                entry,
            };
            if take(&listed) == Room::Full {
                if let Some(entry) = entry {
                    self.forget(entry.node, 1);
                }
                cursor.put_back(at, read);
                break;
            }
        }
        Ok(())
    }

    /// `..` of the root is the root: what lies above does not belong to the volume.
    fn listed_ino(&self, dir: &OpenDir, read: &DirEntry) -> u64 {
        match read.name.as_slice() {
            b".." if dir.node == NodeId::ROOT => dir.key.ino,
            _ => read.ino,
        }
    }

    /// `None` for what cannot be looked up: the name is listed all the same, and a look-up of its own tells why.
    fn listed_entry(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Option<Entry> {
        let name = Name::new(name).ok()?;
        self.entry(self.tree.look(dir, &name).ok()?).ok()
    }
}

/// A filesystem may leave the type out of its entries (DT_UNKNOWN, readdir(3)), but the kernel shows what we say.
fn listed_type(dir: BorrowedFd<'_>, read: &DirEntry) -> u8 {
    if read.d_type != libc::DT_UNKNOWN {
        return read.d_type;
    }
    std::ffi::CString::new(read.name.as_slice())
        .ok()
        .and_then(|name| sys::fstatat(dir, &name).ok())
        .map_or(libc::DT_UNKNOWN, |stat| (kind(&stat) >> 12) as u8)
}

impl DirCursor {
    fn go_to(&mut self, offset: u64) -> Result<()> {
        if self.offset != offset {
            let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            self.pending = None;
            self.stream.seek(offset)?;
            self.offset = offset as u64;
        }
        Ok(())
    }

    /// The next entry, and the offset at which it stands.
    fn next_entry(&mut self) -> Result<Option<(u64, DirEntry)>> {
        let entry = match self.pending.take() {
            Some(entry) => Some(entry),
            None => self.stream.next_entry()?,
        };
        Ok(entry.map(|entry| {
            let at = std::mem::replace(&mut self.offset, entry.next_offset as u64);
            (at, entry)
        }))
    }

    fn put_back(&mut self, at: u64, entry: DirEntry) {
        self.offset = at;
        self.pending = Some(entry);
    }
}
