//! Targets and their cursors.

use rusqlite::{Connection, OptionalExtension, Row, Transaction};

use super::doubts::renew_mark;
use super::work::{NewWork, put_compare_all, put_work};
use super::{Store, from_sql, to_sql};
use crate::base::{Commit, EpochId, Tid, Timespec, VolumeUuid};
use crate::journal::error::JournalError;

/// Names a target within its volume, for the life of `state.db`; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TargetId(pub i64);

/// What a target said last of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// Which copy it was: a directory that was wiped gets a new id.
    pub copy: VolumeUuid,
    /// Durable in its inbox.
    pub received: Tid,
    /// Durable in its tree.
    pub applied: Tid,
    /// The state that it was last made durable in.
    pub commit: Commit,
}

/// How far a copy can have followed this source. A position behind that was reached elsewhere: this source was put back to
/// an older state since, or is a clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Which copy the last session was with.
    pub copy: VolumeUuid,
    /// It was sent nothing behind this TID. No bound while the life of that session goes on.
    pub upto: Tid,
}

/// A target and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetRow {
    /// Its id.
    pub id: TargetId,
    /// Its name, unique in the volume.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// A word of the operator's or the sender's: `active` when added.
    pub state: String,
    /// Durable in the target's inbox up to here.
    pub received: Tid,
    /// Durable in the target's tree up to here.
    pub applied: Tid,
    /// The records up to here that it has not received were dropped: rows of work cover them. 0 when there are none.
    pub covered: Tid,
    /// Whether the work of its initial mirror was queued.
    pub mirrored: bool,
    /// The last session's end, when it was an error.
    pub last_error: Option<String>,
    /// When the last ack came, nanoseconds since 1970.
    pub last_ack_ns: Option<i64>,
    /// What it said last; `None` when it never did, or when that is worth nothing any more.
    pub said: Option<Said>,
    /// What it can have been sent; `None` before its first session.
    pub sent: Option<Sent>,
    /// What its own targets have durable in their trees; beyond every TID when it has none.
    pub downstream: Tid,
}

const COLUMNS: &str = "id, name, url, state, received, applied, covered, mirrored, last_error, last_ack_ns,
    said_copy, said_received, said_applied, said_commit, sent_copy, sent_upto, downstream";

impl Store {
    /// Adds a target that has no place in the log yet: it holds no segment. [`Store::reset_target`] gives it a place and
    /// work.
    ///
    /// # Errors
    /// `Sqlite` also when the name is taken.
    pub fn target_add(&self, name: &str, url: &str) -> Result<TargetId, JournalError> {
        self.write("add target", |tx| {
            tx.execute("INSERT INTO target (name, url) VALUES (?1, ?2)", (name, url))?;
            Ok(TargetId(tx.last_insert_rowid()))
        })
    }

    /// Adds a target with its cursor at `base` and `work` queued, in one transaction, so that trimming can never come
    /// between. The target counts as mirrored: its initial work is queued. `base` must be durable: a cursor beyond the
    /// end of the log is taken for damage of the log after a crash.
    ///
    /// # Errors
    /// `Sqlite` also when the name is taken.
    pub fn target_add_at(&self, name: &str, url: &str, base: Tid, work: &[NewWork]) -> Result<TargetId, JournalError> {
        self.write("add target", |tx| {
            tx.execute("INSERT INTO target (name, url) VALUES (?1, ?2)", (name, url))?;
            let target = TargetId(tx.last_insert_rowid());
            put_reset(tx, target, base, work)?;
            Ok(target)
        })
    }

