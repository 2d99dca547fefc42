//! Mappings. Writing through a shared one is the only change of a file that is no system call.
#![allow(unsafe_code, reason = "mmap cannot be had without; product code maps only in `sys`")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use dtfs::sys::{self, Errno};

/// Maps the first `len` bytes of `file` (which has as many), writes `data` at `at`, and syncs when asked.
pub(crate) fn write(file: BorrowedFd<'_>, at: u64, data: &[u8], len: u64, sync: bool) -> sys::Result<()> {
    assert!(at + data.len() as u64 <= len, "the data fits the mapping");
    let (len, at) = (len as usize, at as usize);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice; nothing is pointed to by us.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if map == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: `at + data.len()` lies in the mapping, and nobody truncates the file meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), map.cast::<u8>().add(at), data.len()) };
    // SAFETY: the mapping is whole and live.
    let synced = if sync { Errno::result(unsafe { libc::msync(map, len, libc::MS_SYNC) }).map(drop) } else { Ok(()) };
    // SAFETY: ours, and no reference into it is left.
    Errno::result(unsafe { libc::munmap(map, len) })?;
    synced
}

/// A shared, writable mapping that lives until it is dropped, also after its file is closed.
pub(crate) struct Shared {
    at: *mut libc::c_void,
    len: usize,
}

impl Shared {
    pub(crate) fn new(file: &File, len: usize) -> Shared {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing is pointed to by us.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "mmap: {}", Errno::last());
        Shared { at, len }
    }

    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.len, "the data fits the mapping");
        // SAFETY: within the mapping, which lives as long as `self`; nobody truncates the file meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at.cast::<u8>().add(at), data.len()) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: ours, and no reference into it is left.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// What a shared mapping of the first `size` bytes of `file` shows at `at`.
pub(crate) fn read(file: BorrowedFd<'_>, at: u64, len: u64, size: u64) -> sys::Result<Vec<u8>> {
    assert!(at + len <= size, "the range fits the mapping");
    let (size, at, len) = (size as usize, at as usize, len as usize);
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if map == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the range lies in the mapping, and nobody truncates the file meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(map.cast::<u8>().add(at), len) }.to_vec();
    // SAFETY: ours, and no reference into it is left.
    Errno::result(unsafe { libc::munmap(map, size) })?;
    Ok(bytes)
}

/// A mapping that stays until it is dropped.
pub(crate) struct Held {
    map: *mut u8,
    len: usize,
}

impl Held {
    /// The first `len` bytes of `file`, to be read and written.
    pub(crate) fn new(file: BorrowedFd<'_>, len: usize, shared: bool) -> Held {
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, kind, file.as_raw_fd(), 0) };
        assert_ne!(map, libc::MAP_FAILED, "mmap: {}", Errno::last());
        Held { map: map.cast(), len }
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: in the mapping, which the file covers; volatile, because others change the file.
        unsafe { self.map.add(at).read_volatile() }
    }

    pub(crate) fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: as above; the mapping may be written to.
        unsafe { self.map.add(at).write_volatile(byte) };
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: ours, and no reference into it is left.
        unsafe { libc::munmap(self.map.cast(), self.len) };
    }
}
