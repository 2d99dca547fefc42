//! Bringing objects into being, and taking them away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::catalog::{Known, Row};
use super::keep::Kept;
use super::park::{self, OID_XATTR};
use super::{Applier, Outcome, Trouble};
use crate::base::{Name, ObjectKey, Oid};
use crate::record::{RESERVED_XATTR_PREFIX, Shape, Xattr};
use crate::sys::{self, DirStream, Errno, Stat};

/// What holds a name right now.
pub(super) struct Occupant {
    pub(super) fd: OwnedFd,
    pub(super) key: ObjectKey,
    pub(super) stat: Stat,
    /// Its oid, when it is one of ours.
    pub(super) oid: Option<Oid>,
    /// It bears the oid of an object that the catalog knows under another inode: left over from before a crash.
    pub(super) stale: bool,
}

impl Occupant {
    pub(super) fn is(&self, oid: Oid) -> bool {
        self.oid == Some(oid) && !self.stale
    }

    pub(super) fn kind(&self) -> u32 {
        self.stat.mode & libc::S_IFMT
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

impl Applier {
    /// What is at `name` in `dir`, or `None`.
    pub(super) fn occupant(&mut self, dir: BorrowedFd<'_>, name: &Name) -> Outcome<Option<Occupant>> {
        let fd = match self.tree.open_child(dir, name, libc::O_PATH) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let found = self.tree.found(fd.as_fd())?;
        let bytes = self.tree.xattr(fd.as_fd(), OID_XATTR)?;
        let oid = bytes.and_then(|bytes| bytes.try_into().ok()).map(Oid::from_bytes);
        let stale = match oid {
            Some(oid) => self.catalog.get(oid)?.is_some_and(|row| row.key != found.key),
            None => false,
        };
        Ok(Some(Occupant { fd, key: found.key, stat: found.stat, oid, stale }))
    }

    /// Enters an object that is in the tree into the catalog.
    pub(super) fn register(&mut self, oid: Oid, occupant: &Occupant, known: Known) -> Outcome<()> {
        self.open.remove(&oid);
        Ok(self.catalog.put(oid, Row { key: occupant.key, kind: occupant.kind(), known })?)
    }

    /// The object, which is there from now on: known, or found in the park, or made there as a placeholder. Says whether
    /// it had to be made or found, and so whether its state is still to come.
    pub(super) fn ensure(&mut self, oid: Oid, shape: &Shape) -> Outcome<bool> {
        if let Some(row) = self.catalog.get(oid)? {
            if row.kind == shape.kind
                && let Some(fd) = self.fd(oid)?
                && is_of_shape(fd.as_fd(), shape)?
            {
                return Ok(false);
            }
            self.drop_object(oid)?;
        }
        match self.park.create(&self.tree.mutate(), oid, shape) {
            Err(Errno::EEXIST) => self.take_parked(oid, shape)?,
            made => self.enter(oid, shape, made?)?,
        }
        Ok(true)
    }

    /// Enters a new object, open as `fd`, into the catalog.
    fn enter(&mut self, oid: Oid, shape: &Shape, fd: OwnedFd) -> Outcome<()> {
        let key = self.tree.key_of(fd.as_fd())?;
        self.catalog.put(oid, Row { key, kind: shape.kind, known: Known::Placeholder })?;
        if shape.is_file() {
            self.fresh.insert(oid);
            self.keep_open(oid, fd);
        }
        Ok(())
    }

    /// Something is in the park under this oid: the object from before a crash, or a remnant of it.
    fn take_parked(&mut self, oid: Oid, shape: &Shape) -> Outcome<()> {
        let entry = park::entry(oid)?;
        let parked = self.park.dir();
        if let Some(occupant) = self.occupant(parked.as_fd(), &entry)? {
            if occupant.is(oid) && occupant.kind() == shape.kind {
                return self.register(oid, &occupant, Known::Placeholder);
            }
            self.empty_if_dir(&occupant)?;
            if self.keep_entry(parked.as_fd(), &entry, &occupant)? == Kept::Moved {
                let fd = self.park.create(&self.tree.mutate(), oid, shape)?;
                return self.enter(oid, shape, fd);
            }
        }
        self.park.remove(&self.tree.mutate(), oid)?;
        let fd = self.park.create(&self.tree.mutate(), oid, shape)?;
        self.enter(oid, shape, fd)
    }

    /// As [`Applier::ensure`], and asks for the state of what was made.
    pub(super) fn ensure_or_need(&mut self, oid: Oid, shape: &Shape) -> Outcome<()> {
        if self.ensure(oid, shape)? {
            self.need(oid);
        }
        Ok(())
    }

    /// The object is gone at the source. Names it still has elsewhere are put right by the records that follow.
    pub(super) fn drop_object(&mut self, oid: Oid) -> Outcome<()> {
        self.displaced.remove(&oid);
        self.touched.remove(&oid);
        self.forget_missing(oid);
        self.give_up_listing(oid);
        if oid == Oid::ROOT {
            return Ok(());
        }
        let entry = park::entry(oid)?;
        let parked = self.park.dir();
        if let Some(occupant) = self.occupant(parked.as_fd(), &entry)? {
            self.remove_entry(parked.as_fd(), &entry, &occupant)?;
        } else if let Some(fd) = self.fd(oid)?.filter(|fd| is_dir(fd)) {
            self.remove_bound_dir(&fd)?;
        }
        self.open.remove(&oid);
        self.fresh.remove(oid);
        self.sieve.gone(oid);
        self.catalog.remove(oid)?;
        Ok(())
    }

    /// The object is outside of what is replicated. A file that has a name here may have another one that the source does not
    /// know of at this place; a directory has none but the one it lost.
    pub(super) fn drop_if_nameless(&mut self, oid: Oid) -> Outcome<()> {
        let parked = self.tree.open_child(self.park.fd(), &park::entry(oid)?, libc::O_PATH).is_ok();
        match self.catalog.get(oid)? {
            Some(row) if !parked && row.kind != libc::S_IFDIR => Ok(()),
            _ => self.drop_object(oid),
        }
    }

    fn remove_bound_dir(&mut self, fd: &Arc<OwnedFd>) -> Outcome<()> {
        let Some((parent, name)) = self.locate_dir(fd.as_fd())? else {
            return Ok(());
        };
        match self.occupant(parent.as_fd(), &name)? {
            Some(occupant) => self.remove_entry(parent.as_fd(), &name, &occupant),
            None => Ok(()),
        }
    }

    /// Removes one name, of an immutable object too; a directory's children are parked before.
    pub(super) fn remove_entry(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        match self.remove_unlocked(dir, name, occupant) {
            Err(Trouble::Errno(Errno::EPERM)) if self.lift_occupant(occupant)? => {
                self.remove_unlocked(dir, name, occupant)
            }
            done => done,
        }
    }

    fn remove_unlocked(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        if !occupant.is_dir() {
            return match self.keep_entry(dir, name, occupant)? {
                Kept::Moved => Ok(()),
                Kept::No => Ok(self.tree.mutate().unlink(dir, name)?),
            };
        }
        self.empty_if_dir(occupant)?;
        Ok(self.tree.mutate().rmdir(dir, name)?)
    }

    /// Parks whatever is left in a directory that must go: it is from the past or the future of the stream, and the records
    /// that follow bind it again or say that it is gone.
    fn empty_if_dir(&mut self, occupant: &Occupant) -> Outcome<()> {
        if !occupant.is_dir() {
            return Ok(());
        }
        let dir = sys::reopen(occupant.fd.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        for name in entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)? {
            if let Some(child) = self.occupant(dir.as_fd(), &name)? {
                self.put_out(dir.as_fd(), &name, &child)?;
                self.unlisted.extend(child.oid.filter(|_| !child.stale));
            }
        }
        Ok(())
    }

    /// Makes the xattrs of an object exactly `wanted`.
    pub(super) fn replace_xattrs(&mut self, fd: BorrowedFd<'_>, wanted: &[Xattr]) -> Outcome<()> {
        let tree = self.tree.mutate();
        for (name, _) in self.tree.xattrs(fd, RESERVED_XATTR_PREFIX)? {
            if !wanted.iter().any(|xattr| xattr.name == name) && !keeps_to_itself(&name) {
                tree.remove_xattr(fd, &c_name(&name)?)?;
            }
        }
        for xattr in wanted.iter().filter(|xattr| !keeps_to_itself(&xattr.name)) {
            self.set_xattr(fd, &c_name(&xattr.name)?, &xattr.value)?;
        }
        Ok(())
    }
}

/// Whether an object can be the one of this shape, of which the source knows: its kind is right, and what can never be changed
/// of it. One oid names two objects where a source was put back to a time before the first one was born.
pub(super) fn is_of_shape(fd: BorrowedFd<'_>, shape: &Shape) -> Outcome<bool> {
    let kind = shape.kind;
    Ok(match kind {
        libc::S_IFLNK => sys::readlinkat(fd, c"").is_ok_and(|text| text == shape.link_text),
        libc::S_IFCHR | libc::S_IFBLK => {
            let stat = sys::fstat(fd)?;
            stat.mode & libc::S_IFMT == kind && stat.rdev == shape.rdev
        }
        _ => true,
    })
}

/// Labels that the host's own security module gives to every object: they are set by policy and not by a user.
pub(super) fn keeps_to_itself(name: &[u8]) -> bool {
    name == b"security.selinux" || name == b"security.SMACK64"
}

pub(super) fn c_name(name: &[u8]) -> Outcome<std::ffi::CString> {
    Ok(std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?)
}

/// The names in a directory, without `.` and `..`.
pub(super) fn entry_names(dir: OwnedFd) -> Outcome<Vec<Name>> {
    let mut stream = DirStream::new(dir);
    let mut names = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        names.extend(Name::new(&entry.name).ok());
    }
    Ok(names)
}

/// Whether it is a directory that is still in the tree.
fn is_dir(fd: &OwnedFd) -> bool {
    sys::fstat(fd.as_fd()).is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFDIR && stat.nlink > 0)
}
