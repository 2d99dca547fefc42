//! The kinds of change.

use std::os::fd::BorrowedFd;

use crate::base::{Name, Oid, Timespec};
use crate::sys::{self, InodeFlags, Stat};

/// Attributes of an object after a change, as stat(2) shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attrs {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; counts for regular files only.
    pub size: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of the data.
    pub mtime: Timespec,
}

impl Attrs {
    /// What `stat` says.
    pub fn of(stat: &Stat) -> Attrs {
        Attrs {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: if stat.mode & libc::S_IFMT == libc::S_IFREG { stat.size } else { 0 },
            atime: stat.atime,
            mtime: stat.mtime,
        }
    }
}

/// What an object is for life: enough to create it before its state is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Type bits of the mode (S_IFMT).
    pub kind: u32,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Text of a symlink, else empty.
    pub link_text: Vec<u8>,
}

impl Shape {
    /// A regular file, directory, fifo or socket.
    pub fn plain(kind: u32) -> Shape {
        Shape { kind: kind & libc::S_IFMT, rdev: 0, link_text: Vec::new() }
    }

    /// What the object behind `fd` is, whose stat is `stat`.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn of(fd: BorrowedFd<'_>, stat: &Stat) -> sys::Result<Shape> {
        let mut shape = Shape::plain(stat.mode);
        match shape.kind {
            libc::S_IFLNK => shape.link_text = sys::readlinkat(fd, c"")?,
            libc::S_IFCHR | libc::S_IFBLK => shape.rdev = stat.rdev,
            _ => {}
        }
        Ok(shape)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

/// One extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    /// Full name with its namespace, 1 to 255 bytes, no NUL.
    pub name: Vec<u8>,
    /// Value, at most 64 KiB.
    pub value: Vec<u8>,
}

/// A place that holds an object: a name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The directory.
    pub parent: Oid,
    /// The name.
    pub name: Name,
}

/// In the mode of [`Op::Allocate`]: the block that the range starts in the middle of holds data afterwards.
pub const FIRST_BLOCK_IS_DATA: i32 = 1 << 29;
/// In the mode of [`Op::Allocate`]: the block that the range ends in the middle of holds data afterwards.
pub const LAST_BLOCK_IS_DATA: i32 = 1 << 30;

/// What became of an object that lost a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It still has a name, or someone holds it open.
    Kept,
    /// It is gone for good.
    Gone,
}

/// The object that a rename put out of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// Which object.
    pub oid: Oid,
    /// What became of it.
    pub fate: Fate,
}

/// One entry of a directory's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirItem {
    /// The name.
    pub name: Name,
    /// The object.
    pub oid: Oid,
    /// What the object is.
    pub shape: Shape,
}

