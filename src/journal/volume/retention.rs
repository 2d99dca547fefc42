//! What may be forgotten: trimming behind the targets, and bounded space when one of them does not follow.
//!
//! As the log fills its cap:
//! 1. Above [`WARN_PERCENT`] a target holds the log only up to what it has *received*: its inbox is a durable copy.
//! 2. Above [`FULL_PERCENT`] the oldest segments go. For every target that had not received them, the slowest first, their
//!    records become rows of work, in the transaction that says so; the target keeps its place behind them.
//! 3. Rows that are too many become the comparison of the whole tree.
//!
//! No step waits for a target. With [`WhenFull::Block`] nothing becomes work: at the cap changes wait instead.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::ring::Gate;
use super::{Core, Journal, WhenFull};
use crate::base::{Tid, faults};
use crate::journal::changes::Changes;
use crate::journal::error::JournalError;
use crate::journal::store::{Collapsed, Level, TargetRow, all_targets, collapse, lose_place, put_event};
use crate::record::{DecodeError, RecordIter};

/// Share of the cap from which the log is said to fill.
const WARN_PERCENT: u64 = 60;
/// Share of the cap from which records become work.
const FULL_PERCENT: u64 = 80;
/// Share of the cap below which the next filling is said again.
const CALM_PERCENT: u64 = 50;
/// Records read at a time.
const READ_BYTES: usize = 1 << 20;

impl Journal {
    /// Frees the segments that every target has applied (all sealed ones when there is no target). Called after acks;
    /// the committer does the same whenever the log goes on to another segment.
    ///
    /// # Errors
    /// `Failed`; `Io`; `Sqlite`.
    pub fn trim(&self) -> Result<(), JournalError> {
        self.core.ring.lock().sound()?;
        self.core.trim()
    }
}

impl TargetRow {
    /// Where the log may begin for this target: what it has applied, or as little as it must keep when space is short.
    fn needs_from(&self, keep: Keep) -> Tid {
        let own = if keep == Keep::Applied { self.applied } else { self.received.max(self.applied) };
        // What those behind it lack is kept too, so that they can come here for it.
        let counts = keep == Keep::Applied && !faults::skipped("journal.downstream");
        let own = if counts { own.min(self.downstream) } else { own };
        own.max(self.covered)
    }
}

/// How much a target holds of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// What it has not applied: an inbox that is lost is sent again.
    Applied,
    /// What it has not received.
    Received,
}

impl Core {
    /// What follows a new segment: the one after it is allocated, the index is written, space is kept bounded. What
    /// fails here is tried again at the next segment, or by the reservation that needs it.
    pub(super) fn housekeep(&self) {
        let mut ring = self.lead();
        let (prepared, room) = MutexGuard::unlocked(&mut ring, || (self.log.prepare(), self.log.room()));
        ring.room = room;
        self.end_lead(&mut ring);
        drop(ring);
        for result in [prepared, self.trim(), self.bound()] {
            if let Err(error) = result {
                tracing::warn!(%error, "journal housekeeping");
            }
        }
    }

    fn is_above(&self, percent: u64) -> bool {
        self.log.bytes_used() > self.options.cap_bytes / 100 * percent
    }

    fn trim(&self) -> Result<(), JournalError> {
        let keep = if self.is_above(WARN_PERCENT) { Keep::Received } else { Keep::Applied };
        let targets = self.store.targets()?;
        // A target whose mirror was never queued has no place in the log yet.
        let placed = targets.iter().filter(|target| target.mirrored);
        let slowest = placed.map(|target| target.needs_from(keep)).min();
        let durable = self.log.durable_tid();
        self.free_upto(slowest.unwrap_or(durable).min(durable))?;
        self.block_at_cap();
        Ok(())
    }

    /// Frees every segment up to `end`. The list of segments is written before: a target may be where one of them began, and
    /// what led there must be known for longer than the segment is.
    fn free_upto(&self, end: Tid) -> Result<(), JournalError> {
        self.store.segments_set(&self.log.rows())?;
        self.log.trim_upto(end)
    }

    /// Keeps the log below its cap.
    fn bound(&self) -> Result<(), JournalError> {
        self.warn_when_filling()?;
        self.block_at_cap();
        while self.options.when_full == WhenFull::Degrade && self.is_above(FULL_PERCENT) {
            let Some(end) = self.log.oldest_sealed_end() else {
                // The rest is what a recovery would read.
                self.want_checkpoint(&mut self.ring.lock());
                return Ok(());
            };
            self.collapse_upto(end)?;
        }
        Ok(())
    }

