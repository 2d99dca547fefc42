//! A file as memory that outlives the process: what is stored is in the kernel's page cache at once.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use super::{Errno, Result};

/// A file that is mapped whole, shared (mmap(2), MAP_SHARED). Its space must be allocated: a page that the filesystem
/// cannot provide would end the process (SIGBUS).
///
/// Words are atomic. Of bytes the owner sees to it that a range is not written while someone reads it: the mapping is a
/// means of keeping bytes, not of passing them between threads.
pub struct SharedMap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value and is not tied to a thread; who may touch which range is said above.
unsafe impl Send for SharedMap {}
// SAFETY: as for Send; words are atomic.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(file: BorrowedFd<'_>, len: usize) -> Result<SharedMap> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(base.cast()).map(|base| SharedMap { base, len }).ok_or(Errno::EINVAL)
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// The word at byte `at`, a multiple of 8.
    ///
    /// # Panics
    /// Outside of the mapping, or unaligned.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < self.len && self.len - at >= 8, "word {at} of {}", self.len);
        // SAFETY: inside the mapping, which lives as long as `self`; aligned, because the mapping begins at a page; any
        // bits are a valid u64.
        unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU64>() }
    }

    /// The half word at byte `at`, a multiple of 4: what futex(2) waits on.
    ///
    /// # Panics
    /// Outside of the mapping, or unaligned.
    pub fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len && self.len - at >= 4, "half word {at} of {}", self.len);
        // SAFETY: as for `word`, with 4 bytes.
        unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU32>() }
    }

    /// Waits while the half word at `at` is `seen`, at most `timeout`; may return early. Whoever changes it, in this process
    /// or another one that has mapped the file, calls [`SharedMap::wake`] afterwards.
    ///
    /// # Panics
    /// As [`SharedMap::half`].
    pub fn wait(&self, at: usize, seen: u32, timeout: Duration) {
        let word = self.half(at).as_ptr();
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: `word` lies in the mapping and `timeout` on the stack, both for longer than the call. Not FUTEX_PRIVATE_FLAG:
        // the other end is another process. Every error means to look again.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, seen, &raw const timeout) };
    }

    /// Wakes all who wait for a change of the half word at `at`.
    ///
    /// # Panics
    /// As [`SharedMap::half`].
    pub fn wake(&self, at: usize) {
        // SAFETY: as for `wait`; nothing is written.
        unsafe { libc::syscall(libc::SYS_futex, self.half(at).as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    /// The bytes from `at` on. Nobody may write them meanwhile.
    ///
    /// # Panics
    /// Outside of the mapping.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        self.check(at, len);
        // SAFETY: inside the mapping, which lives as long as `self`; that it is not written is the owner's promise.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(at), len) }
    }

    /// Stores `bytes` at `at`. Nobody else may read or write them meanwhile.
    ///
    /// # Panics
    /// Outside of the mapping.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: inside the mapping, and `bytes` cannot lie in it while this range is the caller's alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) }
    }

    fn check(&self, at: usize, len: usize) {
        assert!(at <= self.len && self.len - at >= len, "{len} bytes at {at} of {}", self.len);
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing borrowed from it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let map = SharedMap::new(file.as_fd(), 8192).unwrap();
        map.store(5000, b"some bytes");
        map.word(16).store(0x0102, Ordering::Release);
        drop(map);
        let mut bytes = vec![0; 8192];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!((&bytes[5000..5010], &bytes[16..18]), (&b"some bytes"[..], &[2, 1][..]));
    }

    /// The writer goes by the file, as another process does that writes its record in one piece.
    #[test]
    fn whoever_waits_for_a_word_is_woken_by_another_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64).unwrap();
        let map = SharedMap::new(file.as_fd(), 64).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let began = std::time::Instant::now();
                while map.half(60).load(Ordering::Acquire) == 0 {
                    map.wait(60, 0, Duration::from_secs(600));
                }
                began.elapsed()
            });
            let other = SharedMap::new(file.as_fd(), 64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &7u32.to_le_bytes(), 60).unwrap();
            other.wake(60);
            assert!(waiting.join().unwrap() < Duration::from_secs(300), "only the timeout woke it");
        });
        map.wait(60, 0, Duration::from_secs(600));
    }

    #[test]
    #[should_panic(expected = "bytes at")]
    fn nothing_outside_is_touched() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        SharedMap::new(file.as_fd(), 4096).unwrap().store(4090, b"too long");
    }
}
