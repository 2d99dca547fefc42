//! The mark: where the log was known to end, and whether the last stop was clean.

use rusqlite::Transaction;

use crate::base::Tid;
use crate::journal::error::JournalError;
use crate::journal::log::{Position, SegmentLog};
use crate::journal::store::{Store, put_meta};

const KEY: &str = "mark";
const CLEAN: &str = "clean";
const BYTES: usize = 32;

/// Whether the volume was closed in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// It is open, or died.
    Open,
    /// The mark is the log's very end.
    Clean,
}

/// A lower bound of the log: it reached at least this far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    /// Last TID given. May be above `log_last` after a jump: no record has a TID between them.
    pub(super) tid: Tid,
    /// Last TID in the log.
    pub(super) log_last: Tid,
    /// Where the log ended.
    pub(super) end: Position,
}

impl Mark {
    /// The mark of a log that is durable, when `tid` was given last.
    pub(super) fn of(log: &SegmentLog, tid: Tid) -> Mark {
        Mark { tid, log_last: log.last_tid(), end: log.end() }
    }

    /// Reads the mark; `None` in a new database.
    pub(super) fn load(store: &Store) -> Result<Option<(Mark, Stop)>, JournalError> {
        let Some(bytes) = store.meta_get(KEY)? else {
            return Ok(None);
        };
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
            .collect();
        let [tid, log_last, segment, offset] = words[..] else {
            return Err(JournalError::Row { what: "meta.mark", value: format!("{} bytes", bytes.len()) });
        };
        let mark = Mark { tid: Tid(tid), log_last: Tid(log_last), end: Position { segment, offset } };
        let stop = match store.meta_get(CLEAN)?.as_deref() {
            Some([1]) => Stop::Clean,
            _ => Stop::Open,
        };
        Ok(Some((mark, stop)))
    }

    /// Writes it as part of a transaction.
    pub(super) fn put(&self, tx: &Transaction<'_>, stop: Stop) -> rusqlite::Result<()> {
        let mut bytes = Vec::with_capacity(BYTES);
        for word in [self.tid.0, self.log_last.0, self.end.segment, self.end.offset] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        put_meta(tx, &[(KEY, &bytes), (CLEAN, &[u8::from(stop == Stop::Clean)])])
    }

    /// The last TID that a cursor may rightly hold when the log ends at `log_last`: the TIDs of a jump count as soon as
    /// the log is as long as it was at the jump.
    pub(super) fn known_end(&self, log_last: Tid) -> Tid {
        match log_last >= self.log_last {
            true => log_last.max(self.tid),
            false => log_last,
        }
    }
}
