//! Epochs: the unbroken runs of a volume's history, and where each left the one before.

use rusqlite::{Row, Transaction};

use super::{Store, from_sql, to_sql};
use crate::base::{ChainDigest, EpochId, Tid, Timespec};
use crate::journal::error::JournalError;
use crate::journal::log::ChainEnd;

/// An epoch. Its history is that of its parent up to the fork, and its own from there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochRow {
    /// Counts up by one.
    pub number: u64,
    /// Its name.
    pub id: EpochId,
    /// The epoch that it left; none for a volume's first.
    pub parent: Option<EpochId>,
    /// The last place that it shares with its parent.
    pub fork: ChainEnd,
    /// When it began, nanoseconds since 1970.
    pub created_ns: i64,
}

impl Store {
    /// All epochs, oldest first; the last one is current.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn epochs(&self) -> Result<Vec<EpochRow>, JournalError> {
        self.read("epochs", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT number, id, parent, fork_tid, fork_digest, created_ns FROM epoch ORDER BY number",
            )?;
            let rows = statement.query_map([], epoch_row)?;
            rows.collect()
        })
    }
}

/// Begins the epoch `id` as part of a larger transaction: it leaves the one that is current, if there is one, at `fork`.
pub(in crate::journal) fn put_epoch(tx: &Transaction<'_>, id: EpochId, fork: ChainEnd) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO epoch (number, id, parent, fork_tid, fork_digest, created_ns)
         SELECT 1 + coalesce(max(number), 0), ?1, (SELECT id FROM epoch ORDER BY number DESC LIMIT 1), ?2, ?3, ?4
         FROM epoch",
        (&id.0[..], to_sql(fork.tid.0), &fork.digest.0[..], Timespec::now().as_nanos()),
    )?;
    Ok(())
}

fn epoch_row(row: &Row<'_>) -> rusqlite::Result<EpochRow> {
    Ok(EpochRow {
        number: from_sql(row.get(0)?),
        id: EpochId(row.get(1)?),
        parent: row.get::<_, Option<[u8; 16]>>(2)?.map(EpochId),
        fork: ChainEnd { tid: Tid(from_sql(row.get(3)?)), digest: ChainDigest(row.get(4)?) },
        created_ns: row.get(5)?,
    })
}
