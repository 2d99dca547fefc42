//! A tree that is there: opened once, read by handle and by (directory, name).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::guard;
use super::handle::HandleFormat;
use super::mutate::TreeMut;
use crate::base::{Name, ObjectKey, faults};
use crate::sys::{self, DirStream, Errno, FileSystemStat, Result, Stat};

/// Why a directory cannot be used as a tree.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// A system call failed.
    #[error("{path}: {what}: {errno}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Its filesystem has no file handles that dtfs knows.
    #[error("{path}: its filesystem (magic 0x{magic:x}) is not one of ext4, xfs, btrfs, tmpfs")]
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// statfs(2)'s f_type.
        magic: i64,
    },
    /// Other filesystems are mounted below it, and would be hidden.
    #[error("{path}: other filesystems are mounted below it: {}", list(.inner))]
    InnerMounts {
        /// The directory.
        path: PathBuf,
        /// Their mount points.
        inner: Vec<PathBuf>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A directory entry that was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Which object it is.
    pub key: ObjectKey,
    /// Its attributes.
    pub stat: Stat,
}

/// An open tree. All access goes through a private clone of its mount, so it does not matter what is mounted over its
/// path later.
pub struct Tree {
    root: OwnedFd,
    /// Open from the start and used for nothing but syncfs: write-back errors are reported once per descriptor.
    sync_fd: OwnedFd,
    format: HandleFormat,
    root_key: ObjectKey,
    dev: u64,
    /// See [`Tree::hole_at_end`].
    pub(super) fills_tails: bool,
}

/// Makes a tree durable.
pub struct Syncer(OwnedFd);

impl Syncer {
    /// As [`Tree::sync`].
    ///
    /// # Errors
    /// As [`Tree::sync`].
    pub fn sync(&self) -> Result<()> {
        sync(self.0.as_fd())
    }
}

fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    faults::step("backing.syncfs", || sys::syncfs(fd))
}

/// What xfs calls the two access control lists on its disk. It lists them under these names too (fs/xfs/xfs_xattr.c), and
/// whoever removes one name of the two has removed the other.
const XFS_ACLS: [&[u8]; 2] = [b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];

impl Tree {
    /// Opens the directory `path`; below a dead FUSE mount, which stays there, the directory that this hides.
    ///
    /// # Errors
    /// [`BackingError`] when it is no directory, holds mounts below, or lies on a filesystem without known handles.
    pub fn open(path: &Path) -> std::result::Result<Tree, BackingError> {
        match Tree::open_below_mounts(path)? {
            (tree, inner) if inner.is_empty() => Ok(tree),
            (_, inner) => Err(BackingError::InnerMounts { path: path.to_owned(), inner }),
        }
    }

