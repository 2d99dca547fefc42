//! What a sender replays: a source's journal, or what a copy has received and passes on.

use std::time::Duration;

use super::error::JournalError;
use super::log::Chunk;
use super::store::{EpochRow, Store};
use super::volume::{Identity, Journal, JournalReader};
use crate::base::{ChainDigest, EpochId, History, Position, Spaces, Tid};

/// Which part of a chain a host plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Changes are made here.
    Origin,
    /// A copy that passes on what it gets, with the origin's TIDs.
    Relay,
}

/// Durable records in one order, and what is written down of those who get them.
pub trait Replay: Send + Sync {
    /// Who made the records.
    fn part(&self) -> Part;

    /// Targets, cursors, work and events.
    fn store(&self) -> &Store;

    /// Whose records they are.
    fn identity(&self) -> Identity;

    /// Whose objects they may speak of.
    ///
    /// # Errors
    /// `Sqlite`, as for all that follow.
    fn spaces(&self) -> Result<Spaces, JournalError>;

    /// The volume's epochs, oldest first; the last one is current.
    ///
    /// # Errors
    /// `Sqlite`, `Io`.
    fn epochs(&self) -> Result<Vec<EpochRow>, JournalError>;

    /// The same, as it is told to others.
    ///
    /// # Errors
    /// As [`Replay::epochs`].
    fn history(&self) -> Result<History, JournalError> {
        let position = |row: &EpochRow| Position { epoch: row.id, tid: row.fork.tid, digest: row.fork.digest };
        Ok(History::new(self.identity().volume, self.epochs()?.iter().map(position).collect()))
    }

    /// The last TID that was given, as far as it is known here.
    fn last_tid(&self) -> Tid;

    /// Records up to here may be sent.
    fn durable_tid(&self) -> Tid;

    /// The oldest place that can be read from: every record after it is there.
    fn oldest_kept(&self) -> Tid;

    /// Digest of the chain of records up to `tid`; `None` when that is no longer, or not yet, known.
    ///
    /// # Errors
    /// When the place cannot be read.
    fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError>;

    /// Reads from the first record after `after`.
    ///
    /// # Errors
    /// `Trimmed` when that is gone.
    fn read_after(&self, after: Tid) -> Result<Box<dyn ReplayReader>, JournalError>;

    /// Waits until something after `tid` may be sent, at most `timeout`; returns how far that is.
    fn wait_durable_past(&self, tid: Tid, timeout: Duration) -> Tid;

    /// Makes everything up to `tid` durable.
    ///
    /// # Errors
    /// `Failed`.
    fn commit(&self, tid: Tid) -> Result<(), JournalError>;

    /// Frees what no target needs any more.
    ///
    /// # Errors
    /// `Io`, `Sqlite`.
    fn trim(&self) -> Result<(), JournalError>;

    /// Why nothing is sent any more, if so.
    fn failed(&self) -> Option<String>;

    /// Whether the tree is a past state of its source. That of the origin is itself.
    fn is_settled(&self) -> bool;

    /// The mark of what is known to be in doubt (`store/doubts.rs`); 0 when none can be told.
    ///
    /// # Errors
    /// `Sqlite`.
    fn mark(&self) -> Result<u64, JournalError>;

    /// About how many bytes of records follow `tid`.
    fn bytes_after(&self, tid: Tid) -> u64;

    /// Begins a new epoch; see [`Journal::begin_epoch`].
    ///
    /// # Errors
    /// As that; `Failed` at a relay, which has no history of its own.
    fn begin_epoch(&self, seen: Tid, why: &str) -> Result<EpochId, JournalError>;

    /// Another copy went on without this one; see [`Journal::supersede`].
    ///
    /// # Errors
    /// `Sqlite`.
    fn supersede(&self, fork: Position) -> Result<(), JournalError>;
}

/// A place in the records that moves forward.
pub trait ReplayReader: Send {
    /// The next durable records with TIDs up to `upto`: at most `max_bytes` of them, but at least one; `None` when there is
    /// none yet.
    ///
    /// # Errors
    /// `Trimmed` when the place is gone; `Damaged`, `Record`, `Io` when it cannot be read.
    fn next_chunk(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError>;
}

impl ReplayReader for JournalReader {
    fn next_chunk(&mut self, upto: Tid, max_bytes: usize) -> Result<Option<Chunk>, JournalError> {
        JournalReader::next_chunk(self, upto, max_bytes)
    }
}

impl Replay for Journal {
    fn part(&self) -> Part {
        Part::Origin
    }

    fn store(&self) -> &Store {
        Journal::store(self)
    }

    fn identity(&self) -> Identity {
        Journal::identity(self)
    }

    fn spaces(&self) -> Result<Spaces, JournalError> {
        Journal::spaces(self)
    }

    fn epochs(&self) -> Result<Vec<EpochRow>, JournalError> {
        Journal::epochs(self)
    }

    fn last_tid(&self) -> Tid {
        Journal::last_tid(self)
    }

    fn durable_tid(&self) -> Tid {
        Journal::durable_tid(self)
    }

    fn oldest_kept(&self) -> Tid {
        Journal::oldest_kept(self)
    }

    fn digest_at(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        Journal::digest_at(self, tid)
    }

    fn read_after(&self, after: Tid) -> Result<Box<dyn ReplayReader>, JournalError> {
        Ok(Box::new(self.reader(after)?))
    }

    fn wait_durable_past(&self, tid: Tid, timeout: Duration) -> Tid {
        Journal::wait_durable_past(self, tid, timeout)
    }

    fn commit(&self, tid: Tid) -> Result<(), JournalError> {
        Journal::commit(self, tid).map(drop)
    }

    fn trim(&self) -> Result<(), JournalError> {
        Journal::trim(self)
    }

    fn failed(&self) -> Option<String> {
        Journal::failed(self)
    }

    fn is_settled(&self) -> bool {
        true
    }

    fn mark(&self) -> Result<u64, JournalError> {
        self.store().mark()
    }

    fn bytes_after(&self, tid: Tid) -> u64 {
        Journal::bytes_after(self, tid)
    }

    fn begin_epoch(&self, seen: Tid, why: &str) -> Result<EpochId, JournalError> {
        Journal::begin_epoch(self, seen, why)
    }

    fn supersede(&self, fork: Position) -> Result<(), JournalError> {
        Journal::supersede(self, fork)
    }
}