    /// The target is somewhere else now.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_url(&self, target: TargetId, url: &str) -> Result<(), JournalError> {
        self.write("target url", |tx| {
            tx.execute("UPDATE target SET url = ?2 WHERE id = ?1", (target.0, url)).map(|_| ())
        })
    }

    /// Remembers what the target's own targets have durable.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_downstream(&self, target: TargetId, downstream: Tid) -> Result<(), JournalError> {
        let downstream = to_sql(downstream.0.min(i64::MAX as u64));
        self.write("downstream", |tx| {
            tx.execute("UPDATE target SET downstream = ?2 WHERE id = ?1", (target.0, downstream)).map(drop)
        })
    }

    /// Removes a target and its work. Its place no longer holds the log.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_remove(&self, target: TargetId) -> Result<(), JournalError> {
        self.write("remove target", |tx| {
            let left = "SELECT EXISTS (SELECT 1 FROM work WHERE target = ?1)";
            if tx.query_row(left, [target.0], |row| row.get(0))? {
                // What is in doubt of it nobody knows any more.
                renew_mark(tx)?;
            }
            tx.execute("DELETE FROM work WHERE target = ?1", [target.0])?;
            tx.execute("DELETE FROM target WHERE id = ?1", [target.0])?;
            Ok(())
        })
    }

    /// All targets by id.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn targets(&self) -> Result<Vec<TargetRow>, JournalError> {
        self.read("targets", all_targets)
    }

    /// The target called `name`.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target(&self, name: &str) -> Result<Option<TargetRow>, JournalError> {
        self.read("target", |connection| {
            connection
                .query_row(&format!("SELECT {COLUMNS} FROM target WHERE name = ?1"), [name], target_row)
                .optional()
        })
    }

    /// The target with this id.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_by_id(&self, target: TargetId) -> Result<Option<TargetRow>, JournalError> {
        self.read("target", |connection| {
            connection
                .query_row(&format!("SELECT {COLUMNS} FROM target WHERE id = ?1"), [target.0], target_row)
                .optional()
        })
    }

    /// Moves the cursor. That it moves forward only is the caller's to check.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn cursor_set(&self, target: TargetId, received: Tid, applied: Tid) -> Result<(), JournalError> {
        self.write("cursor", |tx| put_cursor(tx, target, received, applied))
    }

    /// Gives the target a new place and replaces all its work, in one transaction; it counts as mirrored from now on.
    /// `base` must be durable, as for [`Store::target_add_at`].
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn reset_target(&self, target: TargetId, base: Tid, work: &[NewWork]) -> Result<(), JournalError> {
        self.write("reset target", |tx| put_reset(tx, target, base, work))
    }

    /// Gives `target` the place that was kept for it as `awaited`, with the work that stands there, and keeps no place any
    /// more; it goes on at `received`, which lies at or behind that place.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn take_awaited(&self, target: TargetId, awaited: TargetId, received: Tid) -> Result<(), JournalError> {
        self.write("take place", |tx| {
            tx.execute("DELETE FROM work WHERE target = ?1", [target.0])?;
            tx.execute("UPDATE work SET target = ?1 WHERE target = ?2", [target.0, awaited.0])?;
            tx.execute(
                "UPDATE target SET received = ?3, applied = ?3, mirrored = 1,
                 covered = (SELECT covered FROM target WHERE id = ?2) WHERE id = ?1",
                (target.0, awaited.0, to_sql(received.0)),
            )?;
            tx.execute("DELETE FROM target WHERE id = ?1", [awaited.0])?;
            Ok(())
        })
    }

    /// Remembers how the last session ended; `None` clears it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_error(&self, target: TargetId, error: Option<&str>) -> Result<(), JournalError> {
        self.write("target error", |tx| {
            tx.execute("UPDATE target SET last_error = ?2 WHERE id = ?1", (target.0, error))?;
            Ok(())
        })
    }

    /// A session with a target begins, which says this of itself. From here on, until the next open of the journal, it can be
    /// sent whatever is recorded.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn session_begins(&self, target: TargetId, said: &Said) -> Result<(), JournalError> {
        self.write("session begins", |tx| {
            put_said(tx, target, Some(said))?;
            let sent = (target.0, said.copy.0, i64::MAX);
            tx.execute("UPDATE target SET sent_copy = ?2, sent_upto = ?3 WHERE id = ?1", sent).map(|_| ())
        })
    }

    /// Remembers what the target says of itself; `None` forgets it, and what it says next is not believed.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_said(&self, target: TargetId, said: Option<&Said>) -> Result<(), JournalError> {
        self.write("target said", |tx| put_said(tx, target, said))
    }

    /// Remembers that the operator wants a target of another history to follow this one; `None` forgets it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn rejoin_set(&self, target: TargetId, rejoin: Option<&Rejoin>) -> Result<(), JournalError> {
        let bytes = rejoin.map(|Rejoin { copy, epoch, own }| {
            let own = [u8::from(*own == Own::Discard)];
            [&copy.0[..], &epoch.0, &own].concat()
        });
        self.meta_set(&rejoin_key(target), &bytes.unwrap_or_default())
    }

    /// What was set by [`Store::rejoin_set`].
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn rejoin(&self, target: TargetId) -> Result<Option<Rejoin>, JournalError> {
        let bytes = self.meta_get(&rejoin_key(target))?.unwrap_or_default();
        let parts = bytes.split_first_chunk().and_then(|(copy, rest)| Some((copy, rest.split_first_chunk()?)));
        Ok(parts.map(|(copy, (epoch, own))| Rejoin {
            copy: VolumeUuid(*copy),
            epoch: EpochId(*epoch),
            own: if own == [1] { Own::Discard } else { Own::Keep },
        }))
    }

    /// Sets the target's state word (such as `active` or `paused`).
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn target_state(&self, target: TargetId, state: &str) -> Result<(), JournalError> {
        self.write("target state", |tx| {
            tx.execute("UPDATE target SET state = ?2 WHERE id = ?1", (target.0, state))?;
            Ok(())
        })
    }
}

/// What becomes of what only a target has that followed another history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Own {
    /// It is kept there, in `.dtfs/fork-EPOCH`.
    Keep,
    /// It is given up.
    Discard,
}

/// The operator wants a target of another history to follow this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejoin {
    /// The copy that he was told of.
    pub copy: VolumeUuid,
    /// The epoch that it was in.
    pub epoch: EpochId,
    /// What becomes of what only it has.
    pub own: Own,
}

fn rejoin_key(target: TargetId) -> String {
    format!("rejoin.{}", target.0)
}

