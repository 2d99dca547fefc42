//! Work: the objects that a target must fetch or compare.
//!
//! SQLite has no checksums of its own, and a flipped bit in a row would let one object be compared in the place of another,
//! which then stays as it is for ever. So each row carries one; where a row does not fit its own, nothing says what is
//! missing, and every target compares everything.

use rusqlite::types::Type;
use rusqlite::{OptionalExtension, Row, Transaction};

use super::events::{Level, put_event};
use super::targets::{Said, advance_cursor, all_targets, put_said};
use super::{Lasting, Store, TargetId, from_sql, to_sql};
use crate::base::{Oid, Tid};
use crate::journal::error::JournalError;

/// What a row covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WorkKind {
    /// A directory and everything below it.
    Tree,
    /// A directory itself: its attributes and which entries it has, nothing of what lies in them.
    Dir,
    /// One object that is not a directory, whole.
    Object,
    /// `len` bytes of a file from `offset`.
    Range,
}

/// Why it is work, which decides how it is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WorkReason {
    /// The target has nothing yet: send without comparing.
    Mirror,
    /// The target may have something else: compare, send what differs.
    Verify,
    /// The target asked for it.
    Need,
    /// The target may have something else: compare by what the objects are, and the content of files where their size or time
    /// of modification differs.
    Difference,
}

/// A row to insert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewWork {
    /// The object.
    pub oid: Oid,
    /// What of it.
    pub kind: WorkKind,
    /// Why.
    pub reason: WorkReason,
    /// First byte (0 for a whole `Object`); of a `Tree` the inode number up to which files in the directory itself are there.
    pub offset: u64,
    /// Bytes of a `Range`, else 0.
    pub len: u64,
    /// The target is not consistent at this TID or later while the row is there.
    pub created_tid: Tid,
}

/// A row of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkRow {
    /// Its number; higher is newer. Never used twice.
    pub id: i64,
    /// The object.
    pub oid: Oid,
    /// What of it.
    pub kind: WorkKind,
    /// Why.
    pub reason: WorkReason,
    /// First byte that is still to do; of a `Tree` as in [`NewWork`].
    pub offset: u64,
    /// Bytes of a `Range` that are still to do, else 0.
    pub len: u64,
    /// The target is not consistent at this TID or later while the row is there.
    pub created_tid: Tid,
}

impl WorkRow {
    fn as_new(&self) -> NewWork {
        let WorkRow { oid, kind, reason, offset, len, created_tid, .. } = *self;
        NewWork { oid, kind, reason, offset, len, created_tid }
    }
}

impl NewWork {
    /// The whole tree, from the root.
    pub fn whole_tree(reason: WorkReason, created_tid: Tid) -> NewWork {
        NewWork { oid: Oid::ROOT, kind: WorkKind::Tree, reason, offset: 0, len: 0, created_tid }
    }
}

