//! Reads from the tree where directories are and which names are excluded.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{Names, Place, Scope, join};
use crate::base::{Name, Oid, Rules, Tid};
use crate::catchup::TreeView;
use crate::record::{RESERVED_DIR, Slot};
use crate::sys::{self, DirStream, Errno, Result};

const READ: i32 = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;

impl Scope {
    /// Reads the whole tree; the stream goes on behind `after`.
    ///
    /// # Errors
    /// As open(2), getdents64(2) and stat(2). What vanishes meanwhile is no error.
    pub(in crate::sender) fn of(view: &dyn TreeView, rules: Arc<Rules>, after: Tid) -> Result<Scope> {
        let mut scope = Scope::new(rules);
        scope.learn(view, Oid::ROOT)?;
        scope.at = after;
        Ok(scope)
    }

    /// A session goes on behind `after`. False when records up to there were passed over: then nothing is known any more.
    pub(in crate::sender) fn go_on(&mut self, after: Tid) -> bool {
        let is_known = after <= self.at;
        self.settled = self.settled.max(self.at);
        self.at = after;
        is_known
    }

    /// Reads what is in the directory, at any depth. What is known already stays as it is: that is of the stream's place.
    pub(super) fn learn(&mut self, view: &dyn TreeView, dir: Oid) -> Result<()> {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            match self.learn_entries(view, dir, &mut todo) {
                Err(errno) if !matches!(errno, Errno::ENOENT | Errno::ESTALE | Errno::EXDEV) => return Err(errno),
                _ => {}
            }
        }
        self.settled = self.settled.max(view.stamp());
        Ok(())
    }

    fn learn_entries(&mut self, view: &dyn TreeView, dir: Oid, todo: &mut Vec<Oid>) -> Result<()> {
        let Some(key) = view.key_of(dir)? else { return Ok(()) };
        let mut stream = DirStream::new(view.tree().open_key(key, READ)?);
        let place = self.place(dir);
        while let Some(entry) = stream.next_entry()? {
            let Ok(name) = Name::new(&entry.name) else { continue };
            if dir == Oid::ROOT && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            let is_dir = match entry.d_type {
                libc::DT_DIR => true,
                libc::DT_UNKNOWN => sys::fstatat(stream.fd(), name.as_cstr())
                    .is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFDIR),
                _ => false,
            };
            let excluded = match &place {
                Place::Inside(path) => self.rules.excludes(&join(path, name.as_bytes()), is_dir),
                Place::Outside => true,
                Place::Unknown => false,
            };
            if is_dir || excluded {
                match self.learn_entry(view, stream.fd(), Slot { parent: dir, name }, is_dir) {
                    Ok(oid) => todo.extend(oid.filter(|_| is_dir)),
                    // It was removed or moved since it was listed, or is no part of the tree.
                    Err(Errno::ENOENT | Errno::ESTALE | Errno::EXDEV) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    fn learn_entry(
        &mut self,
        view: &dyn TreeView,
        dir: BorrowedFd<'_>,
        slot: Slot,
        is_dir: bool,
    ) -> Result<Option<Oid>> {
        let found = view.tree().lookup(dir, &slot.name)?;
        let oid = view.oid_of(found.key)?;
        if is_dir {
            self.dirs.entry(oid).or_insert(slot);
            return Ok(Some(oid));
        }
        // The lock is what makes the count exact at the stamp.
        let guard = view.lock(found.key);
        let counted = view.stamp();
        let stat = sys::fstat(view.tree().open_key(found.key, libc::O_PATH)?.as_fd())?;
        drop(guard);
        let names = self.names.entry(oid).or_insert(Names { slots: Vec::new(), count: stat.nlink as u32, counted });
        if !names.slots.contains(&slot) {
            names.slots.push(slot);
        }
        Ok(Some(oid))
    }
}
