//! A storm over cold objects: many changes, one after the other, that each wait for an intent of their own. While it rages,
//! what is looked up or listed is announced at once, so that the changes which follow find it hot or wait together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Waits that make a storm, each at most so long after the one before.
const WAITS: u64 = 8;
const LULL_MILLIS: u64 = 100;

/// Counts waits for intents.
pub(super) struct Storm {
    born: Instant,
    /// Waits so far, without a lull between them.
    waits: AtomicU64,
    /// When the last one was, in milliseconds since `born`.
    last: AtomicU64,
}

impl Storm {
    pub(super) fn new() -> Storm {
        Storm { born: Instant::now(), waits: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// A change waits for its intent.
    pub(super) fn wait(&self) {
        let now = self.now();
        let before = self.last.swap(now, Ordering::Relaxed);
        match now.saturating_sub(before) > LULL_MILLIS {
            true => self.waits.store(1, Ordering::Relaxed),
            false => drop(self.waits.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Whether many changes wait. Costs one load while there is calm.
    pub(super) fn rages(&self) -> bool {
        self.waits.load(Ordering::Relaxed) >= WAITS
            && self.now().saturating_sub(self.last.load(Ordering::Relaxed)) <= LULL_MILLIS
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}
