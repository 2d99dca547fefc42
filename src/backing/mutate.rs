//! The calls that change a tree.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::tree::Tree;
use crate::base::Name;
use crate::base::faults;
use crate::sys::{self, FileFlags, InodeFlags, LinkSource, Result, TimeChange};

/// The changing half of a [`Tree`]. Errors of every method are those of the system call it is named after.
pub struct TreeMut<'a> {
    tree: &'a Tree,
}

#[allow(clippy::missing_errors_doc)] // one sentence above covers them all
impl<'a> TreeMut<'a> {
    pub(super) fn new(tree: &'a Tree) -> TreeMut<'a> {
        TreeMut { tree }
    }

    /// The reading half.
    pub fn tree(&self) -> &'a Tree {
        self.tree
    }

    /// open(2) with O_CREAT | O_EXCL: a new regular file, open for reading and writing.
    pub fn create_file(&self, dir: BorrowedFd<'_>, name: &Name, mode: u32) -> Result<OwnedFd> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        sys::openat(dir, name.as_cstr(), flags, mode & 0o7777)
    }

    /// mkdirat(2).
    pub fn mkdir(&self, dir: BorrowedFd<'_>, name: &Name, mode: u32) -> Result<()> {
        sys::mkdirat(dir, name.as_cstr(), mode & 0o7777)
    }

    /// mknodat(2): `mode` carries the type.
    pub fn mknod(&self, dir: BorrowedFd<'_>, name: &Name, mode: u32, rdev: u64) -> Result<()> {
        sys::mknodat(dir, name.as_cstr(), mode, rdev)
    }

    /// symlinkat(2).
    pub fn symlink(&self, text: &CStr, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        sys::symlinkat(text, dir, name.as_cstr())
    }

    /// linkat(2) from an open object (O_PATH is enough).
    pub fn link(&self, object: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        sys::linkat(LinkSource::Fd(object), dir, name.as_cstr())
    }

    /// unlinkat(2).
    pub fn unlink(&self, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        sys::unlinkat(dir, name.as_cstr(), 0)
    }

    /// unlinkat(2) with AT_REMOVEDIR.
    pub fn rmdir(&self, dir: BorrowedFd<'_>, name: &Name) -> Result<()> {
        sys::unlinkat(dir, name.as_cstr(), libc::AT_REMOVEDIR)
    }

    /// renameat2(2) with its raw flags.
    pub fn rename(
        &self,
        from_dir: BorrowedFd<'_>,
        from: &Name,
        to_dir: BorrowedFd<'_>,
        to: &Name,
        flags: u32,
    ) -> Result<()> {
        sys::renameat2(from_dir, from.as_cstr(), to_dir, to.as_cstr(), flags)
    }

    /// pwrite(2); may write less than asked.
    pub fn write(&self, file: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
        faults::point("backing.pwrite")?;
        sys::pwrite(file, data, offset)
    }

    /// pwrite(2) until all is written.
    pub fn write_all(&self, file: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<()> {
        faults::point("backing.pwrite")?;
        sys::pwritev_all(file, &[data], offset)
    }

    /// ftruncate(2).
    pub fn truncate(&self, file: BorrowedFd<'_>, size: u64) -> Result<()> {
        sys::ftruncate(file, size)
    }

    /// fallocate(2) with its raw mode bits.
    pub fn allocate(&self, file: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Result<()> {
        sys::fallocate(file, mode, offset, len)
    }

    /// fallocate(2): the range becomes a hole, the size stays.
    pub fn punch_hole(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
        sys::fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// chmod(2).
    pub fn chmod(&self, object: BorrowedFd<'_>, mode: u32) -> Result<()> {
        sys::fchmod(object, mode)
    }

    /// fchownat(2); `None` leaves one alone.
    pub fn chown(&self, object: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        sys::fchown(object, uid, gid)
    }

    /// utimensat(2).
    pub fn set_times(&self, object: BorrowedFd<'_>, atime: TimeChange, mtime: TimeChange) -> Result<()> {
        sys::utimens(object, atime, mtime)
    }

    /// setxattr(2) with its raw flags.
    pub fn set_xattr(&self, object: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
        sys::setxattr(object, name, value, flags)
    }

    /// removexattr(2).
    pub fn remove_xattr(&self, object: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        sys::removexattr(object, name)
    }

    /// FS_IOC_SETFLAGS; `object` must be open for reading.
    pub fn set_flags(&self, object: BorrowedFd<'_>, flags: FileFlags) -> Result<()> {
        sys::file_flags_set(object, flags)
    }

    /// FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR, as far as the flags are not right yet; `object` must be open for reading.
    pub fn set_inode_flags(&self, object: BorrowedFd<'_>, wanted: &InodeFlags) -> Result<()> {
        sys::set_inode_flags(object, wanted)
    }

    /// The part of [`TreeMut::set_inode_flags`] that must come before a file has data, and before an object gets a name in a
    /// directory that hands its project down; `object` must be open for reading.
    pub fn set_hints(&self, object: BorrowedFd<'_>, wanted: &InodeFlags) -> Result<()> {
        sys::set_hints(object, wanted)
    }

    /// file_setattr: the project id of what is neither file nor directory; O_PATH is enough.
    pub fn set_project(&self, object: BorrowedFd<'_>, project: u32) -> Result<()> {
        sys::set_project_of_path(object, project)
    }

    /// FS_IOC_FSSETXATTR; `object` must be open for reading.
    pub fn set_fsxattr(&self, object: BorrowedFd<'_>, raw: &[u8; sys::FSXATTR_BYTES]) -> Result<()> {
        sys::fsxattr_set(object, raw)
    }
}
