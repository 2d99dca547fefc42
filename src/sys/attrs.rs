//! Attributes of inodes: stat, mode, owner, times, flags and xattrs, always by descriptor (O_PATH is enough).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, Result, check, check_size, proc_path};
use crate::base::Timespec;

/// What stat(2) says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Device the inode lives on.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Preferred transfer size.
    pub block_size: u32,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of the data.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
}

impl From<libc::stat64> for Stat {
    fn from(raw: libc::stat64) -> Stat {
        let time = |sec, nsec: i64| Timespec { sec, nsec: nsec as u32 };
        Stat {
            dev: raw.st_dev,
            ino: raw.st_ino,
            mode: raw.st_mode,
            nlink: raw.st_nlink,
            uid: raw.st_uid,
            gid: raw.st_gid,
            rdev: raw.st_rdev,
            size: raw.st_size as u64,
            block_size: raw.st_blksize as u32,
            blocks: raw.st_blocks as u64,
            atime: time(raw.st_atime, raw.st_atime_nsec),
            mtime: time(raw.st_mtime, raw.st_mtime_nsec),
            ctime: time(raw.st_ctime, raw.st_ctime_nsec),
        }
    }
}

/// fstat(2).
///
/// # Errors
/// As fstat(2).
pub fn fstat(fd: BorrowedFd<'_>) -> Result<Stat> {
    fstatat(fd, c"")
}

/// The stat of `name` in `dir`, symlinks not followed; of `dir` itself when `name` is empty.
///
/// # Errors
/// As fstatat(2).
pub fn fstatat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    // SAFETY: plain old data, filled by the kernel below.
    let mut raw: libc::stat64 = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: name and struct live.
    check(unsafe { libc::fstatat64(dir.as_raw_fd(), name.as_ptr(), &raw mut raw, flags) })?;
    Ok(raw.into())
}

/// Sets the permission bits of the inode behind `fd`.
///
/// # Errors
/// As chmod(2); EOPNOTSUPP for a symlink.
pub fn fchmod(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    by_fd_or_path(
        // SAFETY: no pointers.
        || check(unsafe { libc::fchmod(fd.as_raw_fd(), mode & 0o7777) }),
        || chmod_by_path(fd, mode & 0o7777),
    )
    .map(drop)
}

/// fchmodat2(2) where the kernel has it (Linux 6.6), else by /proc.
fn chmod_by_path(fd: BorrowedFd<'_>, mode: u32) -> Result<libc::c_int> {
    let (raw, flags) = (fd.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the empty path is a live C string.
    match check(unsafe { libc::syscall(libc::SYS_fchmodat2, raw, c"".as_ptr(), mode, flags) } as libc::c_int) {
        Err(Errno::ENOSYS) => {
            let path = proc_path(fd);
            // SAFETY: `path` lives.
            check(unsafe { libc::chmod(path.as_ptr(), mode) })
        }
        other => other,
    }
}

/// Sets owner and group; `None` leaves one alone.
///
/// # Errors
/// As fchownat(2).
pub fn fchown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    const KEEP: u32 = u32::MAX;
    // SAFETY: the empty path is a live C string.
    check(unsafe {
        libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid.unwrap_or(KEEP), gid.unwrap_or(KEEP), libc::AT_EMPTY_PATH)
    })
    .map(drop)
}

/// What to do with one time stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeChange {
    /// Leave it alone.
    Keep,
    /// The kernel's current time.
    Now,
    /// This time.
    Set(Timespec),
}

/// Sets access and modification time by descriptor (utimensat(2) with AT_EMPTY_PATH, Linux 5.8).
///
/// # Errors
/// As utimensat(2).
pub fn utimens(fd: BorrowedFd<'_>, atime: TimeChange, mtime: TimeChange) -> Result<()> {
    let spec = |change: TimeChange| match change {
        TimeChange::Keep => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        TimeChange::Now => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        TimeChange::Set(time) => libc::timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) },
    };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: two timespecs and an empty C string, all live.
    check(unsafe { libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) }).map(drop)
}

/// The call on the descriptor itself, or for one that is O_PATH (EBADF, open(2)) on its name in /proc, which costs three
/// look-ups more.
fn by_fd_or_path<T>(by_fd: impl FnOnce() -> Result<T>, by_path: impl FnOnce() -> Result<T>) -> Result<T> {
    match by_fd() {
        Err(Errno::EBADF) => by_path(),
        other => other,
    }
}

/// Reads one xattr of the inode behind `fd`, which may be a symlink or an O_PATH descriptor.
///
/// # Errors
/// ENODATA when it is not set; else as getxattr(2).
pub fn getxattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    by_fd_or_path(
        || {
            grow(|buffer| {
                let (to, len) = (buffer.as_mut_ptr().cast(), buffer.len());
                // SAFETY: the kernel writes at most buffer.len() bytes.
                check_size(unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), to, len) })
            })
        },
        || {
            let path = proc_path(fd);
            grow(|buffer| {
                let (to, len) = (buffer.as_mut_ptr().cast(), buffer.len());
                // SAFETY: as above.
                check_size(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), to, len) })
            })
        },
    )
}

/// The names of all xattrs, each without its NUL.
///
/// # Errors
/// As listxattr(2).
pub fn listxattr(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let list = by_fd_or_path(
        || {
            grow(|buffer| {
                // SAFETY: the kernel writes at most buffer.len() bytes.
                check_size(unsafe { libc::flistxattr(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
            })
        },
        || {
            let path = proc_path(fd);
            grow(|buffer| {
                // SAFETY: as above.
                check_size(unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) })
            })
        },
    )?;
    Ok(list.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Runs `call` with a buffer that is large enough, at first 256 bytes and at most what the kernel allows.
fn grow(mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::ERANGE) if buffer.len() < 1 << 20 => {
                let longer = buffer.len() * 16;
                buffer.resize(longer, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Sets one xattr; `flags` is 0, XATTR_CREATE or XATTR_REPLACE.
///
/// # Errors
/// As setxattr(2).
pub fn setxattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
    let (bytes, len) = (value.as_ptr().cast(), value.len());
    by_fd_or_path(
        // SAFETY: name and value live; the kernel only reads them.
        || check(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), bytes, len, flags) }),
        || {
            let path = proc_path(fd);
            // SAFETY: as above, and the path lives.
            check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), bytes, len, flags) })
        },
    )
    .map(drop)
}

/// Removes one xattr.
///
/// # Errors
/// ENODATA when it is not set; else as removexattr(2).
pub fn removexattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    by_fd_or_path(
        // SAFETY: the name lives.
        || check(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }),
        || {
            let path = proc_path(fd);
            // SAFETY: path and name live.
            check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
        },
    )
    .map(drop)
}
