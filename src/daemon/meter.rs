//! Lag in time, rates and estimates: what can only be told from a while ago.
//!
//! Once a second the newest TID of each volume, and what each target was sent, are noted with the time. Memory is bounded:
//! the older half of a history that is full loses every other entry.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::volumes::Volumes;
use crate::base::{Tid, Timespec};
use crate::config::{TargetName, VolumeName};
use crate::control::TargetStatus;
use crate::journal::Store;

/// How often it is looked.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Over which time bytes are averaged.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Over which time work is.
const WORK_OVER: Duration = Duration::from_secs(60);
/// Counting the rows of work costs more than reading a number.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const MOST_ENTRIES: usize = 4096;

/// The histories of all volumes.
#[derive(Default)]
pub(super) struct Meter {
    /// Protects the histories. Rank: a leaf; held for look-ups and insertions only.
    volumes: Mutex<BTreeMap<VolumeName, VolumeHistory>>,
}

#[derive(Default)]
struct VolumeHistory {
    tids: History<Tid>,
    targets: BTreeMap<TargetName, TargetHistory>,
}

#[derive(Default)]
struct TargetHistory {
    sent: History<u64>,
    work: History<u64>,
}

/// Values with their times, oldest first.
struct History<T> {
    entries: VecDeque<(Instant, T)>,
}

impl<T> Default for History<T> {
    fn default() -> History<T> {
        History { entries: VecDeque::new() }
    }
}

impl<T: Copy> History<T> {
    fn note(&mut self, now: Instant, value: T) {
        self.entries.push_back((now, value));
        if self.entries.len() > MOST_ENTRIES {
            let mut at = 0;
            self.entries.retain(|_| {
                at += 1;
                at > MOST_ENTRIES / 2 || at % 2 == 1
            });
        }
    }

    /// The oldest entry that is not older than `span`.
    fn within(&self, now: Instant, span: Duration) -> Option<(Instant, T)> {
        let from = self.entries.partition_point(|(at, _)| now.duration_since(*at) > span);
        self.entries.get(from).copied()
    }

    fn latest(&self) -> Option<(Instant, T)> {
        self.entries.back().copied()
    }
}

impl Meter {
    /// Notes how everything stands now.
    pub(super) fn look(&self, volumes: &Volumes) {
        let now = Instant::now();
        let open = volumes.all_sending();
        let mut histories = self.volumes.lock();
        histories.retain(|name, _| open.iter().any(|sends| sends.name() == name));
        drop(histories);
        for sends in &open {
            // What nothing has filled yet has nothing to send.
            let Ok(log) = sends.log() else { continue };
            self.volumes.lock().entry(sends.name().clone()).or_default().tids.note(now, log.last_tid());
            for name in sends.target_names() {
                let Some(sender) = sends.sender(&name) else { continue };
                let is_due = self.count_is_due(sends.name(), &name, now);
                let work = is_due.then(|| work_left(log.store(), &name)).flatten();
                self.note_target(sends.name(), name, now, sender.status().bytes_sent, work);
            }
        }
    }

    fn count_is_due(&self, volume: &VolumeName, target: &TargetName, now: Instant) -> bool {
        let histories = self.volumes.lock();
        let last = histories.get(volume).and_then(|v| v.targets.get(target)).and_then(|t| t.work.latest());
        last.is_none_or(|(at, _)| now.duration_since(at) >= COUNT_EVERY)
    }

    fn note_target(&self, volume: &VolumeName, target: TargetName, now: Instant, sent: u64, work: Option<u64>) {
        let mut histories = self.volumes.lock();
        let history = histories.entry(volume.clone()).or_default().targets.entry(target).or_default();
        history.sent.note(now, sent);
        if let Some(work) = work {
            history.work.note(now, work);
        }
    }

    /// Adds to the status of a volume's targets what the histories tell.
    pub(super) fn fill(&self, (volume, store): (&VolumeName, &Store), targets: &mut [TargetStatus]) {
        for status in targets {
            let row = store.target(status.name.as_str()).ok().flatten();
            self.fill_one(volume, status, row.and_then(|row| row.last_ack_ns));
        }
    }

