//! Orphans: what the tree held and the source does not have. They wait in `.dtfs/orphans` under a name of their inode, with
//! the path that they had; the source says what becomes of them. Nothing outside the tree is touched: they are moved within
//! `.dtfs` only.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::objects::{Occupant, entry_names};
use super::{Applier, ApplyError, Outcome};
use crate::base::{Name, Oid, Tid, Timespec};
use crate::record::{Orphan, OrphanAction, OrphanList, OrphanOrder, RESERVED_DIR};
use crate::sys::{self, Errno};

/// xattr of an orphan: when it was set aside (seconds since 1970, 8 bytes) and its path.
const ORPHAN_XATTR: &CStr = c"trusted.dtfs.orphan";
/// Names that a move may not choose.
const OWN_NAMES: [&[u8]; 4] = [b"park", b"orphans", b"id", b"id.new"];
/// How deep a directory may be that is removed.
const DEEPEST: usize = 512;

impl Applier {
    /// Does what is asked with the orphans.
    ///
    /// # Errors
    /// [`ApplyError`] when they cannot be listed; what cannot be done to one of them is counted.
    pub fn orphans(&mut self, order: &OrphanOrder) -> Result<OrphanList, ApplyError> {
        self.treat_orphans(order).map_err(|cause| self.explain("orphans", Oid::ROOT, Tid::ZERO, cause))
    }

    fn treat_orphans(&mut self, order: &OrphanOrder) -> Outcome<OrphanList> {
        let mut list = OrphanList { number: order.number, ..OrphanList::default() };
        let here = sys::openat(self.park.orphans(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let now = Timespec::now().sec.max(0) as u64;
        for label in entry_names(sys::reopen(here.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)? {
            let Some(occupant) = self.occupant(here.as_fd(), &label)? else { continue };
            let orphan = self.orphan(&label, &occupant)?;
            list.left += 1;
            if now.saturating_sub(orphan.since_sec) < order.older_than_sec {
                continue;
            }
            let done = match &order.action {
                OrphanAction::Scan => Ok(()),
                OrphanAction::Move(to) => self.move_orphan(here.as_fd(), &label, &orphan, to),
                OrphanAction::Delete => self.delete_orphan(here.as_fd(), &label, &occupant, 0),
            };
            list.count += 1;
            list.bytes += orphan.size;
            list.left -= u64::from(done.is_ok() && order.action != OrphanAction::Scan);
            if let Err(trouble) = done {
                let errno = trouble.errno()?;
                tracing::warn!(%label, %errno, "an orphan stays");
                list.failed += 1;
                list.errno = if list.errno == 0 { errno as i32 } else { list.errno };
            }
            if list.orphans.len() < OrphanList::MOST {
                list.orphans.push(orphan);
            }
        }
        Ok(list)
    }

    fn orphan(&self, label: &Name, occupant: &Occupant) -> Outcome<Orphan> {
        let noted = self.tree.xattr(occupant.fd.as_fd(), ORPHAN_XATTR)?.unwrap_or_default();
        let (since_sec, path) = match noted.split_first_chunk::<8>() {
            Some((since, path)) => (u64::from_le_bytes(*since), path.to_vec()),
            None => (occupant.stat.ctime.sec.max(0) as u64, label.as_bytes().to_vec()),
        };
        let size = occupant.stat.size;
        Ok(Orphan { path, is_dir: occupant.is_dir(), size, since_sec })
    }

    /// Notes on the object at `name` in `dir`, which is about to become an orphan, where it is now. An object that takes no
    /// such note is known by its inode.
    pub(super) fn note_orphan(&self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) {
        let above = sys::path_of(dir).unwrap_or_default();
        let mut noted = Timespec::now().sec.to_le_bytes().to_vec();
        let above = above.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or_default();
        noted.extend_from_slice(above);
        if !above.is_empty() {
            noted.push(b'/');
        }
        noted.extend_from_slice(name.as_bytes());
        if let Err(errno) = self.tree.mutate().set_xattr(occupant.fd.as_fd(), ORPHAN_XATTR, &noted, 0) {
            tracing::debug!(%name, %errno, "the place of an orphan is not noted");
        }
    }

    /// Moves an orphan to its own path below `.dtfs/TO`. What is there already keeps its name, and this one stays.
    fn move_orphan(&self, here: BorrowedFd<'_>, label: &Name, orphan: &Orphan, to: &Name) -> Outcome<()> {
        if OWN_NAMES.contains(&to.as_bytes()) {
            return Err(Errno::EPERM.into());
        }
        let own = Name::new(RESERVED_DIR).map_err(|_| Errno::EINVAL)?;
        let own = self.tree.open_child(self.tree.root(), &own, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut dir = self.dir_in(own.as_fd(), to)?;
        let parts: Vec<&[u8]> = orphan.path.split(|byte| *byte == b'/').collect();
        let (last, above) = parts.split_last().ok_or(Errno::EINVAL)?;
        for part in above {
            dir = self.dir_in(dir.as_fd(), &Name::new(part).map_err(|_| Errno::EINVAL)?)?;
        }
        let last = Name::new(last).map_err(|_| Errno::EINVAL)?;
        Ok(self.tree.mutate().rename(here, label, dir.as_fd(), &last, libc::RENAME_NOREPLACE)?)
    }

    fn dir_in(&self, dir: BorrowedFd<'_>, name: &Name) -> Outcome<OwnedFd> {
        match self.tree.mutate().mkdir(dir, name, 0o700) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.tree.open_child(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)?)
    }

    /// Removes an orphan with what is in it. What of that is an object of the volume stays, and so do the directories above.
    fn delete_orphan(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant, depth: usize) -> Outcome<()> {
        let is_ours = match occupant.oid.filter(|_| !occupant.stale) {
            Some(oid) => self.catalog.get(oid)?.is_some(),
            None => false,
        };
        if is_ours && (occupant.is_dir() || occupant.stat.nlink == 1) {
            return Err(Errno::EBUSY.into());
        }
        if !occupant.is_dir() {
            return Ok(self.tree.mutate().unlink(dir, name)?);
        }
        if depth >= DEEPEST {
            return Err(Errno::ELOOP.into());
        }
        let inner = sys::reopen(occupant.fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        for name in entry_names(sys::reopen(inner.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)? {
            if let Some(child) = self.occupant(inner.as_fd(), &name)? {
                self.delete_orphan(inner.as_fd(), &name, &child, depth + 1)?;
            }
        }
        Ok(self.tree.mutate().rmdir(dir, name)?)
    }
}
