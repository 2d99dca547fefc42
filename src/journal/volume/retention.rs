//! What may be forgotten: trimming behind the targets, and bounded space when one of them does not follow.

use parking_lot::MutexGuard;

use super::{Core, Journal};
use crate::base::Tid;
use crate::journal::error::JournalError;
use crate::journal::store::{Level, all_targets, lose_place, put_event};

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

    fn trim(&self) -> Result<(), JournalError> {
        let targets = self.store.targets()?;
        // A target whose mirror was never queued has no place in the log yet.
        let placed = targets.iter().filter(|target| target.mirrored);
        let slowest = placed.map(|target| target.applied).min();
        let durable = self.log.durable_tid();
        self.log.trim_upto(slowest.unwrap_or(durable).min(durable))?;
        self.store.segments_set(&self.log.rows())
    }

    /// Drops the oldest segments until the log is below its cap. Targets that still need them lose their place.
    fn bound(&self) -> Result<(), JournalError> {
        while self.log.bytes_used() > self.options.cap_bytes {
            let Some(end) = self.log.oldest_sealed_end() else {
                return Ok(());
            };
            self.drop_upto(end, Level::Warning, "the journal is full")?;
        }
        Ok(())
    }

    /// Frees every segment up to `end`. The cursors that stand before it are moved, with compare work and an event, in
    /// one transaction that is durable before anything is freed.
    fn drop_upto(&self, end: Tid, level: Level, why: &str) -> Result<(), JournalError> {
        self.store.write("drop segments", |tx| {
            for target in all_targets(tx)? {
                if target.mirrored && target.applied < end {
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
        self.log.trim_upto(end)?;
        self.store.segments_set(&self.log.rows())
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
