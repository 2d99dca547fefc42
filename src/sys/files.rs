//! Opening files and moving their bytes.

use std::ffi::CStr;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Result, check, check_size, own_fd, proc_path, retry};

/// openat(2) with O_CLOEXEC | O_NOFOLLOW added. `mode` counts with O_CREAT only.
///
/// # Errors
/// As openat(2).
pub fn openat(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `name` is a live C string; mode is passed as the variadic argument that O_CREAT needs.
    retry(|| own_fd(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) }))
}

/// Opens `name` in `dir` so that nothing outside `dir`'s filesystem and below can be reached: no symlink, no magic
/// link, no mount point on the way (openat2(2) with BENEATH, NO_SYMLINKS, NO_MAGICLINKS and NO_XDEV).
///
/// # Errors
/// ELOOP or EXDEV when the name would lead away; else as open(2). EAGAIN is retried a bounded number of times.
pub fn openat2_beneath(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    // SAFETY: open_how is plain old data; all zero is its documented default.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
    how.mode = u64::from(if flags & libc::O_CREAT != 0 { mode } else { 0 });
    how.resolve =
        libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
    let mut tries = 0;
    loop {
        // SAFETY: `how` and `name` live; the size is that of the struct passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match own_fd(result as libc::c_int) {
            // A rename elsewhere raced with the look-up (openat2(2), EAGAIN).
            Err(Errno::EAGAIN | Errno::EINTR) if tries < 64 => tries += 1,
            other => return other,
        }
    }
}

/// Opens the inode behind `fd` again with other flags (an O_PATH descriptor becomes one that reads or writes).
///
/// # Errors
/// As open(2); ELOOP for a symlink.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let path = proc_path(fd);
    // SAFETY: `path` is a live C string.
    retry(|| own_fd(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) }))
}

/// pread(2).
///
/// # Errors
/// As pread(2).
pub fn pread(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    retry(|| {
        // SAFETY: the buffer is exclusively ours for its whole length.
        check_size(unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset as i64) })
    })
}

/// Reads until `buffer` is full.
///
/// # Errors
/// As pread(2), and ENODATA when the file ends before.
pub fn read_exact_at(fd: BorrowedFd<'_>, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
    while !buffer.is_empty() {
        match pread(fd, buffer, offset)? {
            0 => return Err(Errno::ENODATA),
            n => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

/// pwrite(2); may write less than asked.
///
/// # Errors
/// As pwrite(2).
pub fn pwrite(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    // SAFETY: the kernel only reads the live slice.
    retry(|| check_size(unsafe { libc::pwrite(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset as i64) }))
}

/// Writes all of `parts`, one after the other, at `offset`.
///
/// # Errors
/// As pwritev(2). What was written before the error is not known to the caller.
pub fn pwritev_all(fd: BorrowedFd<'_>, parts: &[&[u8]], mut offset: u64) -> Result<()> {
    const IOV_MAX: usize = 1024;
    for group in parts.chunks(IOV_MAX) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let written = retry(|| {
                // SAFETY: IoSlice is ABI compatible with iovec (its documented guarantee); the slices live.
                check_size(unsafe {
                    libc::pwritev(fd.as_raw_fd(), slices.as_ptr().cast(), slices.len() as i32, offset as i64)
                })
            })?;
            if written == 0 {
                return Err(Errno::EIO);
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut slices, written);
        }
    }
    Ok(())
}

/// ftruncate(2).
///
/// # Errors
/// As ftruncate(2).
pub fn ftruncate(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    // SAFETY: no pointers.
    retry(|| check(unsafe { libc::ftruncate(fd.as_raw_fd(), size as i64) })).map(drop)
}

/// fallocate(2) with the raw mode bits.
///
/// # Errors
/// As fallocate(2).
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Result<()> {
    // SAFETY: no pointers.
    retry(|| check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset as i64, len as i64) })).map(drop)
}

/// lseek(2), for SEEK_DATA and SEEK_HOLE.
///
/// # Errors
/// ENXIO beyond the end or when no data follows; else as lseek(2).
pub fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> Result<u64> {
    // SAFETY: no pointers.
    match unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) } {
        -1 => Err(Errno::last()),
        // btrfs rounds the end of the longest file there can be up to 2^63.
        place => Ok(place as u64),
    }
}

/// copy_file_range(2) between two offsets; may copy less than asked.
///
/// # Errors
/// As copy_file_range(2).
pub fn copy_file_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> Result<usize> {
    let (mut from_offset, mut to_offset) = (from_offset as i64, to_offset as i64);
    // SAFETY: both offsets are live locals.
    check_size(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut from_offset, to.as_raw_fd(), &raw mut to_offset, len, 0)
    })
}

/// fsync(2). Not repeated after EINTR or any error: a second call may report success for data that never reached the
/// disk.
///
/// # Errors
/// As fsync(2).
pub fn fsync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop)
}

/// fdatasync(2); not repeated, as [`fsync`].
///
/// # Errors
/// As fdatasync(2).
pub fn fdatasync(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// sync_file_range(2) with SYNC_FILE_RANGE_WRITE: begins to write what is dirty from `offset` on, and waits for nothing but a
/// place in the device's queue. It makes nothing durable, and reports no error: [`fdatasync`] does both.
pub fn start_writeback(fd: BorrowedFd<'_>, offset: u64) {
    // SAFETY: no pointers. A length of 0 means up to the end of the file.
    let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset as libc::off64_t, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// syncfs(2): everything dirty on the filesystem of `fd`. Write errors are reported once per descriptor.
///
/// # Errors
/// As syncfs(2).
pub fn syncfs(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syncfs(fd.as_raw_fd()) }).map(drop)
}

/// What statfs(2) says about a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct FileSystemStat {
    /// Magic number (statfs(2) lists them).
    pub magic: i64,
    /// Block size for transfers.
    pub block_size: u32,
    /// Unit of the block counts.
    pub fragment_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for ordinary users.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name.
    pub name_max: u32,
    /// Flags of the mount, ST_* (statvfs(3)).
    pub mount_flags: u64,
}

/// fstatfs(2).
///
/// # Errors
/// As fstatfs(2).
pub fn fstatfs(fd: BorrowedFd<'_>) -> Result<FileSystemStat> {
    // SAFETY: statfs is plain old data, filled by the kernel below.
    let mut raw: libc::statfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives and has the size the call expects.
    retry(|| check(unsafe { libc::fstatfs64(fd.as_raw_fd(), &raw mut raw) }))?;
    Ok(FileSystemStat {
        magic: raw.f_type,
        block_size: raw.f_bsize as u32,
        fragment_size: if raw.f_frsize == 0 { raw.f_bsize as u32 } else { raw.f_frsize as u32 },
        blocks: raw.f_blocks,
        blocks_free: raw.f_bfree,
        blocks_available: raw.f_bavail,
        files: raw.f_files,
        files_free: raw.f_ffree,
        name_max: raw.f_namelen as u32,
        mount_flags: raw.f_flags as u64,
    })
}

/// flock(2) with LOCK_EX | LOCK_NB: the lock ends with the open file description.
///
/// # Errors
/// EWOULDBLOCK while another holds it.
pub fn flock_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// As [`flock_exclusive`], but waits for whoever holds it.
///
/// # Errors
/// As flock(2); EINTR is tried again.
pub fn flock_wait(fd: BorrowedFd<'_>) -> Result<()> {
    loop {
        // SAFETY: no pointers.
        match check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX) }) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// flock(2) with LOCK_UN.
///
/// # Errors
/// As flock(2).
pub fn flock_release(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}
