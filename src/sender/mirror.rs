//! The bulk copy to a target as an operator sees it: which kind runs, whether it is held, how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::{Rules, Timespec};
use crate::catchup::{Census, TreeView};
use crate::journal::{JournalError, Store, TargetId, WorkReason};

/// What a mirror does with what the target has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorKind {
    /// Everything is sent.
    Full,
    /// What differs by type, size, time of modification, owner, mode or xattrs is compared by content; blocks that differ are
    /// sent.
    Difference,
    /// Everything is compared by content; blocks that differ are sent.
    Checksum,
}

impl MirrorKind {
    /// The word for people and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            MirrorKind::Full => "full",
            MirrorKind::Difference => "difference",
            MirrorKind::Checksum => "checksum",
        }
    }

    fn reason(self) -> WorkReason {
        match self {
            MirrorKind::Full => WorkReason::Mirror,
            MirrorKind::Difference => WorkReason::Difference,
            MirrorKind::Checksum => WorkReason::Verify,
        }
    }

    pub(super) fn of(reason: WorkReason) -> MirrorKind {
        match reason {
            WorkReason::Mirror => MirrorKind::Full,
            WorkReason::Difference => MirrorKind::Difference,
            WorkReason::Verify | WorkReason::Need => MirrorKind::Checksum,
        }
    }
}

/// Whether work for a target is read. Changes are sent in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hold {
    /// It is.
    #[default]
    Running,
    /// It goes on when it is resumed.
    Paused,
    /// It was given up: it begins anew when a mirror is started.
    Stopped,
}

impl Hold {
    /// The word for people, and in the journal's `meta`.
    pub fn word(self) -> &'static str {
        match self {
            Hold::Running => "running",
            Hold::Paused => "paused",
            Hold::Stopped => "stopped",
        }
    }

    /// Whether the target's work is held.
    ///
    /// # Errors
    /// When the journal's database cannot be read.
    pub fn of(store: &Store, target: TargetId) -> Result<Hold, JournalError> {
        Ok(match store.meta_get(&hold_key(target))?.as_deref() {
            Some(b"paused") => Hold::Paused,
            Some(b"stopped") => Hold::Stopped,
            _ => Hold::Running,
        })
    }

    /// Writes it down. Whoever sends to the target must be told.
    ///
    /// # Errors
    /// When the journal's database cannot be written.
    pub fn set(self, store: &Store, target: TargetId) -> Result<(), JournalError> {
        store.meta_set(&hold_key(target), self.word().as_bytes())
    }
}

/// How far a mirror is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MirrorProgress {
    /// Which kind; `None` when none was begun.
    pub kind: Option<MirrorKind>,
    /// When it began, seconds since 1970.
    pub began_sec: i64,
    /// Objects that were read.
    pub objects: u64,
    /// Bytes of content that these have.
    pub bytes: u64,
    /// All objects and all bytes of the tree, when they were counted.
    pub total: Option<(u64, u64)>,
    /// Objects and bytes read in a second, lately.
    pub rate: (u64, u64),
    /// The directory or file that was read last.
    pub current: Vec<u8>,
}

impl MirrorProgress {
    /// In how many seconds it ends if it goes on like this; `None` when that is not known.
    pub fn seconds_left(&self) -> Option<u64> {
        let (objects, bytes) = self.total?;
        let left = |total: u64, done: u64, rate: u64| match total.saturating_sub(done) {
            0 => Some(0),
            left => (rate > 0).then(|| left.div_ceil(rate)),
        };
        Some(left(objects, self.objects, self.rate.0)?.max(left(bytes, self.bytes, self.rate.1)?))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let kind = self.kind.map_or(0, |kind| kind as u64 + 1);
        let (objects, bytes) = self.total.unwrap_or((0, 0));
        let numbers = [kind, self.began_sec as u64, self.objects, self.bytes, objects, bytes];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<MirrorProgress> {
        let numbers: Vec<u64> =
            bytes.chunks_exact(8).map(|n| Some(u64::from_le_bytes(n.try_into().ok()?))).collect::<Option<_>>()?;
        let [kind, began, objects, bytes, all_objects, all_bytes] = numbers[..] else { return None };
        let kinds = [MirrorKind::Full, MirrorKind::Difference, MirrorKind::Checksum];
        Some(MirrorProgress {
            kind: kinds.into_iter().find(|of| *of as u64 + 1 == kind),
            began_sec: began as i64,
            objects,
            bytes,
            total: (all_objects > 0).then_some((all_objects, all_bytes)),
            ..MirrorProgress::default()
        })
    }
}

/// Queues a mirror of the whole tree. Whoever sends to the target must be told.
///
/// # Errors
/// When the journal's database cannot be written.
pub fn begin_mirror(store: &Store, target: TargetId, kind: MirrorKind) -> Result<(), JournalError> {
    note_begin(store, target, kind)?;
    store.work_mirror(target, kind.reason(), &format!("a mirror begins: {}", kind.word()))?;
    Hold::Running.set(store, target)
}

/// The mirror that was begun last: how far it was when that was last written down.
///
/// # Errors
/// When the journal's database cannot be read.
pub fn last_mirror(store: &Store, target: TargetId) -> Result<MirrorProgress, JournalError> {
    let bytes = store.meta_get(&key(target))?.unwrap_or_default();
    Ok(MirrorProgress::from_bytes(&bytes).unwrap_or_default())
}

/// Key in the journal's `meta`: the mirror that was begun last.
fn key(target: TargetId) -> String {
    format!("mirror.{}", target.0)
}

fn hold_key(target: TargetId) -> String {
    format!("hold.{}", target.0)
}

pub(super) fn note_begin(store: &Store, target: TargetId, kind: MirrorKind) -> Result<(), JournalError> {
    let began_sec = Timespec::now().sec;
    let progress = MirrorProgress { kind: Some(kind), began_sec, ..MirrorProgress::default() };
    store.meta_set(&key(target), &progress.to_bytes())
}

/// Counts what a mirror does, for one session.
pub(super) struct Meter {
    target: TargetId,
    progress: MirrorProgress,
    /// Rates are over this time.
    since: (Instant, u64, u64),
    saved: Instant,
}

const RATE_OVER: Duration = Duration::from_secs(2);
const SAVE_EVERY: Duration = Duration::from_secs(5);

impl Meter {
    pub(super) fn open(store: &Store, target: TargetId) -> Result<Meter, JournalError> {
        let progress = last_mirror(store, target)?;
        let now = Instant::now();
        Ok(Meter { target, since: (now, progress.objects, progress.bytes), progress, saved: now })
    }

