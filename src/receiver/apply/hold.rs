//! A target that stays behind on purpose (`delay`): what it has received waits in its inbox until it is old enough.
//!
//! A record is old enough when it was made `delay` ago by the source's clock, or was received `delay` ago by ours: a clock
//! that jumps makes nothing wait for longer. Only records wait. State is read from the source as it is now, so it brings the
//! copy up to date at once, and until the copy is consistent nothing waits at all.
//!
//! What was ever performed is known to the replica as its *reach*: behind it a tree holds nothing, also after a crash.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{PerformError, REPLAY_BYTES, Worker};
use crate::base::{Position, Tid, Timespec};
use crate::record::{DecodeError, Header, chain};

/// How long the next look for what has become old enough waits, at least and at most: each may cost a sync of the tree, and
/// a clock may be set meanwhile.
const LOOK_LEAST: Duration = Duration::from_secs(1);
const LOOK_MOST: Duration = Duration::from_secs(60);
/// Times of arrival that are kept, about: what arrives shortly after another counts with it.
const MOST_ARRIVALS: u32 = 64;

/// What waits, and why.
pub(super) struct Hold {
    delay: Duration,
    /// Whether anything may wait now.
    on: bool,
    /// The end of what waits: it begins behind what was performed.
    upto: Tid,
    /// Everything up to the TID was there at the time, or a `MOST_ARRIVALS`th of the delay later.
    arrived: VecDeque<(Instant, Tid)>,
    look_at: Option<Instant>,
}

/// How much is performed.
#[derive(Clone, Copy)]
enum Release {
    /// What is old enough.
    Due,
    /// Everything.
    All,
    /// The older half, by bytes of the inbox, and up to `least`: without its oldest segment no room comes free.
    Half { bytes_used: u64, least: Tid },
}

impl Hold {
    pub(super) fn new(delay: Duration) -> Hold {
        Hold { delay, on: false, upto: Tid::ZERO, arrived: VecDeque::new(), look_at: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// How long nothing becomes old enough; `None` when nothing waits.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.look_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn arrives(&mut self, last: Tid, now: Instant) {
        self.upto = last;
        match self.arrived.back_mut() {
            Some((at, tid)) if now.saturating_duration_since(*at) < self.delay / MOST_ARRIVALS => *tid = last,
            _ => self.arrived.push_back((now, last)),
        }
    }

    /// Up to here everything was received long enough ago.
    fn waited_upto(&self, now: Instant) -> Tid {
        let whole = self.whole_wait();
        let waited = self.arrived.iter().take_while(|(at, _)| now.saturating_duration_since(*at) >= whole).last();
        waited.map_or(Tid::ZERO, |(_, tid)| *tid)
    }

    /// After this time even the last of what arrived together has waited.
    fn whole_wait(&self) -> Duration {
        self.delay.saturating_add(self.delay / MOST_ARRIVALS)
    }

    /// When something is old enough by its time of arrival.
    fn arrival_wait(&self, now: Instant) -> Duration {
        let first = self.arrived.front();
        first.map_or(LOOK_MOST, |(at, _)| self.whole_wait().saturating_sub(now.saturating_duration_since(*at)))
    }

    /// The bytes at the beginning of `body` that are old enough, and for how long the next record is not.
    fn due(&self, body: &[u8], waited: Tid, now: Timespec) -> Result<(usize, Option<Duration>), DecodeError> {
        let delay = i128::try_from(self.delay.as_nanos()).unwrap_or(i128::MAX);
        let mut bytes = 0;
        while bytes < body.len() {
            let header = Header::parse(&body[bytes..])?;
            let left = i128::from(header.time_ns).saturating_add(delay) - i128::from(now.as_nanos());
            if left > 0 && header.tid > waited {
                return Ok((bytes, Some(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))));
            }
            bytes += header.len_bytes;
        }
        Ok((bytes, None))
    }
}

