//! Wall-clock time as the kernel keeps it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::faults;

const DAY_SECONDS: i64 = 86_400;

/// Seconds and nanoseconds since 1970, as in `struct timespec`: `nsec` counts forward even before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timespec {
    /// Whole seconds, negative before 1970.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Timespec {
    /// Now, by CLOCK_REALTIME. A `skip` at the fault points `clock.ahead` and `clock.behind` makes it a day later or earlier.
    pub fn now() -> Timespec {
        let now = Timespec::from(SystemTime::now());
        let days = i64::from(faults::skipped("clock.ahead")) - i64::from(faults::skipped("clock.behind"));
        Timespec { sec: now.sec + days * DAY_SECONDS, ..now }
    }

    /// Nanoseconds since 1970, saturating (an i64 ends in the year 2262).
    pub fn as_nanos(self) -> i64 {
        self.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nsec))
    }
}

impl From<SystemTime> for Timespec {
    fn from(time: SystemTime) -> Timespec {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timespec { sec: after.as_secs() as i64, nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Timespec { sec: -(before.as_secs() as i64), nsec: 0 },
                    nsec => Timespec { sec: -(before.as_secs() as i64) - 1, nsec: 1_000_000_000 - nsec },
                }
            }
        }
    }
}

impl From<Timespec> for SystemTime {
    fn from(time: Timespec) -> SystemTime {
        let nsec = std::time::Duration::from_nanos(u64::from(time.nsec));
        match time.sec >= 0 {
            true => UNIX_EPOCH + std::time::Duration::from_secs(time.sec as u64) + nsec,
            false => UNIX_EPOCH - std::time::Duration::from_secs(time.sec.unsigned_abs()) + nsec,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_before_and_after_1970() {
        for time in [(-2, 1), (-1, 999_999_999), (0, 0), (5, 7), (-3, 0), (1 << 33, 5)] {
            let time = Timespec { sec: time.0, nsec: time.1 };
            assert_eq!(Timespec::from(SystemTime::from(time)), time);
        }
    }
}