/// State of the place that is kept for a copy which this history left, until it returns.
pub const AWAITED: &str = "awaited";

/// Keeps a place at `base` for a copy that returns.
pub(in crate::journal) fn put_awaited(tx: &Transaction<'_>, base: Tid) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO target (name, url, state, received, applied, mirrored) VALUES ('(' || ?1 || ')', '', ?1, ?2, ?2, 1)",
        (AWAITED, to_sql(base.0)),
    )?;
    Ok(())
}

/// All targets, as part of a larger transaction.
pub(in crate::journal) fn all_targets(connection: &Connection) -> rusqlite::Result<Vec<TargetRow>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM target ORDER BY id"))?;
    let rows = statement.query_map([], target_row)?;
    rows.collect()
}

/// Sets a cursor as part of a larger transaction.
pub(in crate::journal) fn put_cursor(
    tx: &Transaction<'_>,
    target: TargetId,
    received: Tid,
    applied: Tid,
) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE target SET received = ?2, applied = ?3, last_ack_ns = ?4 WHERE id = ?1")?.execute((
        target.0,
        to_sql(received.0),
        to_sql(applied.0),
        Timespec::now().as_nanos(),
    ))?;
    Ok(())
}

/// As [`put_cursor`] for an ack: an ack that was under way while the cursor was moved on does not move it back.
pub(in crate::journal) fn advance_cursor(
    tx: &Transaction<'_>,
    target: TargetId,
    received: Tid,
    applied: Tid,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "UPDATE target SET received = max(received, ?2), applied = max(applied, ?3), last_ack_ns = ?4
         WHERE id = ?1",
    )?
    .execute((target.0, to_sql(received.0), to_sql(applied.0), Timespec::now().as_nanos()))?;
    Ok(())
}

/// Remembers what a target says of itself, as part of a larger transaction.
pub(in crate::journal) fn put_said(
    tx: &Transaction<'_>,
    target: TargetId,
    said: Option<&Said>,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "UPDATE target SET said_copy = ?2, said_received = ?3, said_applied = ?4, said_commit = ?5 WHERE id = ?1",
    )?
    .execute((
        target.0,
        said.map(|said| said.copy.0),
        said.map(|said| to_sql(said.received.0)),
        said.map(|said| to_sql(said.applied.0)),
        said.map(|said| said.commit.to_bytes()),
    ))?;
    Ok(())
}

/// A life ended that recorded nothing behind `last`: nobody was sent more.
pub(in crate::journal) fn bound_sent(tx: &Transaction<'_>, last: Tid) -> rusqlite::Result<()> {
    tx.execute("UPDATE target SET sent_upto = min(sent_upto, ?1)", [to_sql(last.0)]).map(|_| ())
}

/// The target has lost its place: it goes on at `to`, at least, and its whole tree becomes compare work.
pub(in crate::journal) fn lose_place(tx: &Transaction<'_>, target: &TargetRow, to: Tid) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE target SET received = max(received, ?2), applied = max(applied, ?2) WHERE id = ?1",
        (target.id.0, to_sql(to.0)),
    )?;
    renew_mark(tx)?;
    put_compare_all(tx, target.id, target.applied)
}

fn put_reset(tx: &Transaction<'_>, target: TargetId, base: Tid, work: &[NewWork]) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE target SET received = ?2, applied = ?2, covered = 0, mirrored = 1 WHERE id = ?1",
        (target.0, to_sql(base.0)),
    )?;
    tx.execute("DELETE FROM work WHERE target = ?1", [target.0])?;
    put_work(tx, target, work)?;
    Ok(())
}

fn target_row(row: &Row<'_>) -> rusqlite::Result<TargetRow> {
    Ok(TargetRow {
        id: TargetId(row.get(0)?),
        name: row.get(1)?,
        url: row.get(2)?,
        state: row.get(3)?,
        received: Tid(from_sql(row.get(4)?)),
        applied: Tid(from_sql(row.get(5)?)),
        covered: Tid(from_sql(row.get(6)?)),
        mirrored: row.get(7)?,
        last_error: row.get(8)?,
        last_ack_ns: row.get(9)?,
        said: said(row)?,
        sent: sent(row)?,
        downstream: Tid(from_sql(row.get(16)?)),
    })
}

fn said(row: &Row<'_>) -> rusqlite::Result<Option<Said>> {
    let Some(copy) = row.get::<_, Option<[u8; 16]>>(10)? else { return Ok(None) };
    Ok(Some(Said {
        copy: VolumeUuid(copy),
        received: Tid(from_sql(row.get(11)?)),
        applied: Tid(from_sql(row.get(12)?)),
        commit: Commit::from_bytes(row.get(13)?),
    }))
}

fn sent(row: &Row<'_>) -> rusqlite::Result<Option<Sent>> {
    let Some(copy) = row.get::<_, Option<[u8; 16]>>(14)? else { return Ok(None) };
    Ok(Some(Sent { copy: VolumeUuid(copy), upto: Tid(from_sql(row.get(15)?)) }))
}
