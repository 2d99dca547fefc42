//! The only unsafe code: thin, checked wrappers of system calls that std and nix do not offer.
//!
//! Every function does one system call, takes borrowed descriptors and C strings, and returns the kernel's errno
//! unchanged. EINTR is retried where POSIX lets a call be repeated. No policy lives here.

#![allow(unsafe_code)]

mod attrs;
mod clock;
mod confine;
mod creds;
mod dirs;
mod fanotify;
mod fiemap;
mod files;
mod flags;
mod handle;
mod mountinfo;
mod mounts;
mod sched;
mod shared;

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use attrs::{
    Stat, TimeChange, fchmod, fchown, fstat, fstatat, getxattr, listxattr, removexattr, setxattr, utimens,
};
pub use clock::boottime_nanos;
pub use confine::{deny_calls, give_up_new_rights, keep_capabilities};
pub use creds::{
    Dropped, ThreadCreds, drop_admin_thread, drop_fsetid_thread, drop_resource_thread, peer_groups, set_io_flusher,
    set_umask,
};
pub use dirs::{
    DirEntry, DirStream, LinkSource, last_component, linkat, mkdirat, mknodat, path_of, readlinkat, renameat2,
    symlinkat, unlinkat,
};
pub use fanotify::{Written, read_written, watch_mount};
pub use fiemap::{FIEMAP_EXTENTS, MappedExtent, fiemap};
pub use files::{
    FileSystemStat, copy_file_range, fallocate, fdatasync, flock_exclusive, flock_release, flock_wait, fstatfs, fsync,
    ftruncate, lseek, openat, openat2_beneath, pread, pwrite, pwritev_all, read_exact_at, reopen, start_writeback,
    syncfs,
};
pub use flags::{
    FSXATTR_BYTES, FileFlags, FsXattr, InodeFlags, file_flags_get, file_flags_set, filesystem_uuid, fsxattr_get,
    fsxattr_set, inode_flags_at, inode_flags_get, inode_flags_of_path, set_hints, set_inode_flags, set_project_of_path,
};
pub use handle::{HANDLE_MAX, RawHandle, name_to_handle_at, open_by_handle_at};
pub use mountinfo::{Mount, mount_at, mounts};
pub use mounts::{
    attach_mount, clone_mount, clone_mount_below, detach_mount, empty_mount, is_dead, mount_fuse, mount_id,
    relax_mount, restrict_mount, unmount,
};
pub use nix::errno::Errno;
pub use sched::{Share, put_behind, set_share};
pub use shared::SharedMap;

/// A system call's outcome: its value or the kernel's errno.
pub type Result<T> = std::result::Result<T, Errno>;

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

fn own_fd(result: libc::c_int) -> Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Repeats a call that a signal cut short before it did anything.
fn retry<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The path of an open descriptor below /proc, by which calls without an `AT_EMPTY_PATH` form reach its inode. The
/// link leads to the inode itself, also when that is a symlink (proc(5)), so no name is looked up again.
fn proc_path(fd: BorrowedFd<'_>) -> std::ffi::CString {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::ffi::CString::new(path).unwrap_or_default()
}
