//! The park: the hidden directory of objects that have no name, one entry per object, named after its oid.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::backing::{Tree, TreeMut};
use crate::base::{Name, Oid};
use crate::record::{RESERVED_DIR, Shape};
use crate::sys::{self, Errno, Result};

/// xattr with the oid of an object, 16 bytes.
pub(super) const OID_XATTR: &std::ffi::CStr = c"trusted.dtfs.oid";
/// xattr of a parked object with the slot it was put out of: oid of the directory, name.
pub(super) const DISPLACED_XATTR: &std::ffi::CStr = c"trusted.dtfs.displaced";

pub(super) struct Park {
    park: Arc<OwnedFd>,
    orphans: OwnedFd,
}

impl Park {
    /// Opens `.dtfs/park` and `.dtfs/orphans` in `tree`, making them when they are not there.
    pub(super) fn open(tree: &Tree) -> Result<Park> {
        let own = name(RESERVED_DIR)?;
        let dir = ensure_dir(tree, tree.root(), &own)?;
        let park = ensure_dir(tree, dir.as_fd(), &name(b"park")?)?;
        let orphans = ensure_dir(tree, dir.as_fd(), &name(b"orphans")?)?;
        Ok(Park { park: Arc::new(park), orphans })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.park.as_fd()
    }

    /// As [`Park::fd`], for a caller that goes on to change the applier.
    pub(super) fn dir(&self) -> Arc<OwnedFd> {
        self.park.clone()
    }

    pub(super) fn orphans(&self) -> BorrowedFd<'_> {
        self.orphans.as_fd()
    }

    /// Makes a new object of `shape` in the park, with its oid. What is there under this oid already is in the way of
    /// nobody else, and is removed.
    pub(super) fn create(&self, tree: &TreeMut<'_>, oid: Oid, shape: &Shape) -> Result<OwnedFd> {
        let entry = entry(oid)?;
        match make(tree, self.fd(), &entry, shape) {
            Err(Errno::EEXIST) => {
                remove_any(tree, self.fd(), &entry)?;
                make(tree, self.fd(), &entry, shape)?;
            }
            other => other?,
        }
        let fd = tree.tree().open_child(self.fd(), &entry, libc::O_PATH)?;
        tree.set_xattr(fd.as_fd(), OID_XATTR, &oid.to_bytes(), 0)?;
        Ok(fd)
    }

    /// The oids of everything parked.
    pub(super) fn oids(&self) -> Result<Vec<Oid>> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let mut stream = sys::DirStream::new(sys::openat(self.fd(), c".", flags, 0)?);
        let mut oids = Vec::new();
        while let Some(entry) = stream.next_entry()? {
            if let Some(oid) = std::str::from_utf8(&entry.name).ok().and_then(|text| text.parse().ok()) {
                oids.push(oid);
            }
        }
        Ok(oids)
    }
}

/// The park's entry for `oid`.
pub(super) fn entry(oid: Oid) -> Result<Name> {
    name(oid.to_string().as_bytes())
}

fn name(bytes: &[u8]) -> Result<Name> {
    Name::new(bytes).map_err(|_| Errno::EINVAL)
}

fn make(tree: &TreeMut<'_>, dir: BorrowedFd<'_>, name: &Name, shape: &Shape) -> Result<()> {
    match shape.kind {
        libc::S_IFREG => tree.create_file(dir, name, 0o600).map(drop),
        libc::S_IFDIR => tree.mkdir(dir, name, 0o700),
        libc::S_IFLNK => {
            let text = std::ffi::CString::new(shape.link_text.clone()).map_err(|_| Errno::EINVAL)?;
            tree.symlink(&text, dir, name)
        }
        kind => tree.mknod(dir, name, kind | 0o600, shape.rdev),
    }
}

/// Removes a parked object of any kind. A directory's children were parked before.
fn remove_any(tree: &TreeMut<'_>, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
    match tree.unlink(dir, name) {
        Err(Errno::EISDIR) => tree.rmdir(dir, name),
        other => other,
    }
}

fn ensure_dir(tree: &Tree, dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    match tree.mutate().mkdir(dir, name, 0o700) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    tree.open_child(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)
}