/// One change, or one piece of an object's state. `oid` of the record is the object it is about.
///
/// The first group are changes: each took a TID. The `State*` group are readings of an object under its lock, stamped
/// with the TID of the last change they include; they travel to a target and are never in a journal.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // each variant names its fields
pub enum Op {
    /// A new object in a slot (creat, mkdir, mknod, symlink). `xattrs` and `flags` are those it was born with: access
    /// control lists, inode flags and projects are handed down by directories.
    Create { slot: Slot, shape: Shape, attrs: Attrs, xattrs: Vec<Xattr>, flags: InodeFlags, parent_after: Attrs },
    /// A further name (link).
    Link { slot: Slot, shape: Shape, attrs: Attrs, parent_after: Attrs },
    /// A name less (unlink, rmdir).
    Unlink { slot: Slot, fate: Fate, parent_after: Attrs },
    /// The object moved from one slot to another, perhaps putting out what was there.
    Rename {
        from: Slot,
        to: Slot,
        shape: Shape,
        attrs: Attrs,
        replaced: Option<Replaced>,
        from_after: Attrs,
        to_after: Attrs,
    },
    /// The object (in slot `from`) and `other` (in slot `to`) changed places. XFS counts that as a change of a moved
    /// directory's data (fs/xfs/xfs_inode.c, xfs_cross_rename), so the attributes of both are here.
    Exchange {
        from: Slot,
        to: Slot,
        shape: Shape,
        attrs: Attrs,
        other: Oid,
        other_shape: Shape,
        other_attrs: Attrs,
        from_after: Attrs,
        to_after: Attrs,
    },
    /// The payload was written at `offset`.
    Write { offset: u64, attrs: Attrs },
    /// The file now ends at `attrs.size`.
    Truncate { attrs: Attrs },
    /// fallocate(2) with these mode bits: reserve, punch or zero a range. [`FIRST_BLOCK_IS_DATA`] and
    /// [`LAST_BLOCK_IS_DATA`] stand beside them: whether the blocks that a punch cuts hold data afterwards depends on
    /// reserved space (btrfs makes zeros of it, but leaves a hole alone), which a target may not have.
    Allocate { mode: i32, offset: u64, len: u64, attrs: Attrs },
    /// Mode, owner or times changed.
    SetAttr { attrs: Attrs },
    /// One xattr was set.
    SetXattr { xattr: Xattr, attrs: Attrs },
    /// One xattr was removed.
    RemoveXattr { name: Vec<u8>, attrs: Attrs },
    /// Inode flags, hints or the project changed (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR).
    SetFlags { flags: InodeFlags, attrs: Attrs },
    /// The last holder of an object without a name closed it.
    Gone,
    /// A change that the volume's rules keep from a target, or turn into another one there. It is made where it is sent and
    /// never lies in the journal of the volume that was changed. `original` is the header of the change's own record, which
    /// the digest of the chain goes on with: a place means the same whatever was kept from whom.
    Filtered { original: [u8; 56], instead: Option<Instead> },
    /// A directory: attributes and a part of its entries. Parts of one reading follow each other; `last` ends it.
    StateDir { attrs: Attrs, xattrs: Vec<Xattr>, flags: InodeFlags, first: bool, last: bool, items: Vec<DirItem> },
    /// Any other object: what it is, its attributes and xattrs. A file's size is set, its data follows.
    StateObject { shape: Shape, attrs: Attrs, xattrs: Vec<Xattr>, flags: InodeFlags },
    /// The payload is what the file holds at `offset`.
    StateData { offset: u64, attrs: Attrs },
    /// The file holds no data in this range.
    StateHole { offset: u64, len: u64, attrs: Attrs },
    /// Digests of the 128 KiB blocks from `offset` (a multiple of that size), `len` bytes: the target asks for those that differ.
    StateHash { offset: u64, len: u64, digests: Vec<[u8; 16]>, attrs: Attrs },
    /// Attributes, xattrs and flags of an object that the target has; what changed of its data follows as `StateData` and
    /// `StateHole`. A target that does not have the object asks for all of it.
    StateAttrs { attrs: Attrs, xattrs: Vec<Xattr>, flags: InodeFlags },
    /// What a file is. A target whose file has this size and time of modification, and all of its content, takes that for
    /// the same; any other asks for the whole file.
    StateAlike { shape: Shape, attrs: Attrs, xattrs: Vec<Xattr>, flags: InodeFlags },
    /// All of the object's state was sent.
    StateEnd { attrs: Attrs },
    /// The object does not exist (any more).
    StateGone,
    /// Of the names that the object has, the volume's rules include none: without a name in the target's tree it goes.
    StateOutside,
}

/// What a change is for a target that rules keep a part of it from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instead {
    /// The object.
    pub oid: Oid,
    /// What happens to it: unlink, rename or gone.
    pub op: Box<Op>,
}

impl Op {
    /// The word that `dtfs log` shows.
    pub fn word(&self) -> &'static str {
        match self {
            Op::Create { .. } => "create",
            Op::Link { .. } => "link",
            Op::Unlink { .. } => "unlink",
            Op::Rename { .. } => "rename",
            Op::Exchange { .. } => "exchange",
            Op::Write { .. } => "write",
            Op::Truncate { .. } => "truncate",
            Op::Allocate { .. } => "allocate",
            Op::SetAttr { .. } => "setattr",
            Op::SetXattr { .. } => "setxattr",
            Op::RemoveXattr { .. } => "removexattr",
            Op::SetFlags { .. } => "setflags",
            Op::Gone => "gone",
            Op::Filtered { .. } => "filtered",
            Op::StateDir { .. } => "state-dir",
            Op::StateObject { .. } => "state-object",
            Op::StateData { .. } => "state-data",
            Op::StateHole { .. } => "state-hole",
            Op::StateHash { .. } => "state-hash",
            Op::StateAttrs { .. } => "state-attrs",
            Op::StateAlike { .. } => "state-alike",
            Op::StateEnd { .. } => "state-end",
            Op::StateGone => "state-gone",
            Op::StateOutside => "state-outside",
        }
    }

    /// Whether this is a reading of state (no TID of its own) and not a change.
    pub fn is_state(&self) -> bool {
        matches!(
            self,
            Op::StateDir { .. }
                | Op::StateObject { .. }
                | Op::StateData { .. }
                | Op::StateHole { .. }
                | Op::StateHash { .. }
                | Op::StateAttrs { .. }
                | Op::StateAlike { .. }
                | Op::StateEnd { .. }
                | Op::StateGone
                | Op::StateOutside
        )
    }
}
