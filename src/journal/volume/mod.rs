//! A source's journal: the ring that gives TIDs, group commit, the log and the store together.

mod change;
mod checkpoint;
mod commit;
mod fork;
mod found;
mod hot;
mod mark;
mod oids;
mod open;
mod recover;
mod reserve;
mod retention;
mod ring;
mod shared;
mod slots;
mod space;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use parking_lot::{Condvar, Mutex};

use super::error::JournalError;
use super::log::{Chunk, SegmentLog, SegmentReader};
use super::store::{EpochRow, Store};
use crate::base::{ChainDigest, EpochId, Oid, Position, Space, Tid, VolumeUuid};
use checkpoint::Checkpoints;
use hot::HotSet;
use ring::Ring;
use shared::Shared;
use slots::Slots;

pub use change::InFlight;
pub use checkpoint::{Checkpointer, SyncTree};
pub use found::{Founding, OwnChanges};
pub use oids::OidMap;
pub use open::LastStop;
pub use reserve::Reservation;
pub use shared::boot_id;
pub use slots::UnderWay;

/// Sizes and times.
#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// Size of a segment file in bytes, a multiple of 4096. No record can be longer than half of it: below 8 MiB some
    /// changes that the kernel can ask for are refused.
    pub segment_bytes: u64,
    /// Most bytes of segments. Close to it the oldest records become work for the targets that have not received them.
    pub cap_bytes: u64,
    /// What happens there.
    pub when_full: WhenFull,
    /// Most bytes of records that are not durable yet; at most half a segment counts.
    pub ring_bytes: usize,
    /// Longest time that a record waits for its commit under load.
    pub commit_interval: Duration,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions {
            segment_bytes: 64 << 20,
            cap_bytes: 8 << 30,
            when_full: WhenFull::Degrade,
            ring_bytes: 32 << 20,
            commit_interval: Duration::from_millis(20),
        }
    }
}

/// What happens when the log is close to its cap because a target does not follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WhenFull {
    /// What slow targets have not received becomes work for them. No change waits.
    #[default]
    Degrade,
    /// Changes wait until the target follows.
    Block,
}

/// Whose journal it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The volume.
    pub volume: VolumeUuid,
    /// The volume instance, for the oids of objects that are born here.
    pub space: Space,
    /// The current epoch.
    pub epoch: EpochId,
    /// Version of the record encoding.
    pub format: u16,
}

/// A volume's journal, open for changes. One per directory: the lock file sees to that, until the journal and all its
/// readers are dropped.
pub struct Journal {
    core: Arc<Core>,
    /// The committer, until the journal is dropped.
    thread: Option<JoinHandle<()>>,
}

/// What the journal, its readers and its committer thread share.
struct Core {
    /// Its space is in `object_space`, its epoch in `epoch`.
    identity: Identity,
    /// The current epoch. Rank: a leaf, held for a copy.
    epoch: Mutex<EpochId>,
    /// Space of the objects that are born here.
    object_space: AtomicU32,
    options: JournalOptions,
    log: SegmentLog,
    store: Store,
    /// Protects the order of TIDs, the records that wait and the room. Rank: below the object locks, above the log's
    /// writer and the store in the sense that neither may be taken while it is held. Held for a few copies of words and
    /// the checksum of one header; never across a system call, never while payload is copied.
    ring: Mutex<Ring>,
    /// Room was given back. With `ring`.
    space: Condvar,
    /// A commit ended, well or not. With `ring`.
    done: Condvar,
    /// The committer has something to do. With `ring`.
    work: Condvar,
    /// A checkpoint is due. With `ring`.
    checkpoint_due: Condvar,
    /// What survives a kill.
    shared: Shared,
    slots: Slots,
    hot: HotSet,
    checkpoints: Checkpoints,
    /// Protects the list of objects without a name that are held open. Rank: a leaf.
    orphans: Mutex<HashSet<Oid>>,
    /// What objects of other instances are called here. Emptied when the tree turns out to be another. Rank: a leaf.
    oids: Mutex<Arc<OidMap>>,
    /// Another copy went on without this one: nothing is taken any more.
    superseded: AtomicBool,
    /// That the log fills was said; only the committer asks.
    warned: AtomicBool,
    /// Only for its lock, which ends with it.
    _lock: Flock<File>,
}

/// Reads the durable records after a place. Independent of the journal's locks; belongs to one thread.
pub struct JournalReader {
    core: Arc<Core>,
    inner: SegmentReader,
}

impl Journal {
    /// Whose journal it is.
    pub fn identity(&self) -> Identity {
        let epoch = *self.core.epoch.lock();
        Identity { space: Space(self.core.object_space.load(Ordering::SeqCst)), epoch, ..self.core.identity }
    }

