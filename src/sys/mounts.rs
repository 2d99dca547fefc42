//! Mounting and unmounting.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Result, check, own_fd};

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

/// Whether the filesystem at `path` is one whose server is gone: every request gets ENOTCONN. It is asked by statfs(2),
/// because the kernel may answer a stat(2) from what it remembers.
pub fn is_dead(path: &std::path::Path) -> bool {
    nix::sys::statfs::statfs(path).is_err_and(|errno| errno == Errno::ENOTCONN)
}

/// As [`clone_mount`] for the directory `path`, when FUSE mounts that nobody serves any more (every call answers ENOTCONN)
/// lie over it: the directory below them. The caller's table of mounts stays as it is, so that nobody else sees below
/// them: the work is done in a table of its own, on a thread that ends with it.
///
/// # Errors
/// As unshare(2), mount(2), umount2(2), open(2) and open_tree(2).
pub fn clone_mount_below_dead(path: &CStr) -> Result<OwnedFd> {
    let below = || {
        own_mount_table()?;
        loop {
            match super::openat(nix::fcntl::AT_FDCWD, path, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
                Ok(dir) => return clone_mount(dir.as_fd()),
                Err(Errno::ENOTCONN) => unmount(path, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW)?,
                Err(errno) => return Err(errno),
            }
        }
    };
    std::thread::scope(|scope| scope.spawn(below).join()).unwrap_or(Err(Errno::EIO))
}

/// Gives the calling thread a copy of the table of mounts, of which nothing gets out to the original.
fn own_mount_table() -> Result<()> {
    // SAFETY: no pointers. A thread may leave its process's table (unshare(2)).
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let (none, root) = (std::ptr::null(), c"/".as_ptr());
    // SAFETY: the path lives; source, type and data are not used for a change of propagation (mount(2)).
    check(unsafe { libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) }).map(drop)
}
