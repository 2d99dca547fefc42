//! New objects and new names: mknod, mkdir, symlink, create, link.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::mutation::{BIRTH_RECORD, Mutation, NAME_RECORD, Touch, Touched};
use super::opens::{BackingMode, Handle, OpenFile};
use super::types::{Caller, Entry, NodeId, Object, Opened, kind};
use super::{Stack, creds};
use crate::backing::Found;
use crate::base::Name;
use crate::record::{Attrs, Op, RESERVED_XATTR_PREFIX, Shape, Slot, Xattr};
use crate::sys::{self, Errno, Result};

/// What to make.
enum Newborn<'a> {
    Directory { mode: u32 },
    Node { mode: u32, rdev: u64 },
    Symlink { text: &'a CStr },
}

impl Newborn<'_> {
    /// How to open it: ioctls want a real descriptor, but a fifo would block and a device act.
    fn open_flags(&self) -> i32 {
        match self {
            Newborn::Directory { .. } => libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME,
            Newborn::Node { mode, .. } if mode & libc::S_IFMT == libc::S_IFREG => libc::O_RDONLY | libc::O_NOATIME,
            Newborn::Node { .. } | Newborn::Symlink { .. } => libc::O_PATH,
        }
    }
}

impl Stack {
    /// mkdir(2).
    ///
    /// # Errors
    /// As mkdir(2); EPERM for a reserved name.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<Entry> {
        self.give_birth(caller, parent, name, &Newborn::Directory { mode })
    }

    /// mknod(2): `mode` carries the type.
    ///
    /// # Errors
    /// As mknod(2); EPERM for a reserved name.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, rdev: u64) -> Result<Entry> {
        self.give_birth(caller, parent, name, &Newborn::Node { mode, rdev })
    }

    /// symlink(2).
    ///
    /// # Errors
    /// As symlink(2); EPERM for a reserved name.
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], text: &[u8]) -> Result<Entry> {
        let text = CString::new(text).map_err(|_| Errno::EINVAL)?;
        self.give_birth(caller, parent, name, &Newborn::Symlink { text: &text })
    }

    fn give_birth(&self, caller: &Caller, parent: NodeId, name: &[u8], newborn: &Newborn<'_>) -> Result<Entry> {
        let (dir, name) = self.place(parent, name)?;
        let touched = Touched { touches: &[Touch::Entries(dir.key)], name: name.as_bytes() };
        let change = self.begin_named(caller, &touched, BIRTH_RECORD)?;
        creds::creating(caller)?;
        let (tree, at) = (change.tree(), dir.fd.as_fd());
        match newborn {
            Newborn::Directory { mode } => tree.mkdir(at, &name, *mode)?,
            Newborn::Node { mode, rdev } => tree.mknod(at, &name, *mode, *rdev)?,
            Newborn::Symlink { text } => tree.symlink(text, at, &name)?,
        }
        let fd = change.read_back(sys::openat(at, name.as_cstr(), newborn.open_flags(), 0))?;
        let found = change.read_back(self.tree.found(fd.as_fd()))?;
        let entry = self.entry(found);
        self.record_birth(change, &dir, name, found, fd.as_fd())?;
        entry
    }

    /// Records that `found` (open as `fd`; for reading when it is a file or directory) was made as `name` in `dir`.
    fn record_birth(
        &self,
        change: Mutation<'_>,
        dir: &Object,
        name: Name,
        found: Found,
        fd: BorrowedFd<'_>,
    ) -> Result<()> {
        let op = change.read_back(self.birth_op(dir, name, found, fd))?;
        change.commit(found.key, &op, &[]);
        Ok(())
    }

    fn birth_op(&self, dir: &Object, name: Name, found: Found, fd: BorrowedFd<'_>) -> Result<Op> {
        let xattrs = self.tree.xattrs(fd, RESERVED_XATTR_PREFIX)?;
        let flags = match kind(&found.stat) {
            libc::S_IFREG | libc::S_IFDIR => sys::inode_flags_get(fd)?,
            _ => sys::inode_flags_at(dir.fd.as_fd(), name.as_cstr())?,
        };
        Ok(Op::Create {
            slot: self.slot(dir, name),
            shape: Shape::of(fd, &found.stat)?,
            attrs: Attrs::of(&found.stat),
            xattrs: xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect(),
            flags,
            parent_after: Attrs::of(&sys::fstat(dir.fd.as_fd())?),
        })
    }

    pub(super) fn slot(&self, dir: &Object, name: Name) -> Slot {
        Slot { parent: self.oid(dir.key), name }
    }

    /// open(2) with O_CREAT. The kernel sends it only for a name that it does not know; should the name be there all
    /// the same, it is opened, or refused with O_EXCL.
    ///
    /// # Errors
    /// As open(2); EPERM for a reserved name.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        match self.create_new(caller, parent, name, mode, flags) {
            Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => {
                let entry = self.lookup(parent, name)?;
                let opened = self.open(caller, entry.node, flags).inspect_err(|_| {
                    self.forget(entry.node, 1);
                })?;
                let stat = self.getattr(entry.node, Some(opened.file))?;
                Ok((Entry { stat, ..entry }, opened))
            }
            outcome => outcome,
        }
    }

    fn create_new(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        let (dir, name) = self.place(parent, name)?;
        let touched = Touched { touches: &[Touch::Entries(dir.key)], name: name.as_bytes() };
        let change = self.begin_named(caller, &touched, BIRTH_RECORD)?;
        creds::creating(caller)?;
        let fd = change.tree().create_file(dir.fd.as_fd(), &name, mode)?;
        let found = change.read_back(self.tree.found(fd.as_fd()))?;
        let entry = self.entry(found);
        self.record_birth(change, &dir, name, found, fd.as_fd())?;
        let entry = entry?;
        Ok((entry, self.opened_newborn(entry, found, fd, flags)))
    }

    fn opened_newborn(&self, entry: Entry, found: Found, fd: OwnedFd, flags: i32) -> Opened {
        let file = OpenFile::new(found.key, entry.node, fd, BackingMode::Positioned, flags);
        file.atime_is(found.stat.atime);
        // The kernel still holds the directory, so nobody can unlink the name before we answer.
        let file = self.opens.insert(Handle::File(Arc::new(file)));
        self.opened(file, BackingMode::Positioned, flags)
    }

    /// link(2): `name` in `parent` becomes a further name of `node`.
    ///
    /// # Errors
    /// As link(2); EPERM for a reserved name.
    pub fn link(&self, caller: &Caller, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let object = self.object(node)?;
        let (dir, name) = self.place(parent, name)?;
        let touches = [Touch::Entries(dir.key), Touch::Name(object.key)];
        let touched = Touched { touches: &touches, name: name.as_bytes() };
        let change = self.begin_named(caller, &touched, NAME_RECORD)?;
        change.tree().link(object.fd.as_fd(), dir.fd.as_fd(), &name)?;
        let found = change.read_back(self.tree.found(object.fd.as_fd()))?;
        let op = change.read_back(self.link_op(&object, &dir, name, found))?;
        let entry = self.entry(found);
        change.commit(object.key, &op, &[]);
        entry
    }

    fn link_op(&self, object: &Object, dir: &Object, name: Name, found: Found) -> Result<Op> {
        Ok(Op::Link {
            slot: self.slot(dir, name),
            shape: Shape::of(object.fd.as_fd(), &found.stat)?,
            attrs: Attrs::of(&found.stat),
            parent_after: Attrs::of(&sys::fstat(dir.fd.as_fd())?),
        })
    }
}
