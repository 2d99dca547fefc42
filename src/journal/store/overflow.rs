//! Changes whose records are dropped become work, in as few rows as hold them.

use rusqlite::Transaction;

use super::targets::TargetRow;
use super::work::{NewWork, WorkKind, WorkReason, WorkRow, delete_work, put_compare_all, put_work, work_of};
use super::{TargetId, to_sql};
use crate::base::{Oid, Tid};
use crate::journal::changes::{Change, Changes, Extents, What};

/// Rows of one target; beyond them its whole tree is compared instead.
const MOST_ROWS: u64 = 1_000_000;

/// What became of a target's records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::journal) enum Collapsed {
    /// Rows of work cover them.
    Rows,
    /// There were too many: the whole tree is compared.
    WholeTree,
}

/// The records up to `end` that `target` has not received are dropped: `changes` is what they did. From now on rows of
/// work cover them.
pub(in crate::journal) fn collapse(
    tx: &Transaction<'_>,
    target: &TargetRow,
    changes: &Changes,
    end: Tid,
) -> rusqlite::Result<Collapsed> {
    tx.execute("UPDATE target SET covered = max(covered, ?2) WHERE id = ?1", (target.id.0, to_sql(end.0)))?;
    for (oid, change) in changes.in_order() {
        merge(tx, target.id, oid, change)?;
    }
    let rows: i64 = tx.query_row("SELECT count(*) FROM work WHERE target = ?1", [target.id.0], |row| row.get(0))?;
    if rows as u64 <= MOST_ROWS {
        return Ok(Collapsed::Rows);
    }
    let oldest: i64 =
        tx.query_row("SELECT min(created_tid) FROM work WHERE target = ?1", [target.id.0], |row| row.get(0))?;
    tx.execute("DELETE FROM work WHERE target = ?1", [target.id.0])?;
    put_compare_all(tx, target.id, Tid(super::from_sql(oldest)))?;
    Ok(Collapsed::WholeTree)
}

/// After a crash: what `changes` tells of may differ between the tree and what targets were told, so `target` compares it.
pub(in crate::journal) fn put_suspects(
    tx: &Transaction<'_>,
    target: TargetId,
    changes: &Changes,
) -> rusqlite::Result<()> {
    for (oid, change) in changes.in_order() {
        match change.what {
            // It may be there already, and need not be what it was born as.
            What::Born => merge(tx, target, oid, &Change { what: What::Anywhere, ..*change })?,
            _ => merge(tx, target, oid, change)?,
        }
    }
    Ok(())
}

/// Adds what changed of one object to the rows that are there. Every row it touches gets a new id: it may be under way,
/// read before the change, and its end must not take the change with it.
fn merge(tx: &Transaction<'_>, target: TargetId, oid: Oid, change: &Change) -> rusqlite::Result<()> {
    let present = work_of(tx, target, oid)?;
    let since = present.iter().map(|row| row.created_tid).fold(change.since, Tid::min);
    let row = |kind, reason, (offset, len)| NewWork { oid, kind, reason, offset, len, created_tid: since };
    let whole = present.iter().find(|row| matches!(row.kind, WorkKind::Tree | WorkKind::Object) && row.offset == 0);
    let rows = match (&change.what, whole) {
        // It is still to be read from its start. A file that has changed may have the time of modification from before.
        (_, Some(whole)) if (whole.kind, whole.reason) == (WorkKind::Object, WorkReason::Difference) => {
            vec![row(WorkKind::Object, WorkReason::Verify, (0, 0))]
        }
        (_, Some(whole)) => vec![row(whole.kind, whole.reason, (0, 0))],
        (What::Entries, None) => vec![row(WorkKind::Dir, WorkReason::Verify, (0, 0))],
        (What::Born, None) => vec![row(WorkKind::Object, WorkReason::Mirror, (0, 0))],
        (What::Anywhere, None) => vec![row(WorkKind::Object, WorkReason::Verify, (0, 0))],
        (What::Extents(extents), None) => match joined(&present, extents) {
            Some(extents) => extents.into_iter().map(|range| row(WorkKind::Range, WorkReason::Verify, range)).collect(),
            None => vec![row(WorkKind::Object, WorkReason::Verify, (0, 0))],
        },
    };
    let replaced: Vec<i64> = present.iter().filter(|old| is_covered(old, &rows)).map(|old| old.id).collect();
    delete_work(tx, target, &replaced)?;
    put_work(tx, target, &rows)?;
    Ok(())
}

/// The ranges of `extents` and of the rows that are there; `None` when they are too many. At least one, be it empty: it
/// carries the attributes.
fn joined(present: &[WorkRow], extents: &Extents) -> Option<Vec<(u64, u64)>> {
    let mut joined = extents.clone();
    for row in present.iter().filter(|row| row.kind == WorkKind::Range) {
        if !joined.add(row.offset, row.len) {
            return None;
        }
    }
    let mut ranges: Vec<_> = joined.ranges().collect();
    if ranges.is_empty() {
        ranges.push((0, 0));
    }
    Some(ranges)
}

/// Whether `rows` say everything that `old` says: a whole object says all of it, ranges say what ranges said. A file that
/// was read in part keeps that row beside the ranges; a directory's listing stays beside its attributes.
fn is_covered(old: &WorkRow, rows: &[NewWork]) -> bool {
    let of = |kinds: &[WorkKind]| rows.iter().any(|row| kinds.contains(&row.kind));
    match old.kind {
        WorkKind::Range => of(&[WorkKind::Range, WorkKind::Object]),
        WorkKind::Dir => of(&[WorkKind::Dir, WorkKind::Tree]),
        WorkKind::Object | WorkKind::Tree => of(&[WorkKind::Object, WorkKind::Tree]),
    }
}
