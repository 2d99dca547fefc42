//! Checkpoints: every so often tree and log are known to hold everything up to a TID, so that a recovery reads little and
//! segments may be freed. Changes go on meanwhile.
//!
//! 1. *Begin.* `from` is where the log ends now. A generation of hot objects begins; whoever went by the one before has
//!    taken its TID when that returns: everything up to `tid`, the last TID now, was made before.
//! 2. *Sync.* syncfs(2) on the tree: those changes are durable there. The log is committed up to `tid`.
//! 3. *Seal.* What was touched meanwhile under an older intent is the since set; the rest of the generation before is cold.
//! 4. The checkpoint, with `from` and the since set, is appended and made durable, then noted in `state.db`.
//!
//! A recovery reads the log from `from`: every change that is not certain in the tree has a record or an intent there, is
//! in the since set, or was born in a directory that is.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};

use super::ring::{Ring, Share};
use super::shared::Durable;
use super::{Core, Journal};
use crate::base::{Oid, Tid, faults};
use crate::journal::error::{JournalError, io, std_io};
use crate::journal::local::{CHECKPOINT_BYTES, ENTRY_BYTES, Local};
use crate::journal::log::{Position, frame_bytes};
use crate::journal::store::{Store, put_meta};
use crate::record::{FieldReader, FieldWriter};

/// Longest time between two checkpoints while changes are made.
const EVERY: Duration = Duration::from_secs(30);
/// Bytes of log after which a checkpoint is due; a recovery reads hardly more.
const LOG_BYTES: u64 = 256 << 20;
/// Share of the log's cap that counts as much.
const CAP_PARTS: u64 = 8;
/// Objects with an intent at which a checkpoint is due; at twice as many, cold objects wait for it.
const MOST_HOT: usize = 32 << 10;
/// Objects that are born without an intent of their own.
const MOST_BIRTHS: usize = 128 << 10;

const KEY: &str = "checkpoint";

/// Makes the backing tree durable (syncfs(2)), by a descriptor that was open since before the first change.
pub type SyncTree = Box<dyn Fn() -> Result<(), Errno> + Send>;

/// The last checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Checkpoint {
    /// Everything up to here is durable in the tree.
    pub(super) tid: Tid,
    /// Where a recovery begins to read.
    pub(super) from: Position,
    /// Where the log ended behind the checkpoint.
    pub(super) end: Position,
}

/// What one checkpoint works with, beside the ring's lock.
pub(super) struct Checkpoints {
    /// The last one. Protects also that there is one at a time. Rank: above the ring; held across a checkpoint.
    pub(super) last: Mutex<Checkpoint>,
}

/// A thread that makes checkpoints as long as this is held.
pub struct Checkpointer {
    core: Arc<Core>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoint {
    /// The one that `state.db` knows.
    pub(super) fn load(store: &Store) -> Result<Option<Checkpoint>, JournalError> {
        let Some(bytes) = store.meta_get(KEY)? else {
            return Ok(None);
        };
        let row = |_| JournalError::Row { what: "meta.checkpoint", value: format!("{} bytes", bytes.len()) };
        let mut reader = FieldReader::new(&bytes);
        let mut word = || reader.u64("checkpoint").map_err(row);
        let tid = Tid(word()?);
        let from = Position { segment: word()?, offset: word()? };
        Ok(Some(Checkpoint { tid, from, end: Position { segment: word()?, offset: word()? } }))
    }

    /// Writes it as part of a transaction.
    pub(super) fn put(&self, tx: &rusqlite::Transaction<'_>) -> rusqlite::Result<()> {
        let mut out = FieldWriter::default();
        for word in [self.tid.0, self.from.segment, self.from.offset, self.end.segment, self.end.offset] {
            out.u64(word);
        }
        put_meta(tx, &[(KEY, &out.0)])
    }
}

impl Journal {
    /// Makes a checkpoint now, unless nothing was changed since the last one.
    ///
    /// # Errors
    /// `Failed`; `Io` when the tree or the log could not be made durable, which fails the volume; `Io` and `Sqlite` when
    /// there is no room to write the checkpoint down, which does not.
    pub fn checkpoint(&self, sync: &SyncTree) -> Result<(), JournalError> {
        self.core.checkpoint(sync)
    }

