//! Counts what a tree has, so that a long copy can say how much of it is left.

use std::os::fd::BorrowedFd;

use super::is_gone;
use crate::backing::{Tree, TreeView};
use crate::base::{Name, ObjectKey};
use crate::record::RESERVED_DIR;
use crate::sys::{self, DirStream, Result};

/// A walk that counts. It keeps nobody from changing the tree, so the sums are about right.
pub struct Census<'a> {
    tree: &'a Tree,
    todo: Vec<ObjectKey>,
    /// Objects so far, directories too. One with several names counts with each.
    pub objects: u64,
    /// Bytes of data in files so far.
    pub bytes: u64,
}

impl<'a> Census<'a> {
    /// A walk from the root.
    pub fn new(view: &'a dyn TreeView) -> Census<'a> {
        Census { tree: view.tree(), todo: vec![view.tree().root_key()], objects: 1, bytes: 0 }
    }

    /// Counts what is in the next directory; false when none is left.
    ///
    /// # Errors
    /// As open(2), getdents64(2) and stat(2). What vanishes meanwhile is no error.
    pub fn step(&mut self) -> Result<bool> {
        let Some(key) = self.todo.pop() else { return Ok(false) };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
        match self.tree.open_key(key, flags).and_then(|fd| self.count(key, DirStream::new(fd))) {
            Err(errno) if !is_gone(errno) => Err(errno),
            _ => Ok(true),
        }
    }

    fn count(&mut self, key: ObjectKey, mut dir: DirStream) -> Result<()> {
        let root = key == self.tree.root_key();
        while let Some(entry) = dir.next_entry()? {
            let Ok(name) = Name::new(&entry.name) else { continue };
            if root && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            match self.entry(dir.fd(), &name) {
                Err(errno) if !is_gone(errno) => return Err(errno),
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        let stat = sys::fstatat(dir, name.as_cstr())?;
        if stat.dev != self.tree.dev() {
            return Ok(());
        }
        self.objects += 1;
        match stat.mode & libc::S_IFMT {
            libc::S_IFDIR => self.todo.push(self.tree.lookup(dir, name)?.key),
            libc::S_IFREG => self.bytes += stat.size.min(stat.blocks * 512),
            _ => {}
        }
        Ok(())
    }
}