impl Store {
    /// Up to `limit` rows, oldest first, behind row `after` (0 starts at the oldest). Rows added meanwhile come later,
    /// so a session that walks on from the last row it got sees every row once.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_next(&self, target: TargetId, after: i64, limit: usize) -> Result<Vec<WorkRow>, JournalError> {
        loop {
            let rows: Option<Vec<WorkRow>> = self.read("work", |connection| {
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM work WHERE target = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"
                ))?;
                let rows = statement.query_map((target.0, after, limit as i64), work_row)?;
                rows.collect()
            })?;
            match rows {
                Some(rows) => return Ok(rows),
                None => self.write("damaged work", distrust_all)?,
            }
        }
    }

    /// Adds rows; one that is there already stays as it is. Returns how many are new.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_insert(&self, target: TargetId, work: &[NewWork]) -> Result<usize, JournalError> {
        self.write("insert work", |tx| put_work(tx, target, work))
    }

    /// As [`Store::work_insert`], for rows that a row stands for which ends in a later transaction: durable with the next one that
    /// is.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_insert_soon(&self, target: TargetId, work: &[NewWork]) -> Result<usize, JournalError> {
        self.write_lasting(Lasting::WithNext, "insert work", |tx| put_work(tx, target, work))
    }

    /// As [`Store::work_insert`], but a row that is there already is replaced and gets a new id when it is among those up to
    /// `fetched`: it may have been read before, and what was read may count no more.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_insert_unread(&self, target: TargetId, work: &[NewWork], fetched: i64) -> Result<(), JournalError> {
        self.write("insert work", |tx| {
            let mut is_fetched = tx.prepare_cached(
                "SELECT 1 FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3 AND \"offset\" = ?4 AND seq <= ?5",
            )?;
            for row in work {
                let key = (target.0, &row.oid.to_bytes()[..], kind_code(row.kind), to_sql(row.offset), fetched);
                match is_fetched.exists(key)? {
                    true => renew_work(tx, target, row).map(drop)?,
                    false => put_work(tx, target, std::slice::from_ref(row)).map(drop)?,
                }
            }
            Ok(())
        })
    }

    /// Adds rows for objects that have none at all; a row that is partly done keeps its place.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_insert_absent(&self, target: TargetId, work: &[NewWork]) -> Result<(), JournalError> {
        self.write("insert work", |tx| {
            let mut present = tx.prepare_cached("SELECT 1 FROM work WHERE target = ?1 AND oid = ?2")?;
            for row in work {
                if !present.exists((target.0, &row.oid.to_bytes()[..]))? {
                    put_work(tx, target, std::slice::from_ref(row))?;
                }
            }
            Ok(())
        })
    }

    /// Adds rows for objects that have changed behind the journal. A row that is there already is replaced and gets a new
    /// id: it may be under way, read before the change, and its end must not take the change with it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_renew(&self, target: TargetId, work: &[NewWork]) -> Result<(), JournalError> {
        self.write("renew work", |tx| {
            super::renew_mark(tx)?;
            work.iter().try_for_each(|row| renew_work(tx, target, row).map(drop))
        })
    }

    /// Queues one object for comparison by every target that has a place, with an event that says `why`, in one
    /// transaction. A row that is there already gets a new id, as by [`Store::work_renew`], and no further event.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_doubt(&self, oid: Oid, created_tid: Tid, why: &str) -> Result<(), JournalError> {
        let (kind, reason) = (WorkKind::Object, WorkReason::Verify);
        let row = NewWork { oid, kind, reason, offset: 0, len: 0, created_tid };
        self.write("doubt", |tx| {
            super::renew_mark(tx)?;
            let mut known = true;
            for target in all_targets(tx)?.iter().filter(|target| target.mirrored) {
                known &= renew_work(tx, target.id, &row)?;
            }
            if known {
                return Ok(());
            }
            put_event(tx, Level::Warning, None, &format!("object {oid}: {why}: every target compares it"))
        })
    }

    /// Queues the whole tree for comparison by every target that has a place, with an event that says `why`, in one
    /// transaction.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_compare_all(&self, created_tid: Tid, why: &str) -> Result<(), JournalError> {
        self.write("compare all", |tx| {
            super::renew_mark(tx)?;
            for target in all_targets(tx)?.iter().filter(|target| target.mirrored) {
                put_compare_all(tx, target.id, created_tid)?;
            }
            put_event(tx, Level::Warning, None, &format!("{why}: every target is compared"))
        })
    }

    /// What an ack changes, in one transaction: the cursor, which never goes back; `finished` rows go; rows in `progress`
    /// (id, first byte still to do) shrink; `needs` are queued, under new ids where they are there already.
    ///
    /// # Errors
    /// `Sqlite`; then nothing is changed.
    pub fn ack(
        &self,
        target: TargetId,
        said: &Said,
        finished: &[i64],
        progress: &[(i64, u64)],
        needs: &[NewWork],
    ) -> Result<(), JournalError> {
        self.write("ack", |tx| {
            put_ack(tx, target, said, finished, progress)?;
            put_needs(tx, target, needs)
        })
    }

    /// As [`Store::ack`] without needs, and durable only with the next transaction that is. A power loss before costs that what was done is
    /// done once more: the target says itself where it is, and no segment is freed without a transaction that is durable.
    ///
    /// # Errors
    /// `Sqlite`; then nothing is changed.
    pub fn ack_soon(
        &self,
        target: TargetId,
        said: &Said,
        finished: &[i64],
        progress: &[(i64, u64)],
    ) -> Result<(), JournalError> {
        self.write_lasting(Lasting::WithNext, "ack", |tx| put_ack(tx, target, said, finished, progress))
    }

    /// When more than `most` rows are there that the target asked for, they go, and its whole tree is compared in their
    /// place, with an event: whatever it asks for, the queue stays bounded. Returns whether that was so.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_bound_needs(&self, target: TargetId, most: u64) -> Result<bool, JournalError> {
        let need = reason_code(WorkReason::Need);
        let asked: u64 = self.read("count needs", |connection| {
            let count = "SELECT count(*) FROM work WHERE target = ?1 AND reason = ?2";
            connection.query_row(count, (target.0, need), |row| Ok(from_sql(row.get(0)?)))
        })?;
        if asked <= most {
            return Ok(false);
        }
        self.write("bound needs", |tx| {
            tx.execute("DELETE FROM work WHERE target = ?1 AND reason = ?2", (target.0, need))?;
            put_compare_all(tx, target, Tid::ZERO)?;
            let text = format!("it has asked for {asked} objects and ranges: its whole tree is compared instead");
            put_event(tx, Level::Warning, Some(target), &text)
        })?;
        Ok(true)
    }

    /// Rows in the target's queue.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_count(&self, target: TargetId) -> Result<u64, JournalError> {
        self.work_count_upto(target, Tid(i64::MAX as u64))
    }

    /// Whether any row stands against being consistent at `tid`. Ends at the first one: who waits for a target asks this at
    /// each of its acks, and there may be a million.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_stands_against(&self, target: TargetId, tid: Tid) -> Result<bool, JournalError> {
        let tid = tid.0.min(i64::MAX as u64);
        self.read("look for work", |connection| {
            let mut statement = connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM work WHERE target = ?1 AND created_tid <= ?2)")?;
            statement.query_row((target.0, to_sql(tid)), |row| row.get(0))
        })
    }

    /// Rows that stand against being consistent at `tid`: those created at or before it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn work_count_upto(&self, target: TargetId, tid: Tid) -> Result<u64, JournalError> {
        let tid = tid.0.min(i64::MAX as u64);
        self.read("count work", |connection| {
            connection.query_row(
                "SELECT count(*) FROM work WHERE target = ?1 AND created_tid <= ?2",
                (target.0, to_sql(tid)),
                |row| Ok(from_sql(row.get(0)?)),
            )
        })
    }
}

