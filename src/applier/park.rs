//! The park: the hidden directory of objects that have no name, one entry per object, named after its oid.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::backing::{Tree, TreeMut};
use crate::base::{Commit, Name, Oid, faults};
use crate::record::{RESERVED_DIR, RESERVED_XATTR_PREFIX, Shape};
use crate::sys::{self, Errno, InodeFlags, Result};

/// xattr with the oid of an object, 16 bytes.
pub(super) const OID_XATTR: &std::ffi::CStr = c"trusted.dtfs.oid";
/// xattr of a parked object with the slot it was put out of: oid of the directory, name.
pub(super) const DISPLACED_XATTR: &std::ffi::CStr = c"trusted.dtfs.displaced";

/// xattr of `.dtfs`: the [`Commit`] that the tree was last made durable for.
const COMMIT_XATTR: &std::ffi::CStr = c"trusted.dtfs.commit";

pub(super) struct Park {
    own: OwnedFd,
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
        Ok(Park { own: dir, park: Arc::new(park), orphans })
    }

    /// The commit that the tree bears; `None` when it has none, or none that can be read.
    pub(super) fn commit(&self, tree: &Tree) -> Result<Option<Commit>> {
        let bytes = tree.xattr(self.own.as_fd(), COMMIT_XATTR)?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(Commit::from_bytes))
    }

    /// An xattr and not a file: filesystems set it whole or not at all, also when the power goes.
    pub(super) fn set_commit(&self, tree: &TreeMut<'_>, commit: Commit) -> Result<()> {
        tree.set_xattr(self.own.as_fd(), COMMIT_XATTR, &commit.to_bytes(), 0)
    }

    /// `.dtfs`.
    pub(super) fn own(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
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

    /// Makes a new object of `shape` in the park, with its oid. The descriptor of a file is open for reading and writing,
    /// others are O_PATH.
    ///
    /// # Errors
    /// EEXIST when something is there under this oid.
    pub(super) fn create(&self, tree: &TreeMut<'_>, oid: Oid, shape: &Shape) -> Result<OwnedFd> {
        let entry = entry(oid)?;
        let fd = match shape.kind {
            libc::S_IFREG => tree.create_file(self.fd(), &entry, 0o600)?,
            _ => {
                make(tree, self.fd(), &entry, shape)?;
                tree.tree().open_child(self.fd(), &entry, libc::O_PATH)?
            }
        };
        faults::point("applier.parked")?;
        tree.set_xattr(fd.as_fd(), OID_XATTR, &oid.to_bytes(), 0)?;
        Ok(fd)
    }

    /// Removes what is there under `oid`. A directory's children were parked before.
    pub(super) fn remove(&self, tree: &TreeMut<'_>, oid: Oid) -> Result<()> {
        let entry = entry(oid)?;
        match tree.unlink(self.fd(), &entry) {
            Err(Errno::EISDIR) => tree.rmdir(self.fd(), &entry),
            other => other,
        }
    }

    /// Whether a file that is made here has no xattr and no flag that was not set on it: an access control list and some
    /// flags are handed down by the directory.
    pub(super) fn is_plain(&self, tree: &Tree) -> Result<bool> {
        let plain = sys::inode_flags_get(self.fd())?.without_layout().is_plain();
        Ok(plain && tree.xattrs(self.fd(), RESERVED_XATTR_PREFIX)?.is_empty())
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
        libc::S_IFDIR => tree.mkdir(dir, name, 0o700),
        libc::S_IFLNK => {
            let text = std::ffi::CString::new(shape.link_text.clone()).map_err(|_| Errno::EINVAL)?;
            tree.symlink(&text, dir, name)
        }
        kind => tree.mknod(dir, name, kind | 0o600, shape.rdev),
    }
}

/// The directory `name` in `dir`, made when it is not there.
pub(super) fn ensure_dir(tree: &Tree, dir: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd> {
    match tree.mutate().mkdir(dir, name, 0o700) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    let made = tree.open_child(dir, name, libc::O_RDONLY | libc::O_DIRECTORY)?;
    // The tree's root may hand flags or a project down; what is parked belongs to no project, and must get in and out.
    match tree.mutate().set_inode_flags(made.as_fd(), &InodeFlags::default()) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(made),
        Err(errno) => Err(errno),
    }
}
