//! The segment index: which segment files there are and what they hold.

use rusqlite::{OptionalExtension, Transaction};

use super::{Store, from_sql, to_sql};
use crate::base::{ChainDigest, EpochId, Tid};
use crate::journal::error::JournalError;
use crate::journal::log::ChainEnd;

/// Rows of trimmed segments that are kept for the record.
const MOST_FREE_ROWS: i64 = 1024;

/// A segment as the index shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::journal) struct SegmentRow {
    /// Its number.
    pub(in crate::journal) no: u64,
    /// File name.
    pub(in crate::journal) file: String,
    /// The epoch in which it was begun.
    pub(in crate::journal) epoch: EpochId,
    /// The end of the chain before it.
    pub(in crate::journal) base: ChainEnd,
    /// Last TID in it.
    pub(in crate::journal) last: Tid,
    /// Bytes of it that hold frames, header included.
    pub(in crate::journal) bytes: u64,
    /// Whether another segment follows.
    pub(in crate::journal) sealed: Sealed,
}

/// Whether a segment is still written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::journal) enum Sealed {
    /// The last one.
    Open,
    /// Full; its last TID is final.
    Sealed,
}

impl Store {
    /// Makes the index say what `rows` say; every other row becomes `free`.
    pub(in crate::journal) fn segments_set(&self, rows: &[SegmentRow]) -> Result<(), JournalError> {
        self.write("segment index", |tx| put_segments(tx, rows))
    }

    /// The digest at the beginning of a segment whose records follow `tid`, also of one that is trimmed.
    pub(in crate::journal) fn digest_before_segment(&self, tid: Tid) -> Result<Option<ChainDigest>, JournalError> {
        self.read("segment index", |connection| {
            connection
                .query_row("SELECT digest FROM segment WHERE first_tid = ?1 LIMIT 1", [to_sql(tid.0 + 1)], |row| {
                    row.get(0).map(ChainDigest)
                })
                .optional()
        })
    }

    /// The highest last TID of a sealed segment that was not freed.
    pub(in crate::journal) fn sealed_end(&self) -> Result<Tid, JournalError> {
        self.read("segment index", |connection| {
            connection.query_row("SELECT coalesce(max(last_tid), 0) FROM segment WHERE state = 'sealed'", [], |row| {
                Ok(Tid(from_sql(row.get(0)?)))
            })
        })
    }
}

/// Writes the index as part of a larger transaction.
pub(in crate::journal) fn put_segments(tx: &Transaction<'_>, rows: &[SegmentRow]) -> rusqlite::Result<()> {
    let first = rows.first().map_or(u64::MAX >> 1, |row| row.no);
    tx.execute("UPDATE segment SET state = 'free' WHERE no < ?1", [to_sql(first)])?;
    let mut statement = tx.prepare_cached(
        "INSERT OR REPLACE INTO segment (no, file, epoch, first_tid, digest, last_tid, bytes, state)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for row in rows {
        statement.execute((
            to_sql(row.no),
            &row.file,
            &row.epoch.0[..],
            to_sql(row.base.tid.0 + 1),
            &row.base.digest.0[..],
            to_sql(row.last.0),
            to_sql(row.bytes),
            match row.sealed {
                Sealed::Open => "open",
                Sealed::Sealed => "sealed",
            },
        ))?;
    }
    tx.execute("DELETE FROM segment WHERE state = 'free' AND no < ?1", [to_sql(first) - MOST_FREE_ROWS])?;
    Ok(())
}
