//! How much may be under way to a target: sent, and not taken by it yet.
//!
//! Records may fill the whole window: once received they lie in the target's inbox and are never sent again. State that is under
//! way when a session ends is sent once more, so of that there is no more than the link needs to be busy.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes that may be under way.
const MOST_BYTES: u64 = 16 << 20;
/// Bytes of which some may be state, however short the way is.
const LEAST_BYTES: u64 = 4 << 20;
/// A rate is taken over at least this time.
const RATE_OVER: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Window {
    /// Batches under way, each with its size on the wire and when it was sent.
    under_way: VecDeque<(u64, u64, Instant)>,
    bytes: u64,
    /// The shortest time from sending a batch to hearing that it was taken.
    trip: Option<Duration>,
    /// Most bytes that were taken in a second.
    rate: u64,
    /// Since when the rate is being taken, and what was taken since.
    since: Option<(Instant, u64)>,
}

impl Window {
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= MOST_BYTES
    }

    /// Whether so much is under way that the target has enough to do until state that is sent now arrives.
    pub(super) fn is_full_for_state(&self) -> bool {
        self.bytes >= self.most_state()
    }

    /// Twice what the link holds.
    fn most_state(&self) -> u64 {
        let held = self.trip.map_or(0.0, |trip| trip.as_secs_f64() * self.rate as f64);
        ((2.0 * held) as u64).clamp(LEAST_BYTES, MOST_BYTES)
    }

    pub(super) fn sent(&mut self, batch: u64, bytes: u64, at: Instant) {
        self.under_way.push_back((batch, bytes, at));
        self.bytes += bytes;
    }

    /// The target has taken everything up to this batch.
    pub(super) fn taken(&mut self, upto: u64, now: Instant) {
        let (since, mut taken) = self.since.unwrap_or((now, 0));
        while let Some((_, bytes, sent)) = self.under_way.front().copied().filter(|(batch, ..)| *batch <= upto) {
            self.under_way.pop_front();
            self.bytes -= bytes;
            taken += bytes;
            let trip = now.saturating_duration_since(sent);
            self.trip = Some(self.trip.map_or(trip, |least| least.min(trip)));
        }
        let elapsed = now.saturating_duration_since(since);
        self.since = Some((since, taken));
        if elapsed >= RATE_OVER {
            self.rate = self.rate.max((taken as f64 / elapsed.as_secs_f64()) as u64);
            self.since = Some((now, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u64 = 1 << 20;

    /// Sends as much state as the window lets, takes a batch each `pace`, each after `trip`; returns the most under way.
    fn most_under_way(trip: Duration, pace: Duration) -> u64 {
        let (mut window, mut now) = (Window::default(), Instant::now());
        let (mut sent, mut taken, mut most) = (0, 0, 0);
        let mut arrives = VecDeque::new();
        for _ in 0..2000 {
            while !window.is_full_for_state() {
                sent += 1;
                window.sent(sent, BATCH, now);
                let free = arrives.back().map_or(now, |last| *last + pace);
                arrives.push_back(free.max(now + trip));
            }
            most = most.max(window.bytes);
            now = arrives.pop_front().unwrap();
            taken += 1;
            window.taken(taken, now);
        }
        most
    }

    #[test]
    fn a_short_way_holds_little_and_a_long_one_what_it_needs() {
        let millis = Duration::from_millis;
        assert!(most_under_way(millis(2), millis(5)) <= LEAST_BYTES);
        let long = most_under_way(millis(60), millis(10));
        assert!((12 * BATCH..=MOST_BYTES).contains(&long), "{long}");
    }

    #[test]
    fn records_may_fill_all_of_it() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.sent(1, LEAST_BYTES, now);
        assert!(window.is_full_for_state() && !window.is_full());
        window.sent(2, MOST_BYTES - LEAST_BYTES, now);
        assert!(window.is_full());
        window.taken(2, now);
        assert!(!window.is_full() && !window.is_full_for_state());
    }
}