    /// As [`Tree::open`], but where other filesystems are mounted below, the tree is what they cover: its private clone of
    /// the mount is without them. Names them.
    ///
    /// # Errors
    /// As [`Tree::open`], except for the mounts.
    pub fn open_below_mounts(path: &Path) -> std::result::Result<(Tree, Vec<PathBuf>), BackingError> {
        let io = |what| move |errno| BackingError::Io { path: path.to_owned(), what, errno };
        let text = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| io("open")(Errno::EINVAL))?;
        let cwd = nix::fcntl::AT_FDCWD;
        let clone = match sys::openat(cwd, &text, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
            Ok(plain) => sys::clone_mount(plain.as_fd()).map_err(io("open_tree"))?,
            Err(Errno::ENOTCONN) => sys::clone_mount_below(&text, |_| false).map_err(io("open below a dead mount"))?,
            Err(errno) => return Err(io("open")(errno)),
        };
        Ok((Tree::of_clone(path, clone)?, inner_mounts(path).map_err(io("read mountinfo"))?))
    }

    /// As [`Tree::open`] for the tree of a target, whatever keeps others out of it (`backing::guard`). `path` must be absolute
    /// and without symlinks.
    ///
    /// # Errors
    /// As [`Tree::open`].
    pub fn open_covered(path: &Path) -> std::result::Result<Tree, BackingError> {
        let io = |what| move |errno| BackingError::Io { path: path.to_owned(), what, errno };
        if guard::cover_at(path).map_err(io("read mountinfo"))? == guard::Cover::Bare {
            return Tree::open(path);
        }
        match inner_mounts(path).map_err(io("read mountinfo"))? {
            inner if inner.is_empty() => {
                Tree::of_clone(path, guard::clone_covered(path).map_err(io("open below its cover"))?)
            }
            inner => Err(BackingError::InnerMounts { path: path.to_owned(), inner }),
        }
    }

    fn of_clone(path: &Path, clone: OwnedFd) -> std::result::Result<Tree, BackingError> {
        let io = |what| move |errno| BackingError::Io { path: path.to_owned(), what, errno };
        // open_tree gives an O_PATH descriptor; open_by_handle_at and syncfs want a real one.
        let root = sys::openat(clone.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(io("open"))?;
        let sync_fd = sys::openat(clone.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(io("open"))?;
        let magic = sys::fstatfs(root.as_fd()).map_err(io("statfs"))?.magic;
        let unsupported = |errno| match errno {
            Errno::EOPNOTSUPP => BackingError::Unsupported { path: path.to_owned(), magic },
            errno => io("name_to_handle_at")(errno),
        };
        let handle = sys::name_to_handle_at(root.as_fd(), c"").map_err(unsupported)?;
        let format = HandleFormat::learn(magic, &handle).map_err(unsupported)?;
        let root_key = format.unpack(&handle).map_err(unsupported)?;
        let dev = sys::fstat(root.as_fd()).map_err(io("stat"))?.dev;
        let fills_tails = magic == libc::BTRFS_SUPER_MAGIC;
        Ok(Tree { root, sync_fd, format, root_key, dev, fills_tails })
    }

    /// The root directory, open for reading.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Which object the root is.
    pub fn root_key(&self) -> ObjectKey {
        self.root_key
    }

    /// The device all objects of the tree live on.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Which object is behind `fd`.
    ///
    /// # Errors
    /// As name_to_handle_at(2).
    pub fn key_of(&self, fd: BorrowedFd<'_>) -> Result<ObjectKey> {
        self.format.unpack(&sys::name_to_handle_at(fd, c"")?)
    }

    /// Which object `name` in `dir` is, and its attributes. EXDEV when another filesystem is mounted there.
    ///
    /// # Errors
    /// ENOENT when there is none; else as fstatat(2) and name_to_handle_at(2).
    pub fn lookup(&self, dir: BorrowedFd<'_>, name: &Name) -> Result<Found> {
        let fd = sys::openat(dir, name.as_cstr(), libc::O_PATH, 0)?;
        self.found(fd.as_fd())
    }

    /// As [`Tree::lookup`], by two looks at the name instead of a descriptor. For a caller who knows that nobody moves the
    /// name meanwhile: the kernel holds the directory while it looks up or lists a name of the mount, and by that keeps
    /// away whoever makes, renames or removes one.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    pub fn look(&self, dir: BorrowedFd<'_>, name: &Name) -> Result<Found> {
        let stat = sys::fstatat(dir, name.as_cstr())?;
        if stat.dev != self.dev {
            return Err(Errno::EXDEV);
        }
        let key = self.format.unpack(&sys::name_to_handle_at(dir, name.as_cstr())?)?;
        match key.ino == stat.ino {
            true => Ok(Found { key, stat }),
            false => self.lookup(dir, name),
        }
    }

    /// Object and attributes behind `fd`, which must lie on this tree's filesystem.
    ///
    /// # Errors
    /// EXDEV for another filesystem; else as fstat(2).
    pub fn found(&self, fd: BorrowedFd<'_>) -> Result<Found> {
        let stat = sys::fstat(fd)?;
        if stat.dev != self.dev {
            return Err(Errno::EXDEV);
        }
        Ok(Found { key: self.key_of(fd)?, stat })
    }

    /// Opens the object `key` with `flags` (O_PATH, O_RDONLY, ...).
    ///
    /// # Errors
    /// ESTALE when it is gone; else as open(2).
    pub fn open_key(&self, key: ObjectKey, flags: i32) -> Result<OwnedFd> {
        if key == self.root_key {
            return sys::openat(self.root.as_fd(), c".", flags, 0);
        }
        let fd = sys::open_by_handle_at(self.root.as_fd(), &self.format.pack(key)?, flags)?;
        match faults::skipped("backing.resolver") {
            false => Ok(fd),
            true => self.open_by_path(&fd, flags),
        }
    }

    /// For a negative control only: what is behind `fd`, by the path that it had a moment ago. Whoever may move directories
    /// about in between leads it away.
    fn open_by_path(&self, fd: &OwnedFd, flags: i32) -> Result<OwnedFd> {
        let path = sys::path_of(fd.as_fd()).ok_or(Errno::ENOENT)?;
        let inside = path.as_os_str().as_bytes().strip_prefix(b"/").ok_or(Errno::ENOENT)?;
        let inside = std::ffi::CString::new(inside).map_err(|_| Errno::EINVAL)?;
        sys::openat(self.root.as_fd(), &inside, flags, 0)
    }

    /// The object that has inode number `ino` now, whatever its generation.
    ///
    /// # Errors
    /// ESTALE when there is none, or where the filesystem cannot find an inode without its generation.
    pub fn key_of_ino(&self, ino: u64) -> Result<ObjectKey> {
        if !self.format.accepts_any_generation() {
            return Err(Errno::ESTALE);
        }
        let handle = self.format.pack(ObjectKey { ino, generation: 0 })?;
        let fd = sys::open_by_handle_at(self.root.as_fd(), &handle, libc::O_PATH)?;
        self.key_of(fd.as_fd())
    }

    /// Opens the entry `name` of `dir` without following anything out of the directory.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn open_child(&self, dir: BorrowedFd<'_>, name: &Name, flags: i32) -> Result<OwnedFd> {
        sys::openat2_beneath(dir, name.as_cstr(), flags, 0)
    }

    /// Reads the entries of the directory behind `fd` (O_PATH is enough), from the start.
    ///
    /// # Errors
    /// As open(2).
    pub fn read_dir(&self, fd: BorrowedFd<'_>) -> Result<DirStream> {
        sys::openat(fd, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map(DirStream::new)
    }

    /// All xattrs of the object behind `fd`, without those that only dtfs uses, each once.
    ///
    /// # Errors
    /// As listxattr(2) and getxattr(2).
    pub fn xattrs(&self, fd: BorrowedFd<'_>, reserved_prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let is_xfs = matches!(self.format, HandleFormat::Xfs);
        let mut out = Vec::new();
        for name in sys::listxattr(fd).or_else(no_xattrs)? {
            if name.starts_with(reserved_prefix) || is_xfs && XFS_ACLS.contains(&&name[..]) {
                continue;
            }
            let text = std::ffi::CString::new(name.clone()).map_err(|_| Errno::EIO)?;
            match sys::getxattr(fd, &text) {
                Ok(value) => out.push((name, value)),
                // Removed since it was listed, or listed though the kernel keeps it to itself.
                Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(out)
    }

    /// One xattr, or `None` when it is not set.
    ///
    /// # Errors
    /// As getxattr(2).
    pub fn xattr(&self, fd: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
        match sys::getxattr(fd, name) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// What inode numbers of this tree belong to: its filesystem, and its root there. Where the kernel does not tell the
    /// filesystem's UUID only the root stands for it.
    ///
    /// # Errors
    /// As FS_IOC_GETFSUUID, but for there being none.
    pub fn identity(&self) -> Result<[u8; 28]> {
        let root = sys::openat(self.root.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let uuid = match sys::filesystem_uuid(root.as_fd()) {
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EINVAL) => [0; 16],
            uuid => uuid?,
        };
        let mut identity = [0; 28];
        identity[..16].copy_from_slice(&uuid);
        identity[16..24].copy_from_slice(&self.root_key.ino.to_le_bytes());
        identity[24..].copy_from_slice(&self.root_key.generation.to_le_bytes());
        Ok(identity)
    }

    /// statfs(2) of the tree's filesystem.
    ///
    /// # Errors
    /// As statfs(2).
    pub fn statfs(&self) -> Result<FileSystemStat> {
        sys::fstatfs(self.root.as_fd())
    }

    /// Writes everything dirty on the tree's filesystem to its disk.
    ///
    /// # Errors
    /// As syncfs(2). An error means that data was lost; it is reported once, so the caller must not try again.
    pub fn sync(&self) -> Result<()> {
        sync(self.sync_fd.as_fd())
    }

    /// What [`Tree::sync`] does, for a thread of its own. The descriptor's open file is shared with the tree, so that an
    /// error is told to one of them.
    ///
    /// # Errors
    /// As fcntl(2) with F_DUPFD.
    pub fn syncer(&self) -> Result<Syncer> {
        let fd = self.sync_fd.try_clone();
        fd.map(Syncer).map_err(|cause| Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// The half of the tree that changes it. A source's stack takes it only inside a mutation (stack/mutation.rs), where
    /// the change is paired with a record; a target's applier owns its tree.
    pub fn mutate(&self) -> TreeMut<'_> {
        TreeMut::new(self)
    }
}

fn no_xattrs(errno: Errno) -> Result<Vec<Vec<u8>>> {
    match errno {
        Errno::EOPNOTSUPP => Ok(Vec::new()),
        errno => Err(errno),
    }
}

/// The mount points strictly below `path`.
fn inner_mounts(path: &Path) -> Result<Vec<PathBuf>> {
    let below = |point: &PathBuf| point != path && point.starts_with(path);
    let mut inner: Vec<PathBuf> = sys::mounts()?.into_iter().map(|mount| mount.point).filter(below).collect();
    inner.sort();
    inner.dedup();
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_again_by_its_key() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"hello").unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let found = tree.lookup(tree.root(), &Name::new(b"file").unwrap()).unwrap();
        let fd = tree.open_key(found.key, libc::O_RDONLY).unwrap();
        let mut buffer = [0; 5];
        sys::read_exact_at(fd.as_fd(), &mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"hello");
        assert_eq!(tree.key_of(fd.as_fd()), Ok(found.key));
        std::fs::remove_file(dir.path().join("file")).unwrap();
        drop(fd);
        assert_eq!(tree.open_key(found.key, libc::O_RDONLY).unwrap_err(), Errno::ESTALE);
    }

    #[test]
    fn a_file_and_a_missing_path_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        for name in ["file", "missing"] {
            let error = Tree::open(&dir.path().join(name)).err().unwrap();
            assert!(matches!(error, BackingError::Io { what: "open", .. }), "{error}");
        }
        let error = Tree::open(Path::new("/proc/self")).err().unwrap();
        assert!(matches!(error, BackingError::Unsupported { .. } | BackingError::Io { .. }), "{error}");
    }
}
