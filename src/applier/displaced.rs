//! Directories that stand in the way of a move because the tree is from another time: put aside with a note of their slot,
//! and put back when the place in the stream has passed everything the tree could hold.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::park::{self, DISPLACED_XATTR};
use super::{Applier, Outcome};
use crate::base::{Name, Oid, faults};
use crate::sys::{self, Errno};

/// How trying to put a displaced directory back ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PutBack {
    /// It is back, or will never be put back.
    Done,
    /// Its place lies below itself for now.
    InTheWay,
}

impl Applier {
    /// `dest` lies below the directory `oid`: parks the directory just below `oid` on that way, and notes in an xattr which
    /// slot it was put out of. Parking alone would be wrong: the parked edge may be the old, valid one.
    pub(super) fn park_ancestor(&mut self, dest: BorrowedFd<'_>, oid: Oid) -> Outcome<()> {
        let Some(row) = self.catalog.get(oid)? else {
            return Err(Errno::EINVAL.into());
        };
        let mut below = sys::openat(dest, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        loop {
            let above = sys::openat(below.as_fd(), c"..", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            let key = self.tree.key_of(above.as_fd())?;
            if key == row.key {
                return self.displace(below, &above, oid);
            }
            if key == self.tree.root_key() {
                return Err(Errno::EINVAL.into());
            }
            below = above;
        }
    }

    fn displace(&mut self, child: OwnedFd, parent: &OwnedFd, parent_oid: Oid) -> Outcome<()> {
        let Some((_, name)) = self.locate_dir(child.as_fd())? else {
            return Err(Errno::EINVAL.into());
        };
        let Some(occupant) = self.occupant(parent.as_fd(), &name)? else {
            return Err(Errno::EINVAL.into());
        };
        let Some(oid) = occupant.oid else {
            return self.put_out(parent.as_fd(), &name, &occupant);
        };
        let mut slot = parent_oid.to_bytes().to_vec();
        slot.extend_from_slice(name.as_bytes());
        self.preserve(parent_oid, parent.as_fd())?;
        self.lift_occupant(&occupant)?;
        self.set_xattr(child.as_fd(), DISPLACED_XATTR, &slot)?;
        self.displaced.insert(oid);
        faults::point("applier.displaced")?;
        self.put_out(parent.as_fd(), &name, &occupant)
    }

    pub(super) fn load_displaced(&mut self) -> Outcome<()> {
        for oid in self.park.oids()? {
            let fd = self.tree.open_child(self.park.fd(), &park::entry(oid)?, libc::O_PATH)?;
            if self.tree.xattr(fd.as_fd(), DISPLACED_XATTR)?.is_some() {
                self.displaced.insert(oid);
            }
        }
        Ok(())
    }

    pub(super) fn forget_displaced(&mut self, oid: Oid) -> Outcome<()> {
        if !self.displaced.remove(&oid) {
            return Ok(());
        }
        if let Some(fd) = self.fd(oid)? {
            match self.tree.mutate().remove_xattr(fd.as_fd(), DISPLACED_XATTR) {
                Ok(()) | Err(Errno::ENODATA) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The replay has passed everything that the tree could hold from before the crash: what is still displaced was
    /// displaced by an edge that no longer stands in its way. Where one still does (a tree that is being compared has
    /// such edges until their directories were listed) the mark stays, for another try at the end of the next group.
    pub(super) fn put_back_displaced(&mut self) -> Outcome<()> {
        for oid in self.displaced.iter().copied().collect::<Vec<_>>() {
            if self.put_back(oid)? == PutBack::Done {
                self.displaced.remove(&oid);
            }
        }
        Ok(())
    }

    fn put_back(&mut self, oid: Oid) -> Outcome<PutBack> {
        let entry = park::entry(oid)?;
        let parked = self.park.dir();
        let Some(occupant) = self.occupant(parked.as_fd(), &entry)? else {
            return Ok(PutBack::Done);
        };
        let slot = self.tree.xattr(occupant.fd.as_fd(), DISPLACED_XATTR)?.unwrap_or_default();
        if let Some((parent, name)) = read_slot(&slot)
            && let Some(dir) = self.mirrored(parent)?
        {
            self.preserve(parent, dir.as_fd())?;
            self.lift_occupant(&occupant)?;
            // It may hand its project down, and takes nothing of another then.
            self.lift_flags(parent)?;
            let tree = self.tree.mutate();
            match tree.rename(parked.as_fd(), &entry, dir.as_fd(), &name, libc::RENAME_NOREPLACE) {
                Err(Errno::EINVAL) => return Ok(PutBack::InTheWay),
                // Taken by another: it stays parked until a record speaks of it.
                Ok(()) | Err(Errno::EEXIST | Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        faults::point("applier.back")?;
        self.tree.mutate().remove_xattr(occupant.fd.as_fd(), DISPLACED_XATTR).or_else(not_set)?;
        Ok(PutBack::Done)
    }

    /// These slots of the directory are known exactly now: nothing is put back into them from before.
    pub(super) fn forget_displaced_from(&mut self, parent: Oid, slots: impl Fn(&Name) -> bool) -> Outcome<()> {
        for oid in self.displaced.iter().copied().collect::<Vec<_>>() {
            let Some(fd) = self.fd(oid)? else { continue };
            let slot = self.tree.xattr(fd.as_fd(), DISPLACED_XATTR)?.unwrap_or_default();
            if read_slot(&slot).is_some_and(|(from, name)| from == parent && slots(&name)) {
                self.forget_displaced(oid)?;
            }
        }
        Ok(())
    }
}

fn read_slot(bytes: &[u8]) -> Option<(Oid, Name)> {
    let (oid, name) = bytes.split_first_chunk::<{ Oid::LEN }>()?;
    Some((Oid::from_bytes(*oid), Name::new(name).ok()?))
}

fn not_set(errno: Errno) -> sys::Result<()> {
    match errno {
        Errno::ENODATA => Ok(()),
        errno => Err(errno),
    }
}
