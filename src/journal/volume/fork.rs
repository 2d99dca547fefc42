//! A new epoch while changes go on: the history leaves a course that somebody else has followed further.

use std::time::Instant;

use parking_lot::MutexGuard;

use super::commit::CLOSE_PATIENCE;
use super::mark::{Mark, Stop};
use super::recover::JUMP;
use super::ring::{Gate, Leader, Ring, Share};
use super::shared::Durable;
use super::{Core, Journal};
use crate::base::{EpochId, Tid};
use crate::journal::error::JournalError;
use crate::journal::local::Local;
use crate::journal::log::{ChainEnd, Room, frame_bytes};
use crate::journal::store::{Level, put_epoch, put_event};
use crate::record::FieldWriter;

impl Journal {
    /// Begins a new epoch behind everything that was recorded so far. TIDs jump over `seen` and far beyond, so that none
    /// names two changes. Changes wait for a moment. Returns the epoch; `why` goes to the event.
    ///
    /// # Errors
    /// `Failed`, also when changes do not come to an end; else as for a checkpoint. What is written down before an error
    /// holds: the next open begins in the new epoch.
    pub fn begin_epoch(&self, seen: Tid, why: &str) -> Result<EpochId, JournalError> {
        let core = &*self.core;
        {
            let mut ring = core.ring.lock();
            ring.open()?;
            ring.gate = Gate::Paused;
        }
        let done = core.leave_epoch(seen, why);
        let mut ring = core.ring.lock();
        if ring.gate == Gate::Paused {
            ring.gate = Gate::Open;
        }
        drop(ring);
        core.space.notify_all();
        core.done.notify_all();
        done
    }
}

impl Core {
    fn leave_epoch(&self, seen: Tid, why: &str) -> Result<EpochId, JournalError> {
        let epoch = EpochId::random();
        let mut ring = self.lead_unused()?;
        let given = ring.last;
        let last = Tid(given.max(seen).0 + JUMP - 1);
        let mut body = FieldWriter::default();
        Local::Gap { epoch, next: last.next() }.encode(&mut body);
        let share = Share { bytes: 0, disk: frame_bytes(body.0.len()) };
        let taken = self.room_while_leading(&mut ring, share);
        let written = taken.and_then(|()| {
            let written = MutexGuard::unlocked(&mut ring, || self.write_epoch((epoch, given, last), &body.0, why));
            ring.give_back(share);
            written
        });
        if let Ok((durable, room)) = written {
            ring.room = room;
            (ring.last, ring.durable) = (last, last);
            self.shared.set_last(last);
            self.shared.set_durable(durable);
            *self.epoch.lock() = epoch;
        }
        self.end_lead(&mut ring);
        written.map(|_| epoch)
    }

    /// First what the next open needs to go on in the new epoch, then the log's own word.
    fn write_epoch(
        &self,
        (epoch, given, last): (EpochId, Tid, Tid),
        gap: &[u8],
        why: &str,
    ) -> Result<(Durable, Room), JournalError> {
        let fork = ChainEnd { tid: given, ..self.log.chain_end() };
        let mark = Mark::of(&self.log, last);
        let text = format!("{why}; epoch {epoch} begins behind {given}");
        self.store.write("new epoch", |tx| {
            put_epoch(tx, epoch, fork)?;
            mark.put(tx, Stop::Open)?;
            put_event(tx, Level::Warning, None, &text)
        })?;
        self.log.set_epoch(epoch);
        let appended = self.log.append_local(1, gap).and_then(|_| self.log.sync());
        // The store is in the new epoch already: nothing may be recorded in the old one any more.
        appended.inspect_err(|error| self.fail(&mut self.ring.lock(), &error.to_string()))?;
        Ok((Durable { tid: self.log.durable_tid(), end: self.log.end() }, self.log.room()))
    }

    /// Room for a frame; nothing else takes any meanwhile.
    fn room_while_leading(&self, ring: &mut MutexGuard<'_, Ring>, share: Share) -> Result<(), JournalError> {
        if ring.take_room(share).is_ok() {
            return Ok(());
        }
        ring.room = MutexGuard::unlocked(ring, || self.log.prepare().map(|()| self.log.room()))?;
        let full = || JournalError::Failed { reason: "the log has no room for a new epoch".to_owned() };
        ring.take_room(share).map_err(|_| full())
    }

    /// Takes the leader's role when no change is under way and nothing waits; no new one begins meanwhile.
    fn lead_unused(&self) -> Result<MutexGuard<'_, Ring>, JournalError> {
        let until = Instant::now() + CLOSE_PATIENCE;
        let mut ring = self.ring.lock();
        loop {
            ring.open()?;
            match (ring.leader, ring.in_use()) {
                (Leader::None, false) => break,
                (Leader::None, true) if ring.has_work() => self.lead_commit(&mut ring),
                (Leader::Busy, _) => _ = self.done.wait_until(&mut ring, until),
                (Leader::None, true) => _ = self.space.wait_until(&mut ring, until),
            }
            if Instant::now() >= until {
                return Err(JournalError::Failed { reason: "changes are still under way".to_owned() });
            }
        }
        ring.leader = Leader::Busy;
        Ok(ring)
    }
}
