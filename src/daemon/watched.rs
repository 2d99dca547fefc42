//! Until when everything went through the mount: what a scan at the next mount starts from.

use crate::base::Timespec;
use crate::journal::{JournalError, Store};
use crate::sys::{self, Errno};

/// Key in the journal's `meta`.
const KEY: &str = "watched";
/// A step of the wall clock below this much is covered by looking at everything that changed this much earlier.
const SLACK_SECONDS: i64 = 2;
/// Largest step that counts as none: below the slack.
const MOST_STEP_NANOS: u128 = 1_000_000_000;

/// A moment, by the clock that stamps inodes and by one that nobody can set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    wall: Timespec,
    boottime_ns: u64,
    boot: [u8; 16],
}

/// Where the changes are that nobody watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unwatched {
    /// Every one of them has a ctime from here on.
    Since(Timespec),
    /// No ctime tells; why.
    Anywhere(&'static str),
}

impl Moment {
    /// Now.
    ///
    /// # Errors
    /// When the kernel does not say which boot this is.
    pub(super) fn now() -> std::io::Result<Moment> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let boot = u128::from_str_radix(&digits, 16).map_err(|_| Errno::EINVAL)?.to_be_bytes();
        Ok(Moment { boottime_ns: sys::boottime_nanos()?, wall: Timespec::now(), boot })
    }

    /// The moment that was stored last.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(super) fn load(store: &Store) -> Result<Option<Moment>, JournalError> {
        Ok(store.meta_get(KEY)?.and_then(|bytes| Moment::decode(&bytes)))
    }

    /// From here on a scan starts at this moment.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(super) fn store(&self, store: &Store) -> Result<(), JournalError> {
        store.meta_set(KEY, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let words = [self.wall.sec as u64, u64::from(self.wall.nsec), self.boottime_ns];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(&self.boot);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Moment> {
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let wall = Timespec { sec: word(0)? as i64, nsec: word(8)? as u32 };
        Some(Moment { wall, boottime_ns: word(16)?, boot: bytes.get(24..)?.try_into().ok()? })
    }

    /// Where to look for changes between this moment and `now`. A ctime proves something only when the wall clock never
    /// went back in between: the same boot, in which it did not move against the clock since boot (both follow the same
    /// rate corrections, so only a step parts them; timekeeping.c, timekeeping_inject_offset and do_settimeofday64).
    pub(super) fn until(&self, now: &Moment) -> Unwatched {
        if self.boot != now.boot {
            return Unwatched::Anywhere("the system was started anew since the volume was unmounted");
        }
        let offset = |moment: &Moment| nanos(moment.wall) - i128::from(moment.boottime_ns);
        let step = offset(now) - offset(self);
        if now.boottime_ns < self.boottime_ns || step.unsigned_abs() > MOST_STEP_NANOS {
            return Unwatched::Anywhere("the clock was set since the volume was unmounted");
        }
        Unwatched::Since(Timespec { sec: self.wall.sec - SLACK_SECONDS, ..self.wall })
    }
}

fn nanos(time: Timespec) -> i128 {
    i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Moment = Moment { wall: Timespec { sec: 1000, nsec: 5 }, boottime_ns: 50_000_000_000, boot: [7; 16] };

    fn later(wall: i64, boot: u64) -> Moment {
        let wall = Timespec { sec: THEN.wall.sec + wall, ..THEN.wall };
        Moment { wall, boottime_ns: THEN.boottime_ns + boot * 1_000_000_000, ..THEN }
    }

    #[test]
    fn a_moment_reads_back() {
        assert_eq!(Moment::decode(&THEN.encode()), Some(THEN));
        assert_eq!(Moment::decode(&[0; 39]), None);
        assert_eq!(Moment::decode(&[0; 41]), None);
        assert!(Moment::now().is_ok());
    }

    #[test]
    fn ctimes_prove_something_only_while_the_clock_was_left_alone() {
        let since = Unwatched::Since(Timespec { sec: 998, nsec: 5 });
        assert_eq!(THEN.until(&later(100, 100)), since);
        assert_eq!(THEN.until(&later(0, 0)), since);
        assert_eq!(THEN.until(&later(99, 100)), since);
        for (wall, boot) in [(50, 100), (150, 100), (-10, 0)] {
            assert!(matches!(THEN.until(&later(wall, boot)), Unwatched::Anywhere(_)), "{wall} {boot}");
        }
        let other = Moment { boot: [8; 16], ..later(100, 100) };
        assert!(matches!(THEN.until(&other), Unwatched::Anywhere(_)));
    }
}
