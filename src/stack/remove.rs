//! Names that go: unlink, rmdir.

use std::os::fd::{AsFd, OwnedFd};

use super::Stack;
use super::lookup::name_of;
use super::mutation::{Mutation, NAME_RECORD, Touch, Touched};
use super::types::{Caller, NodeId, Object, kind};
use crate::backing::Found;
use crate::base::Name;
use crate::record::{Attrs, Fate, Op};
use crate::sys::{self, Result};

#[derive(Clone, Copy)]
enum Removal {
    Unlink,
    Rmdir,
}

impl Stack {
    /// unlink(2).
    ///
    /// # Errors
    /// As unlink(2).
    pub fn unlink(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, name, Removal::Unlink)
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn rmdir(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(caller, parent, name, Removal::Rmdir)
    }

    /// Which object has to be locked is known only after looking, and may change until it is locked: look again. While it
    /// is open its inode number belongs to no other.
    fn remove(&self, caller: &Caller, parent: NodeId, name: &[u8], how: Removal) -> Result<()> {
        let name = name_of(name)?;
        let dir = self.directory(parent)?;
        loop {
            let (mut found, fd) = self.find(&dir, &name)?;
            let touches = [Touch::Entries(dir.key), Touch::Name(found.key)];
            let touched = Touched { touches: &touches, name: name.as_bytes() };
            let change = self.begin_named(caller, &touched, NAME_RECORD)?;
            found.stat = sys::fstatat(dir.fd.as_fd(), name.as_cstr())?;
            if found.stat.ino == found.key.ino {
                return self.remove_locked(change, &dir, name, (found, fd), how);
            }
        }
    }

    fn remove_locked(
        &self,
        change: Mutation<'_>,
        dir: &Object,
        name: Name,
        found: (Found, OwnedFd),
        how: Removal,
    ) -> Result<()> {
        match how {
            Removal::Unlink => change.tree().unlink(dir.fd.as_fd(), &name)?,
            Removal::Rmdir => change.tree().rmdir(dir.fd.as_fd(), &name)?,
        }
        let parent_after = Attrs::of(&change.read_back(sys::fstat(dir.fd.as_fd()))?);
        let key = found.0.key;
        let op = Op::Unlink { slot: self.slot(dir, name), fate: self.fate_of(found), parent_after };
        change.commit(key, &op, &[]);
        Ok(())
    }

    /// What becomes of an object that just lost one name; `before` is how it was under the same lock. A directory
    /// cannot be used any more once its name is gone, whoever holds it open.
    pub(super) fn fate_of(&self, (before, fd): (Found, OwnedFd)) -> Fate {
        let is_dir = kind(&before.stat) == libc::S_IFDIR;
        if !is_dir && before.stat.nlink > 1 {
            return Fate::Kept;
        }
        if !is_dir && self.opens.outlives_its_name(before.key) {
            self.journal.orphan(self.oid(before.key));
            return Fate::Kept;
        }
        self.directories.let_go(before.key);
        self.nodes.haunt(before.key, Some(fd));
        Fate::Gone
    }
}
