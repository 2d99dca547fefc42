//! What a relay keeps of its inbox for those it passes it on to.
//!
//! The same rules as for a source's own log (`volume/retention.rs`): a target holds what it has not applied; when room is
//! short what it has not received becomes work, durably, before it is dropped.

use super::changes::Changes;
use super::error::JournalError;
use super::log::SegmentLog;
use super::store::{Collapsed, Level, Store, TargetRow, collapse, lose_place, put_event};
use crate::base::Tid;
use crate::record::RecordIter;

/// Records read at a time.
const READ_BYTES: usize = 1 << 20;

/// Where the log may begin for the targets of `store`; `None` when they need nothing of it.
///
/// # Errors
/// `Sqlite`.
pub fn keeps_from(store: &Store) -> Result<Option<Tid>, JournalError> {
    Ok(placed(store)?.iter().map(|target| target.applied.min(target.downstream).max(target.covered)).min())
}

/// The records of `log` up to `end` are dropped: what targets of `store` have not received of them becomes work. Their place
/// is at least `to` from then on, which lies at or behind `end`.
///
/// # Errors
/// `Sqlite`; `Io`. What cannot be read is compared whole.
pub fn become_work(store: &Store, log: &SegmentLog, end: Tid, to: Tid) -> Result<(), JournalError> {
    for target in placed(store)? {
        let place = target.received.max(target.covered);
        if place >= to {
            continue;
        }
        let changes = match place < end {
            true => changes(log, place, end),
            false => Ok(Changes::default()),
        };
        store.write("collapse records", |tx| match &changes {
            Ok(changes) => {
                let text = match collapse(tx, &target, changes, to)? {
                    Collapsed::WholeTree => {
                        format!("{} has too much to catch up with: its whole tree is compared", target.name)
                    }
                    Collapsed::Rows if target.covered <= target.received && place < end => format!(
                        "the inbox of this copy keeps no more: what {} has not received becomes work, at first {} objects \
                         up to {to}",
                        target.name,
                        changes.len()
                    ),
                    Collapsed::Rows => return Ok(()),
                };
                put_event(tx, Level::Warning, Some(target.id), &text)
            }
            Err(error) => {
                lose_place(tx, &target, to)?;
                let text =
                    format!("{}: what it lacks cannot be read ({error}): its whole tree is compared", target.name);
                put_event(tx, Level::Warning, Some(target.id), &text)
            }
        })?;
    }
    Ok(())
}

/// Drops the oldest segments of `log` until it has at most `most_bytes`; nothing behind `at` is dropped.
///
/// # Errors
/// As [`become_work`].
pub fn make_room(store: &Store, log: &SegmentLog, at: Tid, most_bytes: u64) -> Result<(), JournalError> {
    while log.bytes_used() > most_bytes {
        let Some(end) = log.oldest_sealed_end().filter(|end| *end <= at) else { return Ok(()) };
        become_work(store, log, end, end)?;
        log.trim_upto(end)?;
    }
    Ok(())
}

/// What all targets of `store`, and theirs, have durable; `None` when there are none.
///
/// # Errors
/// `Sqlite`.
pub fn downstream(store: &Store) -> Result<Option<Tid>, JournalError> {
    // One that was not given a place yet will begin with what is there then.
    Ok(placed(store)?.iter().map(|target| target.applied.min(target.downstream)).min())
}

fn placed(store: &Store) -> Result<Vec<TargetRow>, JournalError> {
    let mut targets = store.targets()?;
    targets.retain(|target| target.mirrored);
    Ok(targets)
}

fn changes(log: &SegmentLog, after: Tid, end: Tid) -> Result<Changes, JournalError> {
    let mut reader = log.reader(after)?;
    let mut changes = Changes::default();
    while let Some(chunk) = reader.next_chunk(end, READ_BYTES)? {
        for record in RecordIter::new(&chunk.body) {
            let path = log.path_of(log.first_segment());
            let record = record.map_err(|cause| JournalError::Record { path, offset: 0, cause })?;
            changes.note(&record);
        }
    }
    Ok(changes)
}
