//! What waits for its group commit, and the accounts of the room it takes.

use std::time::Instant;

use super::hot::Asked;
use super::shared::{Extent, Shared};
use crate::base::{Tid, Timespec};
use crate::journal::error::JournalError;
use crate::journal::log::{Room, frame_bytes};

/// What an extent of the ring takes beside its record.
const PREFIX_BYTES: usize = 8;

/// Room on disk for the intents of one change, in a frame of their own.
pub(super) const INTENTS_ROOM: Share = Share { bytes: 0, disk: 4096 };

/// Room that a record takes.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Share {
    /// Bytes in memory.
    pub(super) bytes: usize,
    /// Bytes on disk at worst: a frame of its own.
    pub(super) disk: u64,
}

/// Whether someone writes to the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leader {
    /// Nobody; the next who must wait may.
    None,
    /// Somebody does.
    Busy,
}

/// What the committer does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Committer {
    /// It commits, or looks at the clock.
    Active,
    /// It waits for a record, without a deadline.
    Resting,
}

/// Whether changes are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    /// Yes.
    Open,
    /// They wait: the log is at its cap, and a target is waited for.
    Blocked,
    /// They wait for a moment: a new epoch begins.
    Paused,
    /// No more.
    Closed,
}

/// The state under the ring's lock.
pub(super) struct Ring {
    /// Records with the TIDs that end with `last`, in order.
    pending: Vec<Extent>,
    /// Behind the last of them, counted in bytes since the ring was made.
    head: u64,
    /// The room of the records in `pending`.
    pending_share: Share,
    /// What is in the log already, and not known to be durable; the oldest first.
    written: Vec<Batch>,
    /// Intents that wait, and their room.
    intents: Vec<Asked>,
    intents_share: Share,
    /// Intents given, and those of them that are durable.
    pub(super) intents_given: u64,
    pub(super) intents_durable: u64,
    /// Threads that make checkpoints.
    pub(super) checkpointers: usize,
    /// A checkpoint is due before its time.
    pub(super) checkpoint_wanted: bool,
    /// Last TID given.
    pub(super) last: Tid,
    /// Last durable TID.
    pub(super) durable: Tid,
    /// All room that is taken: reserved, pending, being written.
    used: Share,
    /// Most bytes in memory.
    pub(super) most_bytes: usize,
    /// What the log has ready.
    pub(super) room: Room,
    pub(super) leader: Leader,
    /// When the last commit ended.
    pub(super) last_commit: Option<Instant>,
    pub(super) committer: Committer,
    /// The log has gone on to another segment since the committer looked.
    pub(super) rolled: bool,
    /// The first failure of the log.
    pub(super) failed: Option<String>,
    /// Whether changes are taken.
    pub(super) gate: Gate,
    /// The committer shall end.
    pub(super) stop: bool,
}

/// What is written to the log in one go.
pub(super) struct Batch {
    pub(super) records: Vec<Extent>,
    pub(super) intents: Vec<Asked>,
    intents_upto: u64,
    /// Where the ring is free up to when they are durable.
    pub(super) end: u64,
    pub(super) first: Tid,
    pub(super) last: Tid,
    share: Share,
}

/// Why a reservation must wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lack {
    /// Records must become durable first.
    Commit,
    /// The next segment must be allocated first.
    Segment,
}

impl Ring {
    /// An empty ring that gives the TID after `last` next.
    pub(super) fn new(last: Tid, most_bytes: usize, room: Room) -> Ring {
        Ring {
            pending: Vec::new(),
            head: 0,
            written: Vec::new(),
            intents: Vec::new(),
            intents_share: Share::default(),
            intents_given: 0,
            intents_durable: 0,
            checkpointers: 0,
            checkpoint_wanted: false,
            pending_share: Share::default(),
            last,
            durable: last,
            used: Share::default(),
            most_bytes,
            room,
            leader: Leader::None,
            last_commit: None,
            committer: Committer::Active,
            rolled: false,
            failed: None,
            gate: Gate::Open,
            stop: false,
        }
    }

    /// An error when no more changes are taken.
    pub(super) fn open(&self) -> Result<(), JournalError> {
        let reason = match (&self.failed, self.gate) {
            (Some(reason), _) => reason.clone(),
            (None, Gate::Closed) => "it is closed".to_owned(),
            (None, _) => return Ok(()),
        };
        Err(JournalError::Failed { reason })
    }