/// Adds rows as part of a larger transaction; returns how many are new.
///
/// A range that begins where an older, shorter one begins replaces it under a new id: the older one may be under way,
/// and its end must not take the longer one with it.
pub(in crate::journal) fn put_work(
    tx: &Transaction<'_>,
    target: TargetId,
    work: &[NewWork],
) -> rusqlite::Result<usize> {
    let mut shorter = tx.prepare_cached(
        "DELETE FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3 AND \"offset\" = ?4 AND len < ?5",
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT OR IGNORE INTO work (target, oid, kind, reason, \"offset\", len, created_tid, crc)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut inserted = 0;
    for row in work {
        let oid = row.oid.to_bytes();
        let numbers = numbers(row);
        let [kind, reason, offset, len, created_tid] = numbers;
        if len > 0 {
            shorter.execute((target.0, &oid[..], kind, offset, len))?;
        }
        let crc = crc_of(target.0, &oid, numbers);
        inserted += insert.execute((target.0, &oid[..], kind, reason, offset, len, created_tid, crc))?;
    }
    Ok(inserted)
}

/// As [`put_work`] for one row, but one that is there already is replaced and gets a new id. Returns whether it was.
pub(super) fn renew_work(tx: &Transaction<'_>, target: TargetId, row: &NewWork) -> rusqlite::Result<bool> {
    let mut older = tx.prepare_cached(
        "DELETE FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3 AND \"offset\" = ?4
         RETURNING created_tid",
    )?;
    let key = (target.0, &row.oid.to_bytes()[..], kind_code(row.kind), to_sql(row.offset));
    let created: Option<i64> = older.query_row(key, |found| found.get(0)).optional()?;
    let created_tid = created.map_or(row.created_tid, |old| row.created_tid.min(Tid(from_sql(old))));
    put_work(tx, target, &[NewWork { created_tid, ..*row }])?;
    Ok(created.is_some())
}

fn put_ack(
    tx: &Transaction<'_>,
    target: TargetId,
    said: &Said,
    finished: &[i64],
    progress: &[(i64, u64)],
) -> rusqlite::Result<()> {
    advance_cursor(tx, target, said.received, said.applied)?;
    put_said(tx, target, Some(said))?;
    delete_work(tx, target, finished)?;
    shrink_work(tx, target, progress)
}

/// As [`put_work`], but a row that is there already is replaced and gets a new id: it may be under way, read before the
/// target asked, and its end must not take what was asked for with it.
fn put_needs(tx: &Transaction<'_>, target: TargetId, needs: &[NewWork]) -> rusqlite::Result<()> {
    let mut delete =
        tx.prepare_cached("DELETE FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3 AND \"offset\" = ?4")?;
    for row in needs {
        delete.execute((target.0, &row.oid.to_bytes()[..], kind_code(row.kind), to_sql(row.offset)))?;
    }
    put_work(tx, target, needs)?;
    Ok(())
}

/// Queues the whole tree for comparison anew, as part of a larger transaction. A root row that is there is replaced and
/// gets a new id: it may be under way, and what it has read is older than what is lost now.
pub(super) fn put_compare_all(tx: &Transaction<'_>, target: TargetId, created_tid: Tid) -> rusqlite::Result<()> {
    let row = NewWork::whole_tree(WorkReason::Verify, created_tid);
    let created: Option<i64> = tx.query_row(
        "SELECT min(created_tid) FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3",
        (target.0, &row.oid.to_bytes()[..], kind_code(row.kind)),
        |found| found.get(0),
    )?;
    tx.execute(
        "DELETE FROM work WHERE target = ?1 AND oid = ?2 AND kind = ?3",
        (target.0, &row.oid.to_bytes()[..], kind_code(row.kind)),
    )?;
    let created_tid = created.map_or(created_tid, |old| created_tid.min(Tid(from_sql(old))));
    put_work(tx, target, &[NewWork { created_tid, ..row }])?;
    Ok(())
}

/// Rows that were read one behind the other end together: a run of them is one statement.
pub(super) fn delete_work(tx: &Transaction<'_>, target: TargetId, rows: &[i64]) -> rusqlite::Result<()> {
    let mut statement = tx.prepare_cached("DELETE FROM work WHERE target = ?1 AND seq BETWEEN ?2 AND ?3")?;
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    for run in rows.chunk_by(|before, next| *next <= before + 1) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            statement.execute((target.0, first, last))?;
        }
    }
    Ok(())
}

