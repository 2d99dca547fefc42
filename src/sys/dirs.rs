//! Directories: their entries and the calls that change them, each by (directory descriptor, one name).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Result, check, check_size, proc_path};

/// mkdirat(2).
///
/// # Errors
/// As mkdirat(2).
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` lives.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2): `mode` carries the file type.
///
/// # Errors
/// As mknodat(2).
pub fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, rdev: u64) -> Result<()> {
    // SAFETY: `name` lives.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

/// symlinkat(2).
///
/// # Errors
/// As symlinkat(2).
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: both strings live.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// The text of the symlink `name` in `dir`, or of the symlink behind `dir` itself when `name` is empty.
///
/// # Errors
/// As readlinkat(2).
pub fn readlinkat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let mut buffer = vec![0; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most buffer.len() bytes.
    let len = check_size(unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    })?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Removes `name` from `dir`; `flags` is 0 or AT_REMOVEDIR.
///
/// # Errors
/// As unlinkat(2).
pub fn unlinkat(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<()> {
    // SAFETY: `name` lives.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// renameat2(2) with its raw flags.
///
/// # Errors
/// As renameat2(2).
pub fn renameat2(
    old_dir: BorrowedFd<'_>,
    old_name: &CStr,
    new_dir: BorrowedFd<'_>,
    new_name: &CStr,
    flags: u32,
) -> Result<()> {
    // SAFETY: both names live.
    check(unsafe {
        libc::renameat2(old_dir.as_raw_fd(), old_name.as_ptr(), new_dir.as_raw_fd(), new_name.as_ptr(), flags)
    })
    .map(drop)
}

/// What a new hard link leads to.
#[derive(Clone, Copy)]
pub enum LinkSource<'a> {
    /// The inode behind a descriptor (O_PATH is enough).
    Fd(BorrowedFd<'a>),
    /// An entry of a directory, not followed when it is a symlink.
    Entry(BorrowedFd<'a>, &'a CStr),
}

/// Makes `name` in `dir` another name of `source`.
///
/// # Errors
/// As linkat(2).
pub fn linkat(source: LinkSource<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let proc;
    let (old_dir, old_name, flags) = match source {
        // Through /proc with AT_SYMLINK_FOLLOW: works without CAP_DAC_READ_SEARCH and for symlinks (open(2), O_TMPFILE).
        LinkSource::Fd(fd) => {
            proc = proc_path(fd);
            (libc::AT_FDCWD, proc.as_c_str(), libc::AT_SYMLINK_FOLLOW)
        }
        LinkSource::Entry(fd, entry) => (fd.as_raw_fd(), entry, 0),
    };
    // SAFETY: both names live.
    check(unsafe { libc::linkat(old_dir, old_name.as_ptr(), dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// One entry as getdents64(2) gives it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the next entry starts: valid for [`DirStream::seek`].
    pub next_offset: i64,
    /// DT_* type, DT_UNKNOWN where the filesystem does not say.
    pub d_type: u8,
    /// The name without its NUL; `.` and `..` are included.
    pub name: Vec<u8>,
}

/// Reads a directory entry by entry. Owns its own open file description, so its position is its own.
pub struct DirStream {
    fd: OwnedFd,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl DirStream {
    const BUFFER_BYTES: usize = 32 * 1024;

    /// Reads `fd`, a directory opened for reading, from its present position.
    pub fn new(fd: OwnedFd) -> DirStream {
        DirStream { fd, buffer: Vec::new(), at: 0, end: 0 }
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.fd)
    }

    /// Goes to an offset that an entry carried, or to 0 for the start.
    ///
    /// # Errors
    /// As lseek(2).
    pub fn seek(&mut self, offset: i64) -> Result<()> {
        self.at = 0;
        self.end = 0;
        // SAFETY: no pointers.
        match unsafe { libc::lseek(self.fd.as_raw_fd(), offset, libc::SEEK_SET) } {
            -1 => Err(Errno::last()),
            _ => Ok(()),
        }
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// As getdents64(2).
    pub fn next_entry(&mut self) -> Result<Option<DirEntry>> {
        if self.at == self.end && !self.fill()? {
            return Ok(None);
        }
        // struct linux_dirent64: u64 d_ino, i64 d_off, u16 d_reclen, u8 d_type, name, NUL.
        let record = &self.buffer[self.at..self.end];
        let word = |at: usize| record.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        let (Some(ino), Some(offset), Some(header)) = (word(0), word(8), record.get(16..19)) else {
            return Err(Errno::EIO);
        };
        let reclen = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let name = record.get(19..reclen).ok_or(Errno::EIO)?;
        let name = name.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let entry = DirEntry { ino, next_offset: offset as i64, d_type: header[2], name };
        self.at += reclen;
        Ok(Some(entry))
    }

    fn fill(&mut self) -> Result<bool> {
        self.buffer.resize(Self::BUFFER_BYTES, 0);
        // SAFETY: the kernel writes at most buffer.len() bytes.
        let result = unsafe {
            libc::syscall(libc::SYS_getdents64, self.fd.as_raw_fd(), self.buffer.as_mut_ptr(), self.buffer.len())
        };
        self.at = 0;
        self.end = check_size(result as libc::ssize_t)?;
        Ok(self.end > 0)
    }
}

/// The path by which the kernel knows the open `fd` (proc(5)). A hint only, as [`last_component`].
pub fn path_of(fd: BorrowedFd<'_>) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let path = readlinkat(fd_cwd(), &proc_path(fd)).ok()?;
    Some(std::ffi::OsString::from_vec(path).into())
}

/// The name by which the kernel knows the open directory `fd`: the last component of its path (proc(5)). A hint only:
/// it may have been renamed since, or be cut off from its path.
pub fn last_component(fd: BorrowedFd<'_>) -> Option<crate::base::Name> {
    let path = readlinkat(fd_cwd(), &proc_path(fd)).ok()?;
    let last = path.rsplit(|byte| *byte == b'/').next()?;
    crate::base::Name::new(last).ok()
}

fn fd_cwd() -> BorrowedFd<'static> {
    nix::fcntl::AT_FDCWD
}
