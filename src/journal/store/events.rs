//! Events: what an operator should be able to read later, bounded.

use rusqlite::{Row, Transaction};

use super::{Store, TargetId};
use crate::base::Timespec;
use crate::journal::error::JournalError;

/// Most events that are kept; older ones go.
const MOST_EVENTS: i64 = 10_000;

/// How much an event matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Part of normal life.
    Info,
    /// Something degraded and is repaired by itself.
    Warning,
    /// Something was lost or failed.
    Error,
}

impl Level {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }

    fn from_word(word: &str) -> Level {
        match word {
            "info" => Level::Info,
            "warning" => Level::Warning,
            _ => Level::Error,
        }
    }
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRow {
    /// Its place in the order of events; never used twice.
    pub id: i64,
    /// Nanoseconds since 1970.
    pub time_ns: i64,
    /// How much it matters.
    pub level: Level,
    /// The target it is about, if about one.
    pub target: Option<TargetId>,
    /// What happened.
    pub text: String,
}

impl Store {
    /// Writes down that something happened now.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn event(&self, level: Level, target: Option<TargetId>, text: &str) -> Result<(), JournalError> {
        self.write("event", |tx| put_event(tx, level, target, text))
    }

    /// The newest `limit` events, newest first.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn events(&self, limit: usize) -> Result<Vec<EventRow>, JournalError> {
        self.read("events", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT id, ts, level, target, text FROM event ORDER BY id DESC LIMIT ?1")?;
            let rows = statement.query_map([limit as i64], read_event)?;
            rows.collect()
        })
    }

    /// The events behind the one numbered `id`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn events_after(&self, id: i64, limit: usize) -> Result<Vec<EventRow>, JournalError> {
        const ROWS: &str = "SELECT id, ts, level, target, text FROM event WHERE id > ?1 ORDER BY id LIMIT ?2";
        self.read("events", |connection| {
            let mut statement = connection.prepare_cached(ROWS)?;
            let rows = statement.query_map([id, limit as i64], read_event)?;
            rows.collect()
        })
    }
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        id: row.get(0)?,
        time_ns: row.get(1)?,
        level: Level::from_word(&row.get::<_, String>(2)?),
        target: row.get::<_, Option<i64>>(3)?.map(TargetId),
        text: row.get(4)?,
    })
}

/// Adds an event and drops what is too old, as part of a larger transaction.
pub(in crate::journal) fn put_event(
    tx: &Transaction<'_>,
    level: Level,
    target: Option<TargetId>,
    text: &str,
) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO event (ts, level, target, text) VALUES (?1, ?2, ?3, ?4)",
        (Timespec::now().as_nanos(), level.word(), target.map(|target| target.0), text),
    )?;
    tx.execute("DELETE FROM event WHERE id <= ?1", [tx.last_insert_rowid() - MOST_EVENTS])?;
    Ok(())
}
