//! File handles: names of inodes that outlive every path (open_by_handle_at(2)).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Errno, Result, check, own_fd, retry};

/// Longest handle the kernel makes (MAX_HANDLE_SZ).
pub const HANDLE_MAX: usize = 128;

/// A file handle as the filesystem encoded it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawHandle {
    /// The filesystem's own type number.
    pub handle_type: i32,
    len: usize,
    bytes: [u8; HANDLE_MAX],
}

impl RawHandle {
    /// A handle of `bytes`, at most [`HANDLE_MAX`].
    ///
    /// # Errors
    /// EINVAL when there are more bytes than a handle can have.
    pub fn new(handle_type: i32, bytes: &[u8]) -> Result<RawHandle> {
        let mut handle = RawHandle { handle_type, len: bytes.len(), bytes: [0; HANDLE_MAX] };
        handle.bytes.get_mut(..bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
        Ok(handle)
    }

    /// A handle of so few bytes that they fit.
    pub fn of<const LEN: usize>(handle_type: i32, short: [u8; LEN]) -> RawHandle {
        const { assert!(LEN <= HANDLE_MAX) };
        let mut bytes = [0; HANDLE_MAX];
        bytes[..LEN].copy_from_slice(&short);
        RawHandle { handle_type, len: LEN, bytes }
    }

    /// The filesystem's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// `struct file_handle` with room for the longest handle.
#[repr(C, align(4))]
struct KernelHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; HANDLE_MAX],
}

/// The handle of `name` in `dir`, or of `dir` itself when `name` is empty. Symlinks are not followed.
///
/// # Errors
/// EOPNOTSUPP where the filesystem has no handles; else as name_to_handle_at(2).
pub fn name_to_handle_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<RawHandle> {
    let mut kernel = KernelHandle { handle_bytes: HANDLE_MAX as u32, handle_type: 0, f_handle: [0; HANDLE_MAX] };
    let mut mount_id = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `kernel` has the layout of struct file_handle with handle_bytes bytes behind it; all pointers live.
    check(unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut kernel).cast::<libc::file_handle>(),
            &raw mut mount_id,
            flags,
        )
    })?;
    RawHandle::new(kernel.handle_type, &kernel.f_handle[..(kernel.handle_bytes as usize).min(HANDLE_MAX)])
}

/// Opens the inode that `handle` names on the filesystem of `mount`, whatever its path. Needs CAP_DAC_READ_SEARCH.
///
/// # Errors
/// ESTALE when the inode is gone or its number was given to another; else as open(2).
pub fn open_by_handle_at(mount: BorrowedFd<'_>, handle: &RawHandle, flags: i32) -> Result<OwnedFd> {
    let mut kernel =
        KernelHandle { handle_bytes: handle.len as u32, handle_type: handle.handle_type, f_handle: handle.bytes };
    retry(|| {
        // SAFETY: as above; the kernel only reads the handle.
        own_fd(unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut kernel).cast::<libc::file_handle>(),
                flags | libc::O_CLOEXEC,
            )
        })
    })
}
