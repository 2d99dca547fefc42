//! Which objects may be changed: those whose intent is durable since the last checkpoint began, and those born since then.
//!
//! Time is cut into generations; a checkpoint begins one. A change holds a [`Pass`] from before it looks until its record
//! has its TID, so that the beginning of a checkpoint can wait for everything that went by the generation before. An object
//! of the generation before counts until the checkpoint is sealed, but is noted then (the since set): its intent lies before
//! the place from which a recovery would read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::{Oid, faults};
use crate::journal::local::{Intent, Region};

const SHARDS: usize = 64;

/// How an object became hot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cover {
    /// Its intent is on its way to the disk.
    Asked,
    /// Its intent is durable.
    Intent,
    /// It was born in a hot directory, whose listing tells a target of it.
    Birth,
}

#[derive(Clone, Copy)]
struct Hot {
    generation: u64,
    cover: Cover,
}

#[derive(Default)]
struct Shard {
    hot: HashMap<Intent, Hot>,
    /// While a checkpoint is under way: the generation before, whose objects still count.
    previous: Option<u64>,
    /// Those of them that were touched.
    since: Vec<Intent>,
}

/// The hot objects of a volume.
///
/// Locks: one per shard, each protecting its map. Rank: leaves, below the object locks and the ring, never two at once. Held
/// for a look-up; at a checkpoint's seal for a walk over the shard.
pub(super) struct HotSet {
    shards: Vec<Mutex<Shard>>,
    generation: AtomicU64,
    /// Passes of even and of odd generations.
    passes: [AtomicUsize; 2],
    /// Objects with an intent in this generation, and born ones.
    intents: AtomicUsize,
    births: AtomicUsize,
}

/// An intent on its way to the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) intent: Intent,
    generation: u64,
}

/// The right to change what was found hot. See [`HotSet::enter`].
pub(super) struct Pass<'a> {
    set: &'a HotSet,
    generation: u64,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.set.passes[(self.generation & 1) as usize].fetch_sub(1, Ordering::SeqCst);
    }
}

impl HotSet {
    pub(super) fn new() -> HotSet {
        HotSet {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            // From 1, so that there is a generation before.
            generation: AtomicU64::new(1),
            passes: Default::default(),
            intents: AtomicUsize::new(0),
            births: AtomicUsize::new(0),
        }
    }

    fn shard(&self, oid: Oid) -> &Mutex<Shard> {
        &self.shards[(oid.ino ^ oid.ino >> 6) as usize % SHARDS]
    }

    /// Joins the current generation. A generation that begins later waits until the pass is dropped.
    pub(super) fn enter(&self) -> Pass<'_> {
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            let pass = Pass { set: self, generation };
            self.passes[(generation & 1) as usize].fetch_add(1, Ordering::SeqCst);
            // Either the beginner sees the pass, or this sees the beginning.
            if self.generation.load(Ordering::SeqCst) == generation {
                return pass;
            }
        }
    }

    /// Intents of this generation that were asked for, and births.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.intents.load(Ordering::Relaxed), self.births.load(Ordering::Relaxed))
    }

    /// Notes that `intent` is on its way to the log, and in which generation; `None` when it is, or was, already.
    pub(super) fn ask(&self, intent: Intent) -> Option<Asked> {
        let generation = self.generation.load(Ordering::SeqCst);
        let mut shard = self.shard(intent.oid).lock();
        let whole = Intent { region: Region::Whole, ..intent };
        let known =
            [intent, whole].iter().any(|key| shard.hot.get(key).is_some_and(|hot| hot.generation == generation));
        if known {
            return None;
        }
        shard.hot.insert(intent, Hot { generation, cover: Cover::Asked });
        self.intents.fetch_add(1, Ordering::Relaxed);
        Some(Asked { intent, generation })
    }

    /// What was asked for is durable. It counts for its own generation only: its place in the log may lie before the one
    /// from which the next is read.
    pub(super) fn confirm(&self, asked: &Asked) {
        if let Some(hot) = self.shard(asked.intent.oid).lock().hot.get_mut(&asked.intent)
            && hot.cover == Cover::Asked
            && hot.generation == asked.generation
        {
            hot.cover = Cover::Intent;
        }
    }

    /// Begins a generation and returns when nobody goes by the one before any more. One checkpoint at a time.
    pub(super) fn begin_generation(&self) {
        let before = self.generation.load(Ordering::SeqCst);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.previous = Some(before);
            shard.since.clear();
        }
        self.intents.store(0, Ordering::Relaxed);
        self.births.store(0, Ordering::Relaxed);
        self.generation.store(before + 1, Ordering::SeqCst);
        // Changes are short; one that waits for a slow disk is waited for.
        while self.passes[(before & 1) as usize].load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// What was touched of the generation before. From here on that generation is cold.
    pub(super) fn seal(&self) -> Vec<Intent> {
        let generation = self.generation.load(Ordering::SeqCst);
        let mut since = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            since.append(&mut shard.since);
            shard.previous = None;
            let keeps_births = faults::skipped("rule.birth_cover_ends");
            shard.hot.retain(|_, hot| hot.generation == generation || (keeps_births && hot.cover == Cover::Birth));
        }
        self.intents.fetch_add(since.len(), Ordering::Relaxed);
        since
    }
}