    /// Makes checkpoints when they are due, on a thread of their own, until the result is dropped.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start_checkpoints(&self, sync: SyncTree) -> Result<Checkpointer, JournalError> {
        let (core, stop) = (Arc::clone(&self.core), Arc::default());
        core.ring.lock().checkpointers += 1;
        let (shared, stopped) = (Arc::clone(&core), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || shared.run_checkpoints(&sync, &stopped))
            .map_err(std_io("start checkpoints", Path::new("thread")));
        // Dropped when there is no thread, it takes its own number back.
        let mut checkpointer = Checkpointer { core, stop, thread: None };
        checkpointer.thread = Some(thread?);
        Ok(checkpointer)
    }

    /// Latches the volume: nothing more is recorded or acknowledged until it is opened anew.
    pub fn fail(&self, reason: &str) {
        let mut ring = self.core.ring.lock();
        self.core.fail(&mut ring, reason);
        drop(ring);
        self.core.done.notify_all();
        self.core.space.notify_all();
    }

    /// Objects that may be changed without an intent: with one that is durable, and born since the last checkpoint began.
    pub fn hot_objects(&self) -> (usize, usize) {
        self.core.hot.counts()
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        {
            let mut ring = self.core.ring.lock();
            ring.checkpointers -= 1;
            self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        self.core.checkpoint_due.notify_all();
        self.core.done.notify_all();
        if let Some(thread) = self.thread.take() {
            // Nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

impl Core {
    fn run_checkpoints(&self, sync: &SyncTree, stop: &std::sync::atomic::AtomicBool) {
        let mut due = Instant::now() + EVERY;
        let mut ring = self.ring.lock();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            if !ring.checkpoint_wanted && Instant::now() < due {
                self.checkpoint_due.wait_until(&mut ring, due);
                continue;
            }
            let failed = MutexGuard::unlocked(&mut ring, || self.checkpoint(sync));
            if let Err(error) = failed {
                tracing::error!(%error, "checkpoint");
            }
            due = Instant::now() + EVERY;
        }
    }

    fn checkpoint(&self, sync: &SyncTree) -> Result<(), JournalError> {
        let mut last = self.checkpoints.last.lock();
        let outcome = self.checkpoint_after(&last, sync);
        if let Ok(Some(checkpoint)) = &outcome {
            *last = *checkpoint;
            self.log.keep_from(checkpoint.from.segment);
        }
        drop(last);
        let mut ring = self.ring.lock();
        ring.checkpoint_wanted = false;
        ring.rolled |= matches!(outcome, Ok(Some(_)));
        drop(ring);
        self.done.notify_all();
        self.work.notify_all();
        outcome.map(drop)
    }

    /// `None` when nothing happened since `last`.
    fn checkpoint_after(&self, last: &Checkpoint, sync: &SyncTree) -> Result<Option<Checkpoint>, JournalError> {
        // What waits would lie behind `from`, and be in doubt for nothing.
        let given = self.ring.lock().last;
        self.commit_upto(given)?;
        let quiet = {
            let ring = self.ring.lock();
            ring.sound()?;
            !ring.in_use() && self.hot.counts() == (0, 0)
        };
        let from = self.log.end();
        if quiet && from == last.end {
            return Ok(None);
        }
        let point = |name: &'static str| faults::point(name).map_err(io("checkpoint", Path::new("log")));
        point("journal.checkpoint.begin")?;
        self.hot.begin_generation();
        let tid = self.ring.lock().last;
        point("journal.checkpoint.sync")?;
        if !faults::skipped("rule.checkpoint_syncs") {
            self.sync_tree(sync)?;
        }
        self.commit_upto(tid)?;
        let mut since = self.hot.seal();
        let mut from = from;
        if faults::skipped("rule.scan_from_begin") {
            (since, from) = (Vec::new(), self.log.end());
        }
        point("journal.checkpoint.append")?;
        let end = self.append_checkpoint(Local::Checkpoint { tid, from, since })?;
        point("journal.checkpoint.durable")?;
        let checkpoint = Checkpoint { tid, from, end };
        let orphans = self.orphans_at_checkpoint();
        self.store.write("checkpoint", |tx| {
            checkpoint.put(tx)?;
            put_meta(tx, &[("orphans", &orphans)])
        })?;
        Ok(Some(checkpoint))
    }

    /// A tree that could not be made durable fails the volume. Where only the checkpoint itself cannot be written, because
    /// the disk is full, the one before goes on to count: a recovery reads more, and the next try comes soon.
    fn sync_tree(&self, sync: &SyncTree) -> Result<(), JournalError> {
        sync().map_err(io("syncfs", Path::new("tree"))).inspect_err(|error| {
            self.fail(&mut self.ring.lock(), &format!("checkpoint: {error}"));
        })
    }

    fn append_checkpoint(&self, record: Local) -> Result<Position, JournalError> {
        let mut body = FieldWriter::default();
        record.encode(&mut body);
        let share = Share { bytes: 0, disk: frame_bytes(body.0.len()) };
        self.take_room(&mut self.ring.lock(), share)?;
        let mut ring = self.lead();
        let written = MutexGuard::unlocked(&mut ring, || {
            self.log.append_local(1, &body.0)?;
            self.log.sync()?;
            Ok((self.log.end(), self.log.room()))
        });
        ring.give_back(share);
        if let Ok((end, room)) = &written {
            ring.room = *room;
            self.shared.set_durable(Durable { tid: self.log.durable_tid(), end: *end });
        }
        self.end_lead(&mut ring);
        written.map(|(end, _)| end)
    }

    /// Most objects that are born without an intent of their own.
    pub(super) fn most_births(&self) -> usize {
        MOST_BIRTHS.min(self.most_entries() / 2)
    }

    /// What one checkpoint can hold.
    fn most_entries(&self) -> usize {
        (self.log.max_body() - CHECKPOINT_BYTES) / ENTRY_BYTES
    }

    pub(super) fn is_hot_set_full(&self) -> bool {
        self.hot.counts().0 >= self.most_hot()
    }

    fn most_hot(&self) -> usize {
        MOST_HOT.min(self.most_entries() / 8)
    }

    /// Asks for a checkpoint when many objects are hot, and waits for it when they are too many.
    pub(super) fn wait_cooler(&self, ring: &mut MutexGuard<'_, Ring>) -> Result<(), JournalError> {
        let (intents, births) = self.hot.counts();
        if intents >= self.most_hot() || births >= self.most_births() {
            self.want_checkpoint(ring);
        }
        while self.hot.counts().0 >= 2 * self.most_hot() && ring.checkpointers > 0 {
            ring.sound()?;
            self.want_checkpoint(ring);
            self.done.wait(ring);
        }
        Ok(())
    }

    pub(super) fn want_checkpoint(&self, ring: &mut Ring) {
        if !ring.checkpoint_wanted {
            ring.checkpoint_wanted = true;
            self.checkpoint_due.notify_all();
        }
    }

    /// Asks for a checkpoint when a recovery would have much to read, or the log much to keep.
    pub(super) fn want_checkpoint_when_long(&self, ring: &mut Ring, end: Position) {
        let Some(last) = self.checkpoints.last.try_lock() else {
            return;
        };
        let segments = end.segment.saturating_sub(last.from.segment);
        let long = segments * self.options.segment_bytes + end.offset >= last.from.offset + self.checkpoint_bytes();
        drop(last);
        if long {
            self.want_checkpoint(ring);
        }
    }

    fn checkpoint_bytes(&self) -> u64 {
        LOG_BYTES.min(self.options.cap_bytes / CAP_PARTS).max(self.options.segment_bytes)
    }

    /// Objects without a name that somebody holds open: a crash ends them, and no record says so.
    fn orphans_at_checkpoint(&self) -> Vec<u8> {
        self.orphans.lock().iter().flat_map(|oid: &Oid| oid.to_bytes()).collect()
    }
}