    /// An error when the log has failed.
    pub(super) fn sound(&self) -> Result<(), JournalError> {
        match &self.failed {
            None => Ok(()),
            Some(reason) => Err(JournalError::Failed { reason: reason.clone() }),
        }
    }

    /// Takes room for one record, or says what is lacking.
    ///
    /// The disk's side is the worst case, each record in a frame of its own. It is counted against the whole next
    /// segment where one waits: a frame that does not fit into the open one goes there.
    pub(super) fn take_room(&mut self, share: Share) -> Result<(), Lack> {
        if self.used.bytes + share.bytes > self.most_bytes {
            return Err(Lack::Commit);
        }
        let disk = self.used.disk + share.disk;
        match self.room {
            Room::Rest(bytes) if disk > bytes => return Err(Lack::Segment),
            Room::Segment(bytes) if disk > bytes => return Err(Lack::Commit),
            _ => {}
        }
        self.used.add(share);
        Ok(())
    }

    /// Takes room that was just given back.
    pub(super) fn take(&mut self, share: Share) {
        self.used.add(share);
    }

    /// Gives room back.
    pub(super) fn give_back(&mut self, share: Share) {
        self.used.sub(share);
    }

    /// Whether any room is taken: records wait, or changes are under way.
    pub(super) fn in_use(&self) -> bool {
        self.used.bytes > 0 || self.used.disk > 0
    }

    /// Gives the next TID and an extent for a record of `len` bytes; `share` was taken before. The record is to be finished
    /// with these and put there, without the ring's lock.
    pub(super) fn push(&mut self, shared: &Shared, len: usize, share: Share) -> (Tid, i64, Extent) {
        self.last = self.last.next();
        shared.set_last(self.last);
        let (extent, head) = shared.take(self.head, len);
        self.head = head;
        self.pending.push(extent);
        self.pending_share.add(share);
        (self.last, Timespec::now().as_nanos(), extent)
    }

    /// Queues intents; `share` was taken before.
    pub(super) fn push_intents(&mut self, asked: &[Asked], share: Share) {
        self.intents.extend_from_slice(asked);
        self.intents_given += asked.len() as u64;
        self.intents_share.add(share);
    }

    /// Whether anything waits.
    pub(super) fn has_work(&self) -> bool {
        self.has_unwritten() || !self.written.is_empty()
    }

    /// Whether anything waits that is not in the log yet.
    pub(super) fn has_unwritten(&self) -> bool {
        !self.pending.is_empty() || !self.intents.is_empty()
    }

    /// Whether intents wait, which somebody may wait for.
    pub(super) fn has_intents(&self) -> bool {
        !self.intents.is_empty()
    }

    /// Takes everything that is not in the log yet.
    pub(super) fn take_batch(&mut self) -> Batch {
        let records = std::mem::take(&mut self.pending);
        let mut share = std::mem::take(&mut self.pending_share);
        share.add(std::mem::take(&mut self.intents_share));
        Batch {
            first: Tid(self.last.0 + 1 - records.len() as u64),
            last: self.last,
            end: self.head,
            share,
            records,
            intents: std::mem::take(&mut self.intents),
            intents_upto: self.intents_given,
        }
    }

    /// The batch is in the log, and waits for the next sync.
    pub(super) fn note_written(&mut self, batch: Batch) {
        self.written.push(batch);
    }

    /// What is in the log and waits for a sync.
    pub(super) fn take_written(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.written)
    }

    /// The batch is on the disk, and all before it.
    pub(super) fn settle(&mut self, batch: &Batch) {
        self.durable = batch.last;
        self.intents_durable = batch.intents_upto;
        self.used.sub(batch.share);
    }
}

impl Share {
    /// Room for a record of `len` bytes.
    pub(super) fn of(len: usize) -> Share {
        Share { bytes: len + PREFIX_BYTES, disk: frame_bytes(len) }
    }

    /// Both.
    pub(super) fn with(mut self, other: Share) -> Share {
        self.add(other);
        self
    }

    fn add(&mut self, other: Share) {
        self.bytes += other.bytes;
        self.disk += other.disk;
    }

    fn sub(&mut self, other: Share) {
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.disk = self.disk.saturating_sub(other.disk);
    }
}