    /// `last_ack_ns` is when the target last said that it had gone on.
    fn fill_one(&self, volume: &VolumeName, status: &mut TargetStatus, last_ack_ns: Option<i64>) {
        let now = Instant::now();
        let histories = self.volumes.lock();
        let history = histories.get(volume);
        if status.lag_changes > 0 {
            let lag = history.map_or(0.0, |h| lag(&h.tids, status.applied_tid, now, last_ack_ns));
            status.lag_seconds = (lag - status.delay_seconds as f64).max(0.0);
        }
        let Some(target) = history.and_then(|history| history.targets.get(&status.name)) else { return };
        status.rate_bytes = rate(&target.sent, now, status.bytes_sent);
        status.work_seconds = estimate(&target.work, now, status.work_left);
    }
}

fn work_left(store: &Store, target: &TargetName) -> Option<u64> {
    let row = store.target(target.as_str()).ok().flatten()?;
    store.work_count(row.id).ok()
}

/// How long the first change behind `applied` is there, in seconds.
fn lag(tids: &History<Tid>, applied: Tid, now: Instant, last_ack_ns: Option<i64>) -> f64 {
    let first_behind = tids.entries.partition_point(|(_, tid)| *tid <= applied);
    match (first_behind, tids.entries.get(first_behind)) {
        // It was behind before the daemon started: at least since then, and since it last moved.
        (0, Some((at, _))) => {
            let watched = now.duration_since(*at).as_secs_f64();
            let said = last_ack_ns.map_or(0.0, |ns| (Timespec::now().as_nanos() - ns) as f64 / 1e9);
            watched.max(said)
        }
        // Made between two looks: the earlier one is an upper bound.
        (at, _) => tids.entries.get(at.saturating_sub(1)).map_or(0.0, |(at, _)| now.duration_since(*at).as_secs_f64()),
    }
}

fn rate(sent: &History<u64>, now: Instant, bytes_sent: u64) -> u64 {
    let Some((at, before)) = sent.within(now, RATE_OVER) else { return 0 };
    let seconds = now.duration_since(at).as_secs_f64();
    if seconds < 0.5 { 0 } else { (bytes_sent.saturating_sub(before) as f64 / seconds) as u64 }
}

fn estimate(work: &History<u64>, now: Instant, left: u64) -> Option<u64> {
    let (at, before) = work.within(now, WORK_OVER)?;
    let (done, seconds) = (before.checked_sub(left)?, now.duration_since(at).as_secs_f64());
    (left > 0 && done > 0).then(|| (left as f64 * seconds / done as f64).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history<T: Copy>(start: Instant, values: &[T]) -> History<T> {
        let mut history = History::default();
        for (second, value) in values.iter().enumerate() {
            history.note(start + Duration::from_secs(second as u64), *value);
        }
        history
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_change_that_is_not_applied() {
        let start = Instant::now();
        let tids = history(start, &[Tid(1), Tid(5), Tid(5), Tid(9)]);
        let now = start + Duration::from_secs(10);
        assert_eq!(lag(&tids, Tid(5), now, None), 8.0, "TID 6 was made after second 2");
        assert_eq!(lag(&tids, Tid(0), now, None), 10.0, "at least since the first look");
        assert_eq!(lag(&tids, Tid(9), now, None), 7.0);
    }

    #[test]
    fn rates_and_estimates_come_from_differences() {
        let start = Instant::now();
        let now = start + Duration::from_secs(3);
        assert_eq!(rate(&history(start, &[100, 200, 300]), now, 400), 100);
        assert_eq!(estimate(&history(start, &[100, 90, 80]), now, 70), Some(7));
        assert_eq!(estimate(&history(start, &[10, 20]), now, 30), None, "it grows");
        assert_eq!(estimate(&history(start, &[10, 5]), now, 0), None, "it is done");
    }

    #[test]
    fn a_full_history_keeps_both_ends() {
        let start = Instant::now();
        let values: Vec<u64> = (0..=MOST_ENTRIES as u64).collect();
        let history = history(start, &values);
        assert!(history.entries.len() <= MOST_ENTRIES * 3 / 4 + 1);
        assert_eq!((history.entries[0].1, history.latest().map(|l| l.1)), (0, Some(MOST_ENTRIES as u64)));
    }
}
