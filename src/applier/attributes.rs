//! The end of a group: each touched object gets the attributes that its last record named.

use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd};

use super::catalog::Known;
use super::objects::Occupant;
use super::{Applier, Outcome, Trouble};
use crate::base::{ObjectKey, Oid, Timespec, faults};

use crate::record::Attrs;
use crate::sys::{self, Errno, FileFlags, InodeFlags, Stat, TimeChange};

/// What has to be set when the group ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    /// What the last record said.
    pub(super) attrs: Option<Attrs>,
    /// Times to put back where no record speaks of the object: only our own moving of entries changed them.
    pub(super) times: Option<(Timespec, Timespec)>,
    /// Inode flags to set last, among them those that were lifted.
    pub(super) flags: Option<InodeFlags>,
    /// `security.capability` as it was before data was repaired: the kernel drops it at every write.
    pub(super) capability: Option<Vec<u8>>,
}

pub(super) const CAPABILITY: &std::ffi::CStr = c"security.capability";

impl Applier {
    pub(super) fn touch(&mut self, oid: Oid, attrs: Attrs) {
        self.touched.entry(oid).or_default().attrs = Some(attrs);
    }

    /// Keeps the times of a directory whose entries are about to be moved about without a record of it.
    pub(super) fn preserve(&mut self, oid: Oid, dir: BorrowedFd<'_>) -> Outcome<()> {
        if let Entry::Vacant(free) = self.touched.entry(oid) {
            let stat = sys::fstat(dir)?;
            free.insert(Touched { times: Some((stat.atime, stat.mtime)), ..Touched::default() });
        }
        Ok(())
    }

    /// As [`Applier::finish`], also for an object that is immutable here already.
    pub(super) fn finish_lifted(&mut self, oid: Oid, mut touched: Touched) -> Outcome<()> {
        match self.finish(oid, &touched) {
            Err(Trouble::Errno(Errno::EPERM)) if self.lift_flags(oid)? => {
                let lifted = self.touched.remove(&oid).and_then(|touched| touched.flags);
                touched.flags = touched.flags.or(lifted);
                self.finish(oid, &touched)
            }
            done => done,
        }
    }

    /// Order: owner, mode, capability, times, flags. A change of owner clears set-user-id bits and the capability
    /// (chown(2)); nothing can be set any more once the immutable flag is back.
    fn finish(&mut self, oid: Oid, touched: &Touched) -> Outcome<()> {
        match self.catalog.get(oid)? {
            Some(row) if row.known > Known::Placeholder => {}
            _ => return Ok(()),
        }
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        let fd = fd.as_fd();
        let stat = sys::fstat(fd)?;
        match (&touched.attrs, touched.times) {
            (Some(attrs), _) => self.set_attrs(fd, &stat, attrs, touched)?,
            (None, Some((atime, mtime))) => {
                self.tree.mutate().set_times(fd, TimeChange::Set(atime), TimeChange::Set(mtime))?;
            }
            (None, None) => {}
        }
        faults::point("applier.flags")?;
        let fresh = self.fresh.remove(oid);
        match touched.flags {
            Some(flags) if fresh && flags.is_plain() => Ok(()),
            Some(flags) => self.set_flags(oid, stat.mode & libc::S_IFMT, fd, &flags),
            None => Ok(()),
        }
    }

    fn set_attrs(&self, fd: BorrowedFd<'_>, stat: &Stat, attrs: &Attrs, touched: &Touched) -> Outcome<()> {
        let tree = self.tree.mutate();
        let mut capability = touched.capability.clone();
        let moved = stat.uid != attrs.uid || stat.gid != attrs.gid;
        if moved {
            capability = capability.or(self.tree.xattr(fd, CAPABILITY)?);
            tree.chown(fd, Some(attrs.uid), Some(attrs.gid))?;
        }
        faults::point("applier.mode")?;
        let is_link = stat.mode & libc::S_IFMT == libc::S_IFLNK;
        if !is_link && (moved || stat.mode & 0o7777 != attrs.mode & 0o7777) {
            tree.chmod(fd, attrs.mode)?;
        }
        if let Some(value) = capability {
            self.set_xattr(fd, CAPABILITY, &value)?;
        }
        faults::point("applier.times")?;
        // Always: data written in this group has moved mtime behind our back since `stat` was read.
        Ok(tree.set_times(fd, TimeChange::Set(attrs.atime), TimeChange::Set(attrs.mtime))?)
    }

