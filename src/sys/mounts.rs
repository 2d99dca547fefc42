//! Mounting and unmounting.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Mount, Result, check, own_fd};

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

/// Makes the detached `mount` read-only, without set-user-ID programs and devices, and one of which no change reaches another
/// mount, nor the reverse.
///
/// # Errors
/// As mount_setattr(2).
pub fn restrict_mount(mount: BorrowedFd<'_>) -> Result<()> {
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    let attr = MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let (fd, flags) = (mount.as_raw_fd(), libc::AT_EMPTY_PATH as libc::c_uint);
    // SAFETY: the empty path is a live C string, and `attr` lives and has the size that is said.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &attr, size_of::<MountAttr>()) };
    check(done as libc::c_int).map(drop)
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

/// Mounts the detached `mount` over the directory `onto`, above all that is mounted there.
///
/// # Errors
/// As move_mount(2).
pub fn attach_mount(mount: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> Result<()> {
    const FROM_EMPTY_PATH: libc::c_uint = 0x04;
    const TO_EMPTY_PATH: libc::c_uint = 0x40;
    let (from, to, flags) = (mount.as_raw_fd(), onto.as_raw_fd(), FROM_EMPTY_PATH | TO_EMPTY_PATH);
    // SAFETY: the empty paths are live C strings.
    let done = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    check(done as libc::c_int).map(drop)
}

/// A detached mount of an empty directory that root alone may look into and nobody can write to. The table of mounts shows it
/// as `source`.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2).
pub fn empty_mount(source: &CStr) -> Result<OwnedFd> {
    const SET_STRING: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    // SAFETY: the name is a live C string.
    let context = own_fd(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOSE_ON_EXEC) } as libc::c_int)?;
    let fd = context.as_raw_fd();
    let none = std::ptr::null::<libc::c_char>();
    for (key, value) in [(c"source", source), (c"mode", c"0700"), (c"size", c"4k"), (c"nr_inodes", c"1")] {
        // SAFETY: key and value are live C strings.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, SET_STRING, key.as_ptr(), value.as_ptr(), 0) };
        check(done as libc::c_int)?;
    }
    // SAFETY: this command takes neither key nor value (fsconfig(2)).
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, CREATE, none, none, 0) } as libc::c_int)?;
    let attributes = (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC) as libc::c_uint;
    // SAFETY: no pointers.
    own_fd(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOSE_ON_EXEC, attributes) } as libc::c_int)
}

/// The number in the table of mounts of the mount that `fd` was opened on.
///
/// # Errors
/// As statx(2); ENOSYS from a kernel that does not tell it.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: all bytes zero is a valid value of this plain structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the empty path is a live C string, and `stat` lives.
    check(unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_MNT_ID, &mut stat) })?;
    if stat.stx_mask & libc::STATX_MNT_ID == 0 { Err(Errno::ENOSYS) } else { Ok(stat.stx_mnt_id) }
}

/// Takes the mount whose root `root` is out of sight; it ends with its last user.
///
/// # Errors
/// EINVAL when `root` is no root of a mount; else as umount2(2).
pub fn detach_mount(root: BorrowedFd<'_>) -> Result<()> {
    unmount(&super::proc_path(root), libc::MNT_DETACH)
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

/// As [`clone_mount`] for the directory `path`, below the mounts over it that are dead (FUSE mounts that nobody serves any more:
/// every call answers ENOTCONN) or that `is_cover` names in the table of all mounts. The caller's table of mounts stays as
/// it is, so that nobody else sees below them: the work is done in a table of its own, on a thread that ends with it.
///
/// # Errors
/// As unshare(2), mount(2), umount2(2), open(2) and open_tree(2).
pub fn clone_mount_below(path: &CStr, is_cover: impl Fn(&[Mount]) -> bool + Sync) -> Result<OwnedFd> {
    let below = || {
        own_mount_table()?;
        loop {
            match super::openat(nix::fcntl::AT_FDCWD, path, libc::O_RDONLY | libc::O_DIRECTORY, 0) {
                Ok(dir) if !is_cover(&super::mounts()?) => return clone_mount(dir.as_fd()),
                Ok(_) | Err(Errno::ENOTCONN) => unmount(path, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW)?,
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
