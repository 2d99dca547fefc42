//! Finds what was changed while nobody watched: the objects whose inode changed at or after a time.
//!
//! Every change of an object moves its ctime, which no program can set: also a write whose mtime was put back, a chmod, a
//! new name. A name that went away, or came, moves the ctime of its directory. So an object is looked at only when its
//! own ctime says so, and a directory's entries are compared only when the directory's does.

use std::os::fd::BorrowedFd;

use super::is_gone;
use crate::backing::TreeView;
use crate::base::{Name, ObjectKey, Oid, Timespec};
use crate::record::RESERVED_DIR;
use crate::sys::{self, DirStream, Errno, Result};

/// Something that changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// An object that is no directory.
    Object(Oid),
    /// A directory: its attributes or its entries.
    Dir(Oid),
}

/// A walk over the tree, directory by directory and by handle: no path is kept, one descriptor is open.
pub struct ChangedSince<'a> {
    view: &'a dyn TreeView,
    since: Timespec,
    todo: Vec<ObjectKey>,
}

impl<'a> ChangedSince<'a> {
    /// A walk from the root for changes at `since` or later.
    pub fn new(view: &'a dyn TreeView, since: Timespec) -> ChangedSince<'a> {
        ChangedSince { view, since, todo: vec![view.tree().root_key()] }
    }

    /// Walks the directory `oid` too, with what lies below it: it was moved while the walk went on.
    pub fn also(&mut self, oid: Oid) {
        self.todo.extend(self.view.key_of(oid).ok().flatten());
    }

    /// Looks at the next directory and tells `found` of it and of what is right below it. False when none is left, or as
    /// soon as `found` returns false.
    ///
    /// # Errors
    /// As open(2), getdents64(2) and stat(2). What vanishes meanwhile is no error.
    pub fn step(&mut self, found: &mut dyn FnMut(Changed) -> bool) -> Result<bool> {
        let Some(key) = self.todo.pop() else {
            return Ok(false);
        };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
        match self.view.tree().open_key(key, flags).and_then(|fd| self.look(key, DirStream::new(fd), found)) {
            Err(errno) if is_gone(errno) => Ok(true),
            outcome => outcome,
        }
    }

    fn look(&mut self, key: ObjectKey, mut dir: DirStream, found: &mut dyn FnMut(Changed) -> bool) -> Result<bool> {
        if self.is_new(&sys::fstat(dir.fd())?) && !found(Changed::Dir(self.view.oid_of(key)?)) {
            return Ok(false);
        }
        let root = key == self.view.tree().root_key();
        while let Some(entry) = dir.next_entry()? {
            let Ok(name) = Name::new(&entry.name) else {
                continue;
            };
            if root && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            match self.entry(dir.fd(), &name) {
                Ok(Some(object)) if !found(Changed::Object(object)) => return Ok(false),
                Err(errno) if !is_gone(errno) => return Err(errno),
                _ => {}
            }
        }
        Ok(true)
    }

    /// One entry: a directory is for later, anything else counts when it changed.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &Name) -> Result<Option<Oid>> {
        let stat = sys::fstatat(dir, name.as_cstr())?;
        let is_dir = stat.mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_dir && !self.is_new(&stat) {
            return Ok(None);
        }
        let key = match self.view.tree().lookup(dir, name) {
            Ok(found) => found.key,
            // Another filesystem, mounted there since: not part of the tree.
            Err(Errno::EXDEV) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        if is_dir {
            self.todo.push(key);
            return Ok(None);
        }
        Ok(Some(self.view.oid_of(key)?))
    }

    fn is_new(&self, stat: &sys::Stat) -> bool {
        stat.ctime >= self.since
    }
}