/// A row whose new place is taken by another keeps its old one and is done again from there: repeated, never lost.
fn shrink_work(tx: &Transaction<'_>, target: TargetId, progress: &[(i64, u64)]) -> rusqlite::Result<()> {
    let mut select = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM work WHERE target = ?1 AND seq = ?2"))?;
    let mut update = tx.prepare_cached(
        "UPDATE OR IGNORE work SET \"offset\" = ?3, len = ?4, crc = ?5 WHERE target = ?1 AND seq = ?2",
    )?;
    for (row, offset) in progress {
        // One that is damaged is found by whoever is to work on it.
        let Some(Some(found)) = select.query_row((target.0, row), work_row).optional()? else { continue };
        if found.offset >= *offset {
            continue;
        }
        let len = if found.len > 0 { (found.offset + found.len).saturating_sub(*offset) } else { 0 };
        let shorter = NewWork { offset: *offset, len, ..found.as_new() };
        let crc = crc_of(target.0, &shorter.oid.to_bytes(), numbers(&shorter));
        update.execute((target.0, row, to_sql(*offset), to_sql(len), crc))?;
    }
    Ok(())
}

/// The rows of one object, as part of a larger transaction, but for damaged ones.
pub(super) fn work_of(tx: &Transaction<'_>, target: TargetId, oid: Oid) -> rusqlite::Result<Vec<WorkRow>> {
    let mut statement = tx.prepare_cached(&format!("SELECT {COLUMNS} FROM work WHERE target = ?1 AND oid = ?2"))?;
    let rows = statement.query_map((target.0, &oid.to_bytes()[..]), work_row)?;
    rows.filter_map(Result::transpose).collect()
}