    /// Names this store among all copies of the volume.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn unique_id(&self) -> Result<VolumeUuid, JournalError> {
        const KEY: &str = "unique";
        let store = &self.core.store;
        match store.meta_get(KEY)?.and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(VolumeUuid(bytes)),
            None => {
                let fresh = VolumeUuid::random();
                store.meta_set(KEY, &fresh.0)?;
                Ok(fresh)
            }
        }
    }

    /// Last TID given. Exact for a caller who holds the lock of the object in question.
    pub fn last_tid(&self) -> Tid {
        self.core.ring.lock().last
    }

    /// Every record up to here is on the disk.
    pub fn durable_tid(&self) -> Tid {
        self.core.ring.lock().durable
    }

    /// The end of what is durable: epoch, TID and digest of the chain of records up to it.
    pub fn position(&self) -> Position {
        // The TIDs of a jump count although the log ends before them: nothing lies between.
        let given = self.durable_tid();
        let end = self.core.log.durable_end();
        Position { epoch: *self.core.epoch.lock(), tid: given.max(end.tid), digest: end.digest }
    }

    /// Digest of the chain of records up to `tid`; `None` when that is no longer, or not yet, known. Where a segment ended
    /// and where an epoch began is known for long after the records are gone.
    ///
    /// # Errors
    /// `Sqlite`; `Io`, `Damaged` or `Record` when the place cannot be read.
    pub fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        let log = &self.core.log;
        if tid >= log.oldest_kept() {
            let durable = self.durable_tid();
            let known = log.digest_at(if tid <= durable { tid.min(log.durable_tid()) } else { tid });
            // Unless it was trimmed meanwhile: then the list of segments has it.
            if tid >= log.oldest_kept() {
                return known;
            }
        }
        if let Some(digest) = self.core.store.digest_before_segment(tid)? {
            return Ok(Some(digest));
        }
        let forks = self.core.store.epochs()?;
        Ok(forks.iter().find(|epoch| epoch.fork.tid == tid).map(|epoch| epoch.fork.digest))
    }

    /// The volume's epochs, oldest first; the last one is current.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn epochs(&self) -> Result<Vec<EpochRow>, JournalError> {
        self.core.store.epochs()
    }

    /// Waits until something after `tid` is durable, the journal fails or closes, or `timeout` has passed. Returns the
    /// last durable TID.
    pub fn wait_durable_past(&self, tid: Tid, timeout: Duration) -> Tid {
        let until = Instant::now() + timeout;
        let mut ring = self.core.ring.lock();
        while ring.durable <= tid && ring.open().is_ok() {
            if self.core.done.wait_until(&mut ring, until).timed_out() {
                break;
            }
        }
        ring.durable
    }

    /// Reads from the first record after `after`.
    ///
    /// # Errors
    /// [`JournalError::Trimmed`] when `after` is older than what is kept.
    pub fn reader(&self, after: Tid) -> Result<JournalReader, JournalError> {
        Ok(JournalReader { core: Arc::clone(&self.core), inner: self.core.log.reader(after)? })
    }

    /// The oldest cursor that can be served: every record after it is there.
    pub fn oldest_kept(&self) -> Tid {
        self.core.log.oldest_kept()
    }

    /// Size of the segments in use, in bytes.
    pub fn bytes_used(&self) -> u64 {
        self.core.log.bytes_used()
    }

    /// The most bytes of segments that are kept for targets.
    pub fn cap_bytes(&self) -> u64 {
        self.core.options.cap_bytes
    }

    /// About how many bytes of records follow `tid`: exact by whole segments, and within one by its share of TIDs.
    pub fn bytes_after(&self, tid: Tid) -> u64 {
        self.core.log.bytes_after(tid)
    }

    /// What happens when that much is in use.
    pub fn when_full(&self) -> WhenFull {
        self.core.options.when_full
    }

    /// System calls that wrote or synced records since the journal was opened.
    pub fn log_calls(&self) -> u64 {
        self.core.log.calls()
    }

    /// Why the volume is Failed, if it is. Opening it anew clears that.
    pub fn failed(&self) -> Option<String> {
        self.core.ring.lock().failed.clone()
    }

    /// What objects that were not born in this instance are called.
    pub fn oids(&self) -> Arc<OidMap> {
        self.core.oids.lock().clone()
    }

    /// Targets, cursors, work and events.
    pub fn store(&self) -> &Store {
        &self.core.store
    }
}

impl JournalReader {
    /// The next durable records with TIDs up to `upto`: at most `max_bytes` of them, but at least one. `None` when there
    /// is none yet; then [`Journal::wait_durable_past`] waits.
    ///
    /// # Errors
    /// [`JournalError::Trimmed`] when the cap has taken the reader's place. `Damaged` or `Record` when durable bytes are
    /// not what was written; then every target that still needed them has been moved behind them, with compare work.
    /// After any of these the cursor in the store says where to go on.
    pub fn next_chunk(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        let result = self.inner.next_chunk(upto, max_bytes);
        if let Err(error @ (JournalError::Damaged { .. } | JournalError::Record { .. })) = &result {
            self.core.skip_damage(self.inner.at(), &error.to_string())?;
        }
        result
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.core.ring.lock().stop = true;
        self.core.work.notify_all();
        self.core.done.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
