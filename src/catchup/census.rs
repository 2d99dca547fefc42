//! Counts what a tree has, so that a long copy can say how much of it is left.

use std::os::fd::BorrowedFd;

use super::is_gone;
use crate::backing::{Tree, TreeView};
use crate::base::{Name, ObjectKey, Rules};
use crate::record::RESERVED_DIR;
use crate::sys::{self, DirStream, Result};

/// A walk that counts. It keeps nobody from changing the tree, so the sums are about right.
pub struct Census<'a> {
    tree: &'a Tree,
    rules: &'a Rules,
    /// Directories with their paths.
    todo: Vec<(ObjectKey, Vec<u8>)>,
    /// Objects so far, directories too. One with several names counts with each.
    pub objects: u64,
    /// Bytes of data in files so far.
    pub bytes: u64,
}

impl<'a> Census<'a> {
    /// A walk from the root over what the rules include.
    pub fn new(view: &'a dyn TreeView, rules: &'a Rules) -> Census<'a> {
        let todo = vec![(view.tree().root_key(), Vec::new())];
        Census { tree: view.tree(), rules, todo, objects: 1, bytes: 0 }
    }

    /// Counts what is in the next directory; false when none is left.
    ///
    /// # Errors
    /// As open(2), getdents64(2) and stat(2). What vanishes meanwhile is no error.
    pub fn step(&mut self) -> Result<bool> {
        let Some((key, path)) = self.todo.pop() else { return Ok(false) };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
        match self.tree.open_key(key, flags).and_then(|fd| self.count((key, &path), DirStream::new(fd))) {
            Err(errno) if !is_gone(errno) => Err(errno),
            _ => Ok(true),
        }
    }

    fn count(&mut self, (key, path): (ObjectKey, &[u8]), mut dir: DirStream) -> Result<()> {
        let root = key == self.tree.root_key();
        while let Some(entry) = dir.next_entry()? {
            let Ok(name) = Name::new(&entry.name) else { continue };
            if root && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            match self.entry(dir.fd(), path, &name) {
                Err(errno) if !is_gone(errno) => return Err(errno),
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, above: &[u8], name: &Name) -> Result<()> {
        let stat = sys::fstatat(dir, name.as_cstr())?;
        if stat.dev != self.tree.dev() {
            return Ok(());
        }
        let name_bytes = name.as_bytes();
        let path = if above.is_empty() { name_bytes.to_vec() } else { [above, name_bytes].join(&b'/') };
        if self.rules.excludes(&path, stat.mode & libc::S_IFMT == libc::S_IFDIR) {
            return Ok(());
        }
        self.objects += 1;
        match stat.mode & libc::S_IFMT {
            libc::S_IFDIR => self.todo.push((self.tree.lookup(dir, name)?.key, path)),
            libc::S_IFREG => self.bytes += stat.size.min(stat.blocks * 512),
            _ => {}
        }
        Ok(())
    }
}