    fn set_flags(&mut self, oid: Oid, kind: u32, fd: BorrowedFd<'_>, flags: &InodeFlags) -> Outcome<()> {
        match kind {
            libc::S_IFREG | libc::S_IFDIR => match self.tree.mutate().set_inode_flags(fd, flags) {
                Err(Errno::EINVAL) if came_too_late(fd, flags)? => self.fetch_again(oid),
                done => Ok(done?),
            },
            _ => Ok(self.tree.mutate().set_project(fd, flags.project)?),
        }
    }

    /// Sets what must be there before a file has data or an object has a name (see [`sys::set_hints`]). Data that is there
    /// already, from before a comparison or from the future of a create, is dropped for it: it comes again.
    pub(super) fn set_hints(&mut self, oid: Oid, kind: u32, fd: BorrowedFd<'_>, flags: &InodeFlags) -> Outcome<()> {
        match kind {
            libc::S_IFREG | libc::S_IFDIR => match self.tree.mutate().set_hints(fd, flags) {
                Err(Errno::EINVAL) if came_too_late(fd, flags)? => {
                    self.keep_content(oid, fd)?;
                    let tree = self.tree.mutate();
                    tracing::debug!(%oid, "the data goes for an extent size hint, and is fetched again");
                    tree.truncate(fd, 0)?;
                    Ok(tree.set_hints(fd, flags)?)
                }
                done => Ok(done?),
            },
            _ => Ok(self.tree.mutate().set_project(fd, flags.project)?),
        }
    }

    /// As [`Applier::set_hints`] for an object that lives already.
    pub(super) fn set_late_hints(
        &mut self,
        oid: Oid,
        kind: u32,
        fd: BorrowedFd<'_>,
        flags: &InodeFlags,
    ) -> Outcome<()> {
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Ok(self.tree.mutate().set_project(fd, flags.project)?);
        }
        match self.tree.mutate().set_hints(fd, flags) {
            Err(Errno::EINVAL) if came_too_late(fd, flags)? => self.fetch_again(oid),
            done => Ok(done?),
        }
    }

    fn fetch_again(&mut self, oid: Oid) -> Outcome<()> {
        self.need(oid);
        Ok(())
    }

    /// Takes immutable and append-only off an object that is about to be changed; they are set again when the group ends.
    /// Returns whether there was anything to take off.
    pub(super) fn lift_flags(&mut self, oid: Oid) -> Outcome<bool> {
        match self.catalog.get(oid)? {
            Some(row) => self.lift(Some(oid), row.key, row.kind),
            None => Ok(false),
        }
    }

    /// As [`Applier::lift_flags`], for an object that was found in the tree, whether the catalog knows it or not.
    pub(super) fn lift_occupant(&mut self, occupant: &Occupant) -> Outcome<bool> {
        self.lift(occupant.oid.filter(|_| !occupant.stale), occupant.key, occupant.kind())
    }

    fn lift(&mut self, oid: Option<Oid>, key: ObjectKey, kind: u32) -> Outcome<bool> {
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Ok(false);
        }
        let fd = match self.tree.open_key(key, libc::O_RDONLY) {
            Err(Errno::ESTALE | Errno::ENOENT) => return Ok(false),
            fd => fd?,
        };
        let Ok(present) = sys::file_flags_get(fd.as_fd()) else {
            return Ok(false);
        };
        let lifted = FileFlags(present.0 & !FileFlags::LOCKS);
        if lifted == present {
            return Ok(false);
        }
        let flags = sys::inode_flags_get(fd.as_fd())?;
        self.tree.mutate().set_flags(fd.as_fd(), lifted)?;
        if let Some(oid) = oid {
            self.touched.entry(oid).or_default().flags.get_or_insert(flags);
        }
        Ok(true)
    }
}

/// Whether an extent size hint was refused because the file has extents already (ioctl_xfs_fsgetxattr(2)).
fn came_too_late(fd: BorrowedFd<'_>, flags: &InodeFlags) -> Outcome<bool> {
    let present = sys::inode_flags_get(fd)?;
    let hint = |flags: &InodeFlags| (flags.xflags, flags.extent_size, flags.cow_extent_size);
    Ok(hint(&present) != hint(flags) && sys::fstat(fd)?.blocks > 0)
}