    /// So much was sent, and `current` is being read.
    pub(super) fn add(&mut self, (objects, bytes): (u64, u64), current: &[u8], counted: Option<(u64, u64)>) {
        let progress = &mut self.progress;
        progress.objects += objects;
        progress.bytes += bytes;
        progress.total = counted.or(progress.total);
        if progress.current != current {
            progress.current = current.to_vec();
        }
        let elapsed = self.since.0.elapsed();
        if elapsed >= RATE_OVER || progress.rate == (0, 0) && elapsed > Duration::from_millis(100) {
            let per_second = |now: u64, before: u64| ((now - before) as f64 / elapsed.as_secs_f64()) as u64;
            progress.rate = (per_second(progress.objects, self.since.1), per_second(progress.bytes, self.since.2));
            self.since = (Instant::now(), progress.objects, progress.bytes);
        }
    }

    pub(super) fn progress(&self) -> &MirrorProgress {
        &self.progress
    }

    /// Writes it down now and then, and when nothing is left.
    pub(super) fn save(&mut self, store: &Store, is_left: bool) -> Result<(), JournalError> {
        if is_left && self.saved.elapsed() < SAVE_EVERY {
            return Ok(());
        }
        self.saved = Instant::now();
        store.meta_set(&key(self.target), &self.progress.to_bytes())
    }
}

/// Counts the tree on a thread of its own, while a mirror of it goes on. Dropping it stops that thread.
pub(super) struct Counter {
    view: Arc<dyn TreeView>,
    rules: Arc<Rules>,
    stop: Arc<AtomicBool>,
    /// Objects and bytes, when they are counted. Rank: a leaf, held for an assignment.
    counted: Arc<Mutex<Option<(u64, u64)>>>,
    /// The last count. Rank: above `counted`; held across starting a thread and waiting for one that was told to stop.
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Counter {
    pub(super) fn new(view: Arc<dyn TreeView>, rules: Arc<Rules>) -> Counter {
        Counter { view, rules, stop: Arc::default(), counted: Arc::default(), handle: Mutex::new(None) }
    }

    /// What the last count came to.
    pub(super) fn counted(&self) -> Option<(u64, u64)> {
        *self.counted.lock()
    }

    /// Counts anew, unless that goes on already.
    pub(super) fn begin(&self) {
        let mut handle = self.handle.lock();
        if handle.as_ref().is_some_and(|handle| !handle.is_finished()) {
            return;
        }
        *self.counted.lock() = None;
        let (view, stop, counted) = (self.view.clone(), self.stop.clone(), self.counted.clone());
        let rules = self.rules.clone();
        let count = move || {
            let mut census = Census::new(view.as_ref(), &rules);
            while !stop.load(Ordering::Relaxed) {
                match census.step() {
                    Ok(true) => {}
                    Ok(false) => return *counted.lock() = Some((census.objects, census.bytes)),
                    Err(errno) => return tracing::debug!(%errno, "the tree is not counted"),
                }
            }
        };
        *handle = std::thread::Builder::new().name("dtfs-count".into()).spawn(count).ok();
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle.lock().take() {
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again() {
        let progress = MirrorProgress {
            kind: Some(MirrorKind::Difference),
            began_sec: 1_700_000_000,
            objects: 5,
            bytes: 6,
            total: Some((10, 600)),
            ..MirrorProgress::default()
        };
        assert_eq!(MirrorProgress::from_bytes(&progress.to_bytes()), Some(progress));
        assert_eq!(MirrorProgress::from_bytes(b"short"), None);
    }

    #[test]
    fn the_slower_of_both_sums_says_when_it_ends() {
        let progress =
            MirrorProgress { objects: 50, bytes: 100, total: Some((100, 1000)), rate: (50, 10), ..Default::default() };
        assert_eq!(progress.seconds_left(), Some(90));
        assert_eq!(MirrorProgress { rate: (0, 10), ..progress.clone() }.seconds_left(), None);
        assert_eq!(MirrorProgress { total: None, ..progress }.seconds_left(), None);
    }
}
