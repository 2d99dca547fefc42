//! Holds a session to a rate, counted in bytes on the wire.

use std::time::{Duration, Instant};

/// Bytes per second that may be sent now; `None` is as fast as it goes.
pub type Rate = Box<dyn Fn() -> Option<u64> + Send>;

/// What was sent is a debt that the rate pays back; while there is one, nothing more goes.
pub(super) struct Pace {
    debt_bytes: f64,
    counted: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { debt_bytes: 0.0, counted: now }
    }

    /// How long to wait before something may be sent; `None` when it may be sent now.
    pub(super) fn wait(&mut self, rate: Option<u64>, now: Instant) -> Option<Duration> {
        let Some(rate) = rate.filter(|rate| *rate > 0) else {
            *self = Pace::new(now);
            return None;
        };
        let paid = now.saturating_duration_since(self.counted).as_secs_f64() * rate as f64;
        self.counted = now;
        self.debt_bytes = (self.debt_bytes - paid).max(0.0);
        // Less than a byte is rounding.
        (self.debt_bytes >= 1.0).then(|| Duration::from_secs_f64(self.debt_bytes / rate as f64))
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.debt_bytes += bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends frames of these sizes as soon as they may go, for a minute, and returns the bytes.
    fn minute(rate: u64, frames: impl Iterator<Item = u64>) -> u64 {
        let start = Instant::now();
        let (mut pace, mut now, mut sent) = (Pace::new(start), start, 0);
        for frame in frames {
            if let Some(wait) = pace.wait(Some(rate), now) {
                now += wait;
            }
            // A wait may end a little early or late; what counts is the average.
            now += Duration::from_millis(1);
            if now - start >= Duration::from_secs(60) {
                break;
            }
            pace.sent(frame);
            sent += frame;
        }
        sent
    }

    #[test]
    fn over_a_minute_the_rate_is_kept() {
        for rate in [128 << 10, 1 << 20, 20 << 20] {
            let sizes = [100u64, 70_000, 1 << 20, 5_000];
            let sent = minute(rate, sizes.into_iter().cycle());
            let ratio = sent as f64 / (rate * 60) as f64;
            assert!((0.9..=1.05).contains(&ratio), "{rate}: {ratio}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits_and_nothing_is_owed_later() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.sent(1 << 30);
        assert_eq!(pace.wait(None, now), None);
        assert_eq!(pace.wait(Some(1024), now), None);
    }

    #[test]
    fn silence_saves_nothing_up() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.wait(Some(1024), now + Duration::from_secs(3600)), None);
        pace.sent(1024);
        let wait = pace.wait(Some(1024), now + Duration::from_secs(3600)).unwrap();
        assert!(wait > Duration::from_millis(900), "{wait:?}");
    }
}
