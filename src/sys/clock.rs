//! Clocks that std does not offer.

use super::{Result, check};

/// Nanoseconds since the system started, sleep included (CLOCK_BOOTTIME). Nobody can set it: against it a step of the
/// wall clock is seen.
///
/// # Errors
/// As clock_gettime(2).
pub fn boottime_nanos() -> Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct lives.
    check(unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) })?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
