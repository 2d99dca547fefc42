//! `state.db`: everything of a volume that is small and transactional. SCHEMA.md has the tables.

mod doubts;
mod epochs;
mod events;
mod mirror;
mod overflow;
mod schema;
mod segments;
mod targets;
mod work;

use std::path::Path;

use nix::errno::Errno;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::error::{JournalError, sql, std_io};
use crate::base::{Ballast, faults, open_database, set_pragma};

pub(super) use doubts::renew_mark;
pub use epochs::EpochRow;
pub(super) use epochs::put_epoch;
pub(super) use events::put_event;
pub use events::{EventRow, Level};
pub(super) use overflow::{Collapsed, collapse, put_suspects};
pub(super) use segments::{Sealed, SegmentRow};
pub use targets::AWAITED;
pub use targets::{Own, Rejoin, Said, Sent, TargetId, TargetRow};
pub(super) use targets::{all_targets, bound_sent, lose_place, put_awaited};
pub use work::{NewWork, WorkKind, WorkReason, WorkRow};

/// The one connection to a volume's `state.db`. Every method is one short transaction, durable when it returns unless it says
/// otherwise.
pub struct Store {
    /// Protects the connection. Rank: below the log's writer and the ring; no other lock is taken while it is held.
    /// Held across one transaction (a disk sync), so nobody may want it while holding an object lock.
    connection: Mutex<Synced>,
    /// Room for the database on a full disk. Rank: a leaf.
    ballast: Mutex<Ballast>,
}

/// A connection, and when its transactions reach the disk.
struct Synced {
    connection: Connection,
    /// `None` when that was to be changed and may not have been.
    lasting: Option<Lasting>,
}

/// When a transaction is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    /// When it returns.
    Now,
    /// With the next one that is durable when it returns. Until then a process that is killed loses nothing of it; a machine without
    /// power loses it with everything that came after it, so that what is found is always a past state of the database
    /// (<https://www.sqlite.org/pragma.html#pragma_synchronous>, NORMAL in WAL mode).
    WithNext,
}

impl Synced {
    /// The connection, for one transaction.
    fn lasting(&mut self, lasting: Lasting) -> Result<&mut Connection, JournalError> {
        if self.lasting.take() != Some(lasting) {
            let (value, wanted) = match lasting {
                Lasting::Now => ("FULL", "2"),
                Lasting::WithNext => ("NORMAL", "1"),
            };
            let path = Path::new(self.connection.path().unwrap_or("state.db"));
            set_pragma(&self.connection, path, "synchronous", value, wanted)?;
        }
        self.lasting = Some(lasting);
        Ok(&mut self.connection)
    }
}

impl Store {
    /// Opens or creates the database at `path`.
    ///
    /// # Errors
    /// [`JournalError::Format`] for a newer schema; else as [`open_database`].
    pub fn open(path: &Path) -> Result<Store, JournalError> {
        let mut connection = open_database(path)?;
        schema::prepare(&mut connection)?;
        let ballast = Ballast::take(path.parent().unwrap_or(Path::new("."))).map_err(std_io("take room", path))?;
        let connection = Synced { connection, lasting: Some(Lasting::Now) };
        Ok(Store { connection: Mutex::new(connection), ballast: Mutex::new(ballast) })
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// `Sqlite`, as for every method here.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>, JournalError> {
        self.read("read meta", |connection| {
            connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
        })
    }

    /// Sets `key`.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn meta_set(&self, key: &str, value: &[u8]) -> Result<(), JournalError> {
        self.meta_set_all(&[(key, value)])
    }

    /// Sets several keys in one transaction.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn meta_set_all(&self, pairs: &[(&str, &[u8])]) -> Result<(), JournalError> {
        self.write("write meta", |tx| put_meta(tx, pairs))
    }

    /// Runs `body` in one transaction that is durable when this returns.
    pub(super) fn write<T>(
        &self,
        what: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        self.write_lasting(Lasting::Now, what, body)
    }

    /// As [`Store::write`], durable when `lasting` says.
    fn write_lasting<T>(
        &self,
        lasting: Lasting,
        what: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        faults::point("journal.sqlite").map_err(super::error::io(what, Path::new("state.db")))?;
        let mut synced = self.connection.lock();
        let connection = synced.lasting(lasting)?;
        let run = || {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = body(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run().map_err(sql(what)).inspect_err(|error: &JournalError| {
            // The transaction is gone with the error. The next one finds the room.
            if error.errno() == Errno::ENOSPC {
                self.ballast.lock().release();
            }
        })
    }

    /// Runs `body` on the connection without a transaction.
    fn read<T>(
        &self,
        what: &'static str,
        body: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        body(&self.connection.lock().connection).map_err(sql(what))
    }
}

/// Sets keys of `meta`.
pub(super) fn put_meta(tx: &Transaction<'_>, pairs: &[(&str, &[u8])]) -> rusqlite::Result<()> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO meta (key, value) VALUES (?1, ?2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    )?;
    for (key, value) in pairs {
        statement.execute((key, value))?;
    }
    Ok(())
}

/// SQLite's integers are signed: a TID or offset is stored as the same 64 bits. Neither comes near 2^63.
pub(super) fn to_sql(value: u64) -> i64 {
    value as i64
}

/// The inverse of [`to_sql`].
pub(super) fn from_sql(value: i64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn synchronous(store: &Store) -> i64 {
        store.read("pragma", |connection| connection.pragma_query_value(None, "synchronous", |row| row.get(0))).unwrap()
    }

    #[test]
    fn what_waits_for_the_next_transaction_does_not_make_that_wait_too() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let put = |lasting, key| store.write_lasting(lasting, "test", |tx| put_meta(tx, &[(key, b"value")])).unwrap();
        for (lasting, key, expected) in
            [(Lasting::WithNext, "first", 1), (Lasting::WithNext, "second", 1), (Lasting::Now, "third", 2)]
        {
            put(lasting, key);
            assert_eq!(synchronous(&store), expected, "{key}");
            // A process that opens it after a kill finds it either way.
            assert_eq!(Store::open(&path).unwrap().meta_get(key).unwrap().as_deref(), Some(&b"value"[..]));
        }
    }
}
