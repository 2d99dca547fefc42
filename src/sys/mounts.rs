//! Mounting and unmounting.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Result, check, own_fd};

/// A private, detached clone of the mount that holds `dir`, rooted at `dir`: it stays reachable whatever is mounted
/// over the path later, and shows none of the mounts below (open_tree(2) with OPEN_TREE_CLONE).
///
/// # Errors
/// As open_tree(2).
pub fn clone_mount(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the empty path is a live C string.
    own_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), c"".as_ptr(), flags) } as libc::c_int)
}

/// mount(2) of a FUSE filesystem: `source` is what mountinfo shows, `options` the comma separated data.
///
/// # Errors
/// As mount(2).
pub fn mount_fuse(source: &CStr, path: &CStr, options: &CStr) -> Result<()> {
    // SAFETY: all four strings live.
    check(unsafe { libc::mount(source.as_ptr(), path.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()) })
        .map(drop)
}

/// umount2(2) with its raw flags (MNT_DETACH, UMOUNT_NOFOLLOW).
///
/// # Errors
/// EBUSY while something below is in use; else as umount2(2).
pub fn unmount(path: &CStr, flags: i32) -> Result<()> {
    // SAFETY: `path` lives.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}
