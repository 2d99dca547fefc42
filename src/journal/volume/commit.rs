//! Group commit: whoever must wait writes everything that waits, in one go.

use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::hot::Asked;
use super::mark::{self, Mark};
use super::ring::{Batch, Committer, Gate, Leader, Ring};
use super::shared::Durable;
use super::{Core, Journal};
use crate::base::{Tid, faults};
use crate::journal::error::{JournalError, io};
use crate::journal::local::{INTENT_BYTES, Local};
use crate::journal::log::Position;
use crate::record::FieldWriter;

/// How long a clean stop waits for changes that are under way.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

impl Journal {
    /// Returns when every record up to `upto` (at most the last given) is durable: at once when it is, else as the
    /// leader of a group commit or behind the one that runs.
    ///
    /// # Errors
    /// `Failed`: the records may or may not be on the disk, and the volume takes no more changes.
    pub fn commit(&self, upto: Tid) -> Result<(), JournalError> {
        self.core.commit_upto(upto)
    }

    /// Puts what waits into the log and lets the disk begin with it, for a caller who syncs another file first and commits
    /// then: the two syncs find less to wait for, and no other thread has to be woken. Waits for nobody; while another one
    /// leads, there is nothing to do.
    pub fn start_commit(&self, upto: Tid) {
        let mut ring = self.core.ring.lock();
        let due = ring.durable < upto && ring.sound().is_ok();
        if due && ring.leader == Leader::None && ring.has_unwritten() {
            self.core.lead_write(&mut ring);
        }
    }

    /// Takes no more changes, commits everything and writes down that the log ends here, so that the next open need not
    /// compare anything. The caller has ended its changes before.
    ///
    /// # Errors
    /// `Failed`, also when a change is still under way after ten seconds; then the stop is not clean.
    pub fn close_clean(&self) -> Result<(), JournalError> {
        let core = &*self.core;
        {
            let mut ring = core.ring.lock();
            ring.sound()?;
            ring.gate = Gate::Closed;
        }
        core.space.notify_all();
        core.done.notify_all();
        self.commit(Tid(u64::MAX))?;
        core.wait_unused()?;
        // Under the leader's role, so that the committer does not move the log's end meanwhile.
        let mut ring = core.lead();
        let tid = ring.last;
        let written = MutexGuard::unlocked(&mut ring, || {
            let mark = Mark::of(&core.log, tid);
            core.store.write("clean stop", |tx| mark.put(tx, mark::Stop::Clean))
        });
        core.end_lead(&mut ring);
        if written.is_ok() {
            core.shared.remove();
        }
        written
    }
}

impl Core {
    pub(super) fn commit_upto(&self, upto: Tid) -> Result<(), JournalError> {
        let mut ring = self.ring.lock();
        let upto = upto.min(ring.last);
        while ring.durable < upto {
            ring.sound()?;
            match ring.leader {
                Leader::None => self.lead_commit(&mut ring),
                Leader::Busy => self.done.wait(&mut ring),
            }
        }
        Ok(())
    }

    /// Waits until no change is under way, committing what comes.
    fn wait_unused(&self) -> Result<(), JournalError> {
        let until = Instant::now() + CLOSE_PATIENCE;
        let mut ring = self.ring.lock();
        while ring.in_use() {
            ring.sound()?;
            if ring.has_work() && ring.leader == Leader::None {
                self.lead_commit(&mut ring);
            } else if self.space.wait_until(&mut ring, until).timed_out() {
                return Err(JournalError::Failed { reason: "changes are still under way".to_owned() });
            }
        }
        Ok(())
    }