impl Worker<'_> {
    /// From now on records wait, if they are to: at once those that the inbox has up to `upto`.
    pub(super) fn begin_hold(&mut self, upto: Tid) -> Result<(), PerformError> {
        if self.hold.delay.is_zero() || self.hold.on {
            return Ok(());
        }
        self.applier.raise_reach(self.high_water.max(self.at.tid))?;
        self.hold.on = true;
        self.hold.arrived.clear();
        self.hold.arrives(upto, Instant::now());
        self.release_due()
    }

    /// From now on nothing waits.
    pub(super) fn end_hold(&mut self) -> Result<(), PerformError> {
        self.catch_up("objects are to come")?;
        self.hold.on = false;
        Ok(self.applier.forget_reach()?)
    }

    /// A batch that is in the inbox waits there.
    pub(super) fn hold_back(&mut self, last: Tid) -> Result<(), PerformError> {
        self.hold.arrives(last, Instant::now());
        if self.hold.look_at.is_none() { self.release_due() } else { Ok(()) }
    }

    /// Whether something waits.
    pub(super) fn is_holding(&self) -> bool {
        self.hold.on && self.at.tid < self.hold.upto
    }

    /// Performs what has become old enough, when it is time to look.
    pub(super) fn release_in_time(&mut self) -> Result<(), PerformError> {
        match self.hold.look_at.is_some_and(|at| at <= Instant::now()) {
            true => self.release_due(),
            false => Ok(()),
        }
    }

    fn release_due(&mut self) -> Result<(), PerformError> {
        self.hold.look_at = None;
        let wait = self.release(Release::Due)?;
        let performed = self.at.tid;
        self.hold.arrived.retain(|(_, tid)| *tid > performed);
        if let Some(wait) = wait {
            let now = Instant::now();
            let wait = wait.min(self.hold.arrival_wait(now));
            self.hold.look_at = Some(now + wait.clamp(LOOK_LEAST, LOOK_MOST));
        }
        Ok(())
    }

    /// Performs everything that waits.
    pub(super) fn catch_up(&mut self, why: &'static str) -> Result<(), PerformError> {
        if self.is_holding() {
            tracing::warn!(why, "what waited for its time is performed");
            self.release(Release::All)?;
        }
        self.hold.look_at = None;
        Ok(())
    }

    /// The inbox is full: the older half of what waits is performed before its time.
    pub(super) fn make_room(&mut self) -> Result<(), PerformError> {
        if self.is_holding() {
            tracing::warn!("the inbox is full: changes are applied before their time");
            let least = self.inbox.oldest_sealed_end().unwrap_or(Tid::ZERO);
            self.release(Release::Half { bytes_used: self.inbox.bytes_used(), least })?;
        }
        self.make_durable()?;
        Ok(self.relay.make_room(&self.inbox, self.at.tid)?)
    }

    /// Returns how long the next record still waits, when that is known.
    fn release(&mut self, which: Release) -> Result<Option<Duration>, PerformError> {
        let (now, waited) = (Timespec::now(), self.hold.waited_upto(Instant::now()));
        let mut reader = self.inbox.reader(self.at.tid)?;
        while let Some(chunk) = reader.next_chunk(self.hold.upto, REPLAY_BYTES)? {
            let (bytes, wait) = match which {
                Release::Due => self.hold.due(&chunk.body, waited, now)?,
                Release::Half { bytes_used, least }
                    if self.at.tid >= least && self.inbox.bytes_after(self.at.tid) <= bytes_used / 2 =>
                {
                    (0, None)
                }
                Release::All | Release::Half { .. } => (chunk.body.len(), None),
            };
            self.perform_held(&chunk.body[..bytes])?;
            if bytes < chunk.body.len() {
                return Ok(wait);
            }
        }
        Ok(None)
    }

    /// Performs records of the inbox. That they may be in the tree is durable before the first of them is.
    fn perform_held(&mut self, body: &[u8]) -> Result<(), PerformError> {
        let Some(last) = last_tid(body)? else { return Ok(()) };
        self.applier.raise_reach(last)?;
        self.records(body)?;
        self.at = Position { tid: last, digest: chain(self.at.digest, body)?, ..self.at };
        if self.durable.is_due() { self.make_durable() } else { Ok(()) }
    }
}

fn last_tid(mut body: &[u8]) -> Result<Option<Tid>, DecodeError> {
    let mut last = None;
    while !body.is_empty() {
        let header = Header::parse(body)?;
        last = Some(header.tid);
        body = &body[header.len_bytes..];
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Oid;
    use crate::record::{Draft, Op};

    fn body(times: &[i64]) -> Vec<u8> {
        let record = |(at, time): (usize, &i64)| Draft::new(Oid::ROOT, &Op::Gone, &[]).seal(Tid(at as u64 + 1), *time);
        times.iter().enumerate().flat_map(|record_at| record(record_at).bytes().to_vec()).collect()
    }

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_record_waits_for_its_time_and_those_behind_it_for_it() {
        let hold = Hold::new(Duration::from_secs(10));
        let body = body(&[100 * SECOND, 105 * SECOND, 101 * SECOND]);
        let one = body.len() / 3;
        let at = |second| hold.due(&body, Tid::ZERO, Timespec { sec: second, nsec: 0 }).unwrap();
        assert_eq!(at(109), (0, Some(Duration::from_secs(1))));
        assert_eq!(at(110), (one, Some(Duration::from_secs(5))));
        assert_eq!(at(114), (one, Some(Duration::from_secs(1))));
        assert_eq!(at(115), (3 * one, None));
    }

    #[test]
    fn what_was_received_long_ago_does_not_wait_for_a_clock() {
        let mut hold = Hold::new(Duration::from_secs(64));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        hold.arrives(Tid(1), start);
        hold.arrives(Tid(2), after(10));
        assert_eq!(hold.waited_upto(after(64)), Tid::ZERO, "what counts with it may have come a second later");
        assert_eq!(hold.waited_upto(after(65)), Tid(1));
        assert_eq!(hold.arrival_wait(after(60)), Duration::from_secs(5));
        let body = body(&[i64::MAX, i64::MAX]);
        let (bytes, wait) = hold.due(&body, Tid(1), Timespec { sec: 0, nsec: 0 }).unwrap();
        assert_eq!(bytes, body.len() / 2);
        assert!(wait.is_some());
        assert_eq!(hold.waited_upto(after(75)), Tid(2));
    }

    #[test]
    fn times_of_arrival_are_bounded() {
        let mut hold = Hold::new(Duration::from_secs(64));
        let start = Instant::now();
        for at in 0..10_000 {
            hold.arrives(Tid(at), start + Duration::from_millis(at * 6));
        }
        assert!(hold.arrived.len() <= MOST_ARRIVALS as usize + 1, "{}", hold.arrived.len());
        assert_eq!(hold.waited_upto(start + Duration::from_secs(200)), Tid(9_999));
        assert_eq!(hold.waited_upto(start + Duration::from_secs(65)), Tid(166), "the first second");
    }
}
