//! The words of the stack's interface.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::opens::OpenFile;
pub use crate::base::AtimeMode;
use crate::base::ObjectKey;
use crate::sys::{Stat, TimeChange};

/// What the kernel calls an inode of the mount: the backing inode number, and 1 for the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory of the volume (FUSE_ROOT_ID).
    pub const ROOT: NodeId = NodeId(1);
}

/// An open file or directory, as the kernel names it in later requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);

/// Who asks, and in which request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The kernel's number of the request; a request that is sent again carries the same one.
    pub unique: u64,
    /// Filesystem uid of the caller.
    pub uid: u32,
    /// Filesystem gid of the caller.
    pub gid: u32,
    /// Its process.
    pub pid: u32,
    /// Its umask; counts for creating requests only.
    pub umask: u32,
}

impl Caller {
    /// The daemon itself: changes that no request asked for (an access time at close, the end of an unlinked file).
    pub fn daemon() -> Caller {
        Caller { unique: 0, uid: 0, gid: 0, pid: std::process::id(), umask: 0 }
    }
}

/// What a name leads to. The caller holds one look-up on `node` and gives it back by `forget`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Tells a recycled node number apart; 0 for the root.
    pub generation: u32,
    /// Its attributes.
    pub stat: Stat,
}

/// How the kernel may cache the pages of an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// Through the page cache, which survives opens: every change goes through the mount.
    Cached,
    /// Past the page cache, writers beside each other.
    Direct,
}

/// When the kernel hands over what programs write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Writes {
    /// With each write(2), so that all are recorded in the order in which they were made.
    #[default]
    Through,
    /// When the page cache is written back, at the latest at fsync or close: as a disk would see it.
    Back,
}

/// Whether the kernel tells of each close (flush) before the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// No: a reader has nothing to lose, and a request less.
    Quiet,
    /// Yes: a writer that never calls fsync learns here that the volume failed.
    Told,
}

/// An answered open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The new handle.
    pub file: FileId,
    /// How the kernel may cache it.
    pub caching: Caching,
    /// Whether the kernel tells of each close.
    pub closing: Closing,
}

/// What a volume's operator chose for its mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StackOptions {
    /// Access times.
    pub atime: AtimeMode,
    /// How files opened for reading and writing are cached.
    pub read_write: Caching,
    /// When writes are handed over.
    pub writes: Writes,
}

impl Default for StackOptions {
    fn default() -> StackOptions {
        StackOptions { atime: AtimeMode::AtClose, read_write: Caching::Cached, writes: Writes::Through }
    }
}

/// What to change of an object's attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Access time.
    pub atime: TimeChange,
    /// Modification time.
    pub mtime: TimeChange,
}

impl Default for AttrChange {
    fn default() -> AttrChange {
        AttrChange { mode: None, uid: None, gid: None, size: None, atime: TimeChange::Keep, mtime: TimeChange::Keep }
    }
}

/// Whether a change of data takes set-user-id, set-group-id and file capabilities away (as it does for callers without
/// CAP_FSETID).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileges {
    /// They stay.
    Keep,
    /// They go.
    Kill,
}

impl Privileges {
    /// What a change by `caller` does where the kernel does not say: only root has CAP_FSETID as far as we can see.
    pub(super) fn of(caller: &Caller) -> Privileges {
        match caller.uid {
            0 => Privileges::Keep,
            _ => Privileges::Kill,
        }
    }
}

/// Whether a reader of directory entries wants more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// The entry was taken.
    Taken,
    /// The entry did not fit: it comes first the next time.
    Full,
}

/// One entry of a directory that is listed.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The name; `.` and `..` are listed too.
    pub name: &'a [u8],
    /// Inode number, as stat(2) shows it.
    pub ino: u64,
    /// DT_* type.
    pub d_type: u8,
    /// Where to continue behind it.
    pub next_offset: u64,
    /// What it leads to, when look-ups were asked for and it could be looked up.
    pub entry: Option<Entry>,
}

/// Type bits of a mode.
pub(super) fn kind(stat: &Stat) -> u32 {
    stat.mode & libc::S_IFMT
}

/// An object that is open for the time of one request.
pub(super) struct Object {
    pub(super) key: ObjectKey,
    pub(super) fd: ObjectFd,
}

/// By which descriptor a request reaches its object; only [`ObjectFd::File`] is more than O_PATH.
pub(super) enum ObjectFd {
    /// Opened for this request.
    Opened(OwnedFd),
    /// One of the directories that are kept open.
    Kept(Arc<OwnedFd>),
    /// A file that a program has open.
    File(Arc<OpenFile>),
}

impl AsFd for ObjectFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ObjectFd::Opened(fd) => fd.as_fd(),
            ObjectFd::Kept(fd) => fd.as_fd(),
            ObjectFd::File(file) => file.fd(),
        }
    }
}