impl Pass<'_> {
    /// Whether `intent` is hot; true also when all of its object is.
    pub(super) fn is_hot(&self, intent: Intent) -> bool {
        let mut shard = self.set.shard(intent.oid).lock();
        self.covers(&mut shard, intent)
            || (intent.region != Region::Whole && self.covers(&mut shard, Intent { region: Region::Whole, ..intent }))
    }

    fn covers(&self, shard: &mut Shard, intent: Intent) -> bool {
        let previous = shard.previous;
        let Some(hot) = shard.hot.get_mut(&intent) else {
            return false;
        };
        if hot.cover == Cover::Asked {
            return false;
        }
        if hot.generation == self.generation {
            return true;
        }
        if hot.cover == Cover::Birth && faults::skipped("rule.birth_cover_ends") {
            return true;
        }
        if previous != Some(hot.generation) {
            return false;
        }
        *hot = Hot { generation: self.generation, cover: Cover::Intent };
        shard.since.push(intent);
        true
    }

    /// All of `oid`, just born in a directory that is hot by this pass, needs no intent of its own in this generation.
    pub(super) fn born(&self, oid: Oid, most: usize) {
        let whole = Intent { oid, region: Region::Whole };
        // Too many are not kept: such an object is announced before its next change, as any other.
        if self.set.births.fetch_add(1, Ordering::Relaxed) < most {
            let hot = Hot { generation: self.generation, cover: Cover::Birth };
            self.set.shard(oid).lock().hot.insert(whole, hot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    fn intent(ino: u64) -> Intent {
        Intent { oid: Oid { space: Space(1), generation: 0, ino }, region: Region::Number(0) }
    }

    fn heat(set: &HotSet, intent: Intent) {
        let asked = set.ask(intent).unwrap();
        assert!(!set.enter().is_hot(intent), "hot before its intent is durable");
        set.confirm(&asked);
        assert!(set.enter().is_hot(intent));
    }

    #[test]
    fn the_generation_before_counts_until_the_seal_and_is_noted() {
        let set = HotSet::new();
        (1..=3).for_each(|ino| heat(&set, intent(ino)));
        set.enter().born(intent(9).oid, 10);
        set.begin_generation();
        heat(&set, intent(4));
        assert!(set.enter().is_hot(intent(2)));
        assert!(set.enter().is_hot(intent(2)));
        assert!(set.enter().is_hot(intent(9)));
        let mut since = set.seal();
        since.sort();
        assert_eq!(since, [intent(2), Intent { region: Region::Whole, ..intent(9) }]);
        let hot: Vec<u64> = (1..10).filter(|ino| set.enter().is_hot(intent(*ino))).collect();
        assert_eq!(hot, [2, 4, 9]);
        set.begin_generation();
        assert_eq!(set.seal(), []);
        assert!((1..10).all(|ino| !set.enter().is_hot(intent(ino))));
    }

    #[test]
    fn an_intent_of_the_generation_before_confirms_nothing_of_this_one() {
        let set = HotSet::new();
        let old = set.ask(intent(1)).unwrap();
        set.begin_generation();
        let new = set.ask(intent(1)).unwrap();
        set.confirm(&old);
        assert!(!set.enter().is_hot(intent(1)));
        set.confirm(&new);
        assert!(set.enter().is_hot(intent(1)));
    }

    #[test]
    fn a_generation_begins_when_the_passes_of_the_one_before_are_over() {
        let set = HotSet::new();
        let pass = set.enter();
        std::thread::scope(|scope| {
            let beginner = scope.spawn(|| set.begin_generation());
            // The generation counts at once; its beginner waits.
            while set.generation.load(Ordering::SeqCst) == 1 {
                std::thread::yield_now();
            }
            drop(set.enter());
            assert!(!beginner.is_finished());
            drop(pass);
            beginner.join().unwrap();
        });
    }
}
