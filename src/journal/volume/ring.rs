//! What waits for its group commit, and the accounts of the room it takes.

use std::time::Instant;

use crate::base::{Tid, Timespec};
use crate::journal::error::JournalError;
use crate::journal::log::Room;
use crate::record::{Draft, Encoded};

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

/// Whether changes are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    /// Yes.
    Open,
    /// They wait: the log is at its cap, and a target is waited for.
    Blocked,
    /// No more.
    Closed,
}

/// The state under the ring's lock.
pub(super) struct Ring {
    /// Records with the TIDs that end with `last`, in order.
    pending: Vec<Encoded>,
    /// The room of the records in `pending`.
    pending_share: Share,
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
    /// The committer waits for a record, without a deadline.
    pub(super) resting: bool,
    /// The log has gone on to another segment since the committer looked.
    pub(super) rolled: bool,
    /// The first failure of the log.
    pub(super) failed: Option<String>,
    /// Whether changes are taken.
    pub(super) gate: Gate,
    /// The committer shall end.
    pub(super) stop: bool,
}

/// What one group commit writes.
pub(super) struct Batch {
    pub(super) records: Vec<Encoded>,
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
            pending_share: Share::default(),
            last,
            durable: last,
            used: Share::default(),
            most_bytes,
            room,
            leader: Leader::None,
            last_commit: None,
            resting: false,
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

    /// Gives the draft the next TID. `share` was taken before.
    pub(super) fn push(&mut self, draft: Draft, share: Share) -> Tid {
        self.last = self.last.next();
        let record = draft.seal(self.last, Timespec::now().as_nanos());
        self.pending.push(record);
        self.pending_share.add(share);
        self.last
    }

    /// Number of records that wait.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes everything that waits.
    pub(super) fn take_batch(&mut self) -> Batch {
        let records = std::mem::take(&mut self.pending);
        Batch {
            first: Tid(self.last.0 - records.len() as u64 + 1),
            last: self.last,
            share: std::mem::take(&mut self.pending_share),
            records,
        }
    }

    /// The batch is on the disk.
    pub(super) fn settle(&mut self, batch: &Batch) {
        self.durable = batch.last;
        self.used.sub(batch.share);
    }
}

impl Share {
    fn add(&mut self, other: Share) {
        self.bytes += other.bytes;
        self.disk += other.disk;
    }

    fn sub(&mut self, other: Share) {
        self.bytes = self.bytes.saturating_sub(other.bytes);
        self.disk = self.disk.saturating_sub(other.disk);
    }
}