/// Rows are damaged: they go, and every target compares everything in their place.
fn distrust_all(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let damaged: Vec<i64> = {
        let mut all = tx.prepare(&format!("SELECT {COLUMNS} FROM work"))?;
        let rows = all.query_map([], |row| Ok((row.get::<_, i64>(0)?, work_row(row)?.is_none())))?;
        rows.filter_map(|row| row.map(|(seq, bad)| bad.then_some(seq)).transpose()).collect::<rusqlite::Result<_>>()?
    };
    for seq in &damaged {
        tx.execute("DELETE FROM work WHERE seq = ?1", [seq])?;
    }
    super::renew_mark(tx)?;
    for target in all_targets(tx)?.iter().filter(|target| target.mirrored) {
        put_compare_all(tx, target.id, Tid::ZERO)?;
    }
    let text = format!("{} rows of work are damaged: every target is compared", damaged.len());
    put_event(tx, Level::Error, None, &text)
}

/// What [`work_row`] reads.
const COLUMNS: &str = "seq, oid, kind, reason, \"offset\", len, created_tid, target, crc";

/// `None` when the row's checksum is not its own.
fn work_row(row: &Row<'_>) -> rusqlite::Result<Option<WorkRow>> {
    let oid: [u8; Oid::LEN] = row.get(1)?;
    let numbers = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?];
    if crc_of(row.get(7)?, &oid, numbers) != row.get::<_, u32>(8)? {
        return Ok(None);
    }
    let [kind, reason, offset, len, created_tid] = numbers;
    Ok(Some(WorkRow {
        id: row.get(0)?,
        oid: Oid::from_bytes(oid),
        kind: kind_from(kind)?,
        reason: reason_from(reason)?,
        offset: from_sql(offset),
        len: from_sql(len),
        created_tid: Tid(from_sql(created_tid)),
    }))
}

/// The columns after `oid`, in their order.
fn numbers(row: &NewWork) -> [i64; 5] {
    let (offset, len) = (to_sql(row.offset), to_sql(row.len));
    [kind_code(row.kind), reason_code(row.reason), offset, len, to_sql(row.created_tid.0)]
}

fn crc_of(target: i64, oid: &[u8; Oid::LEN], numbers: [i64; 5]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&target.to_le_bytes()), oid);
    numbers.iter().fold(crc, |crc, number| crc32c::crc32c_append(crc, &number.to_le_bytes()))
}

fn kind_code(kind: WorkKind) -> i64 {
    match kind {
        WorkKind::Tree => 1,
        WorkKind::Object => 2,
        WorkKind::Range => 3,
        WorkKind::Dir => 4,
    }
}

fn kind_from(code: i64) -> rusqlite::Result<WorkKind> {
    match code {
        1 => Ok(WorkKind::Tree),
        2 => Ok(WorkKind::Object),
        3 => Ok(WorkKind::Range),
        4 => Ok(WorkKind::Dir),
        other => Err(unknown(2, "work.kind", other)),
    }
}

fn reason_code(reason: WorkReason) -> i64 {
    match reason {
        WorkReason::Mirror => 1,
        WorkReason::Verify => 2,
        WorkReason::Need => 3,
        WorkReason::Difference => 4,
    }
}

pub(super) fn reason_from(code: i64) -> rusqlite::Result<WorkReason> {
    match code {
        1 => Ok(WorkReason::Mirror),
        2 => Ok(WorkReason::Verify),
        3 => Ok(WorkReason::Need),
        4 => Ok(WorkReason::Difference),
        other => Err(unknown(3, "work.reason", other)),
    }
}

fn unknown(column: usize, what: &'static str, value: i64) -> rusqlite::Error {
    let cause = JournalError::Row { what, value: value.to_string() };
    rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(cause))
}