    /// Says once that the log fills, and who holds it.
    fn warn_when_filling(&self) -> Result<(), JournalError> {
        if !self.is_above(CALM_PERCENT) {
            self.warned.store(false, Ordering::Relaxed);
        }
        if !self.is_above(WARN_PERCENT) || self.warned.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let targets = self.store.targets()?;
        let placed = targets.iter().filter(|target| target.mirrored);
        let Some(slowest) = placed.min_by_key(|target| target.needs_from(Keep::Received)) else {
            return Ok(());
        };
        let text = format!(
            "the journal has filled {WARN_PERCENT} % of its cap of {} bytes: {} has received only {}",
            self.options.cap_bytes, slowest.name, slowest.received
        );
        self.store.event(Level::Warning, Some(slowest.id), &text)
    }

    /// With [`WhenFull::Block`]: changes wait from the cap on, until a target's ack lets segments go.
    fn block_at_cap(&self) {
        if self.options.when_full == WhenFull::Block {
            let full = self.log.bytes_used() >= self.options.cap_bytes;
            let mut ring = self.ring.lock();
            if full {
                // What a recovery would read is kept, too.
                self.want_checkpoint(&mut ring);
            }
            ring.gate = match ring.gate {
                gate @ (Gate::Closed | Gate::Paused) => gate,
                _ if full => Gate::Blocked,
                _ => Gate::Open,
            };
            drop(ring);
            self.space.notify_all();
        }
    }

    /// Frees every segment up to `end`; what they tell to targets that have not received it becomes work, durably, before.
    fn collapse_upto(&self, end: Tid) -> Result<(), JournalError> {
        let mut targets = self.store.targets()?;
        targets.retain(|target| target.mirrored && target.needs_from(Keep::Received) < end);
        targets.sort_by_key(|target| target.needs_from(Keep::Received));
        for target in &targets {
            match self.changes(target.needs_from(Keep::Received), end) {
                Ok(changes) => self.collapse_for(target, &changes, end)?,
                Err(error @ (JournalError::Damaged { .. } | JournalError::Record { .. })) => {
                    return self.drop_upto(end, Level::Error, &format!("the journal is damaged: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        self.free_upto(end)
    }

    /// What the records behind `after` up to `end` changed.
    fn changes(&self, after: Tid, end: Tid) -> Result<Changes, JournalError> {
        let mut reader = self.log.reader(after)?;
        let mut changes = Changes::default();
        while let Some(chunk) = reader.next_chunk(end, READ_BYTES)? {
            for record in RecordIter::new(&chunk.body) {
                let record = record.map_err(|cause| self.unreadable(cause))?;
                changes.note(&record);
            }
        }
        Ok(changes)
    }

    fn unreadable(&self, cause: DecodeError) -> JournalError {
        JournalError::Record { path: self.log.path_of(self.log.first_segment()), offset: 0, cause }
    }

    fn collapse_for(&self, target: &TargetRow, changes: &Changes, end: Tid) -> Result<(), JournalError> {
        self.store.write("collapse records", |tx| {
            let collapsed = collapse(tx, target, changes, end)?;
            let begins = target.covered <= target.received;
            let text = match collapsed {
                Collapsed::WholeTree => {
                    format!("{} has too much to catch up with: its whole tree is compared", target.name)
                }
                Collapsed::Rows if begins => format!(
                    "the journal has filled {FULL_PERCENT} % of its cap: what {} has not received becomes work, \
                     at first {} objects up to {end}",
                    target.name,
                    changes.len()
                ),
                Collapsed::Rows => return Ok(()),
            };
            put_event(tx, Level::Warning, Some(target.id), &text)
        })
    }

    /// Frees every segment up to `end` unread. The cursors that stand before it are moved, with compare work and an event,
    /// in one transaction that is durable before anything is freed.
    fn drop_upto(&self, end: Tid, level: Level, why: &str) -> Result<(), JournalError> {
        self.store.write("drop segments", |tx| {
            for target in all_targets(tx)? {
                if target.mirrored && target.needs_from(Keep::Applied) < end {
                    lose_place(tx, &target, end)?;
                    let text = format!(
                        "{why}: records up to {end} are dropped, {} had applied {}; its whole tree is compared",
                        target.name, target.applied
                    );
                    put_event(tx, level, Some(target.id), &text)?;
                }
            }
            Ok(())
        })?;
        self.free_upto(end)
    }

    /// A reader met damage after `place`: the segment is given up. The open one is sealed first, so that nobody has to
    /// pass the damage again.
    pub(super) fn skip_damage(&self, place: Tid, what: &str) -> Result<(), JournalError> {
        let mut ring = self.lead();
        let (end, sealed, room) = MutexGuard::unlocked(&mut ring, || {
            let end = self.log.segment_end_after(place);
            let sealed = match end == self.log.last_tid() {
                true => self.log.seal(),
                false => Ok(()),
            };
            (end, sealed, self.log.room())
        });
        ring.room = room;
        ring.rolled = true;
        self.end_lead(&mut ring);
        drop(ring);
        sealed?;
        self.drop_upto(end, Level::Error, &format!("the journal is damaged: {what}"))
    }
}