    /// Waits until nobody else writes to the log, and takes that role.
    pub(super) fn lead(&self) -> MutexGuard<'_, Ring> {
        let mut ring = self.ring.lock();
        while ring.leader == Leader::Busy {
            self.done.wait(&mut ring);
        }
        ring.leader = Leader::Busy;
        ring
    }

    /// Gives the role back.
    pub(super) fn end_lead(&self, ring: &mut MutexGuard<'_, Ring>) {
        ring.leader = Leader::None;
        self.done.notify_all();
        self.space.notify_all();
        if ring.rolled || ring.has_intents() || ring.has_work() && ring.committer == Committer::Resting {
            self.work.notify_one();
        }
    }

    /// Writes everything that waits to the log. The ring is unlocked meanwhile; nobody may be leading.
    fn lead_write(&self, ring: &mut MutexGuard<'_, Ring>) {
        ring.leader = Leader::Busy;
        let batch = ring.take_batch();
        let result = MutexGuard::unlocked(ring, || {
            let from = self.log.end();
            self.write_batch(&batch)?;
            self.log.start_writeback(from);
            Ok::<_, JournalError>((self.log.room(), self.log.end().segment != from.segment))
        });
        match result {
            Ok((room, rolled)) => {
                ring.note_written(batch);
                ring.room = room;
                ring.rolled |= rolled;
            }
            Err(error) => self.fail(ring, &error.to_string()),
        }
        self.end_lead(ring);
    }

    /// Commits everything that waits. The ring is unlocked meanwhile; nobody may be leading.
    pub(super) fn lead_commit(&self, ring: &mut MutexGuard<'_, Ring>) {
        ring.leader = Leader::Busy;
        let mut batches = ring.take_written();
        let batch = ring.take_batch();
        let result = MutexGuard::unlocked(ring, || {
            let before = self.log.end().segment;
            self.write_batch(&batch)?;
            batches.push(batch);
            self.sync(&batches).map(|end| (self.log.room(), end, end.segment != before))
        });
        match result {
            Ok((room, end, rolled)) => {
                batches.iter().for_each(|batch| ring.settle(batch));
                let free_to = batches.last().map_or(0, |batch| batch.end);
                self.shared.settle(free_to, Durable { tid: self.log.durable_tid(), end });
                ring.room = room;
                ring.rolled |= rolled;
                self.want_checkpoint_when_long(ring, end);
            }
            Err(error) => self.fail(ring, &error.to_string()),
        }
        ring.last_commit = Some(Instant::now());
        self.end_lead(ring);
    }

    /// Allocates the next segment. The ring is unlocked meanwhile; nobody may be leading.
    pub(super) fn lead_prepare(&self, ring: &mut MutexGuard<'_, Ring>) -> Result<(), JournalError> {
        ring.leader = Leader::Busy;
        let (prepared, room) = MutexGuard::unlocked(ring, || (self.log.prepare(), self.log.room()));
        ring.room = room;
        self.end_lead(ring);
        prepared
    }

    /// Latches the volume: nothing is recorded, acknowledged or trimmed any more.
    pub(super) fn fail(&self, ring: &mut MutexGuard<'_, Ring>, reason: &str) {
        tracing::error!(reason, "the journal has failed");
        self.shared.set_failed();
        ring.failed.get_or_insert_with(|| reason.to_owned());
    }

    fn write_batch(&self, batch: &Batch) -> Result<(), JournalError> {
        self.write_intents(&batch.intents)?;
        let most = self.log.max_body();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(batch.records.len());
        let mut bytes = 0;
        let mut tid = Tid(batch.first.0 - 1);
        for extent in &batch.records {
            let record = self.shared.record(*extent);
            if bytes + record.len() > most {
                self.write_frame(&parts, tid)?;
                parts.clear();
                bytes = 0;
            }
            parts.push(record);
            bytes += record.len();
            tid = tid.next();
        }
        self.write_frame(&parts, tid)?;
        faults::point("journal.written").map_err(io("commit", Path::new("log")))
    }

    /// Makes `batches` durable, which are all that is in the log and was not; returns where the log ends.
    fn sync(&self, batches: &[Batch]) -> Result<Position, JournalError> {
        self.log.sync()?;
        batches.iter().flat_map(|batch| &batch.intents).for_each(|asked| self.hot.confirm(asked));
        Ok(self.log.end())
    }

    /// Appends the intents as one frame, or several in a log of small segments.
    fn write_intents(&self, intents: &[Asked]) -> Result<(), JournalError> {
        let most = self.log.max_body() / INTENT_BYTES;
        for part in intents.chunks(most) {
            faults::point("journal.intent").map_err(io("append intents", Path::new("log")))?;
            let mut body = FieldWriter::default();
            part.iter().for_each(|asked| Local::Intent(asked.intent).encode(&mut body));
            self.log.append_local(part.len() as u32, &body.0)?;
        }
        Ok(())
    }

    /// Appends records with the TIDs that end with `last`.
    fn write_frame(&self, parts: &[&[u8]], last: Tid) -> Result<(), JournalError> {
        if parts.is_empty() {
            return Ok(());
        }
        let first = Tid(last.0 - parts.len() as u64 + 1);
        let count = parts.len() as u32;
        self.log.append(self.log.last_tid(), first, last, count, parts).map(drop)
    }

    /// The committer's life: at once when the journal was idle, else every interval.
    pub(super) fn run_committer(&self) {
        let mut ring = self.ring.lock();
        while !ring.stop {
            if ring.failed.is_some() {
                self.work.wait(&mut ring);
            } else if ring.leader == Leader::Busy {
                self.done.wait(&mut ring);
            } else if ring.rolled {
                ring.rolled = false;
                MutexGuard::unlocked(&mut ring, || self.housekeep());
            } else if !ring.has_work() {
                self.rest(&mut ring);
            } else {
                self.commit_when_due(&mut ring);
            }
        }
    }

    /// Records that follow a commit soon are committed by the clock; only after a pause the first one wakes the committer.
    /// Without that each fsync of a busy program would wake it for nothing.
    fn rest(&self, ring: &mut MutexGuard<'_, Ring>) {
        match ring.last_commit.map(|last| last + self.options.commit_interval) {
            Some(due) if Instant::now() < due => {
                self.work.wait_until(ring, due);
            }
            _ => {
                ring.committer = Committer::Resting;
                self.work.wait(ring);
                ring.committer = Committer::Active;
            }
        }
    }

    fn commit_when_due(&self, ring: &mut MutexGuard<'_, Ring>) {
        let due = ring.last_commit.map(|last| last + self.options.commit_interval);
        match due {
            // Who posted an intent is about to need it.
            Some(due) if Instant::now() < due && !ring.has_intents() => {
                self.work.wait_until(ring, due);
            }
            _ => self.lead_commit(ring),
        }
    }
}
