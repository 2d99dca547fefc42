//! Room for a change's record, taken before the change is made.

use std::path::Path;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::hot::Asked;
use super::ring::{Committer, Gate, INTENTS_ROOM, Lack, Leader, Ring, Share};
use super::{Core, Journal};
use crate::base::{Tid, faults};
use crate::journal::error::{JournalError, io};
use crate::journal::local::Intent;
use crate::record::Draft;

/// Room in ring and log for one record. Dropped without [`Reservation::commit`], it gives the room back.
pub struct Reservation<'a> {
    core: &'a Core,
    share: Share,
    state: State,
    /// Whether the room for its intents is still there.
    intents: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    Used,
}

impl Journal {
    /// Takes room for a record of up to `bytes` bytes. Call it before the backing tree is touched.
    ///
    /// While the ring is full this waits for our own disk, never for a target, unless the volume is to
    /// [block](super::WhenFull::Block) at its cap.
    ///
    /// # Errors
    /// `Failed`; `Superseded` when another copy went on without this one; `TooLarge` for more than a frame takes; `Io` with ENOSPC when the disk has no room for the log to go on.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation<'_>, JournalError> {
        faults::point("journal.reserve").map_err(io("reserve", Path::new("ring")))?;
        let share = Share::of(bytes).with(INTENTS_ROOM);
        self.core.reserve_share(bytes, share)?;
        Ok(Reservation { core: &self.core, share, state: State::Held, intents: State::Held })
    }

    /// As [`Journal::reserve`], for a change of one object that may take two records, of up to `bytes` and `second_bytes`. Room
    /// for both is taken at once: whoever held some of it while he waited for more would keep a new epoch from beginning.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn reserve_both(
        &self,
        bytes: usize,
        second_bytes: usize,
    ) -> Result<(Reservation<'_>, Reservation<'_>), JournalError> {
        faults::point("journal.reserve").map_err(io("reserve", Path::new("ring")))?;
        let (share, second) = (Share::of(bytes).with(INTENTS_ROOM), Share::of(second_bytes));
        self.core.reserve_share(bytes.max(second_bytes), share.with(second))?;
        let first = Reservation { core: &self.core, share, state: State::Held, intents: State::Held };
        let second = Reservation { core: &self.core, share: second, state: State::Held, intents: State::Used };
        Ok((first, second))
    }
}

impl Reservation<'_> {
    /// Gives the change its TID and queues its record for the next group commit. The caller holds the object's lock, so
    /// that the order of TIDs is the order of the changes. Does not wait for a disk.
    pub fn commit(mut self, mut draft: Draft<'_>) -> Tid {
        let len = draft.len_bytes();
        debug_assert!(Share::of(len).bytes <= self.share.bytes, "more than reserved");
        self.state = State::Used;
        // Room is reserved for the longest record that the change may need; what this one does not need is free again.
        let needed = Share::of(len);
        let core = self.core;
        let mut ring = core.ring.lock();
        ring.give_back(self.share);
        ring.take(needed);
        let (tid, time_ns, extent) = ring.push(&core.shared, len, needed);
        let resting = std::mem::replace(&mut ring.committer, Committer::Active) == Committer::Resting;
        drop(ring);
        draft.finish(tid, time_ns);
        core.shared.fill(extent, &draft.parts());
        if resting {
            core.work.notify_one();
        }
        // Whoever waits for room may lead a commit now.
        core.space.notify_one();
        tid
    }

    /// Returns when the intents are durable: then the objects may be changed, until a checkpoint begins. The caller holds
    /// no lock. Waits for our own disk, and for a checkpoint when too many objects are hot.
    ///
    /// # Errors
    /// `Failed`; then nothing may be changed.
    pub fn announce(&mut self, intents: &[Intent]) -> Result<(), JournalError> {
        if faults::skipped("rule.intents") {
            return Ok(());
        }
        let core = self.core;
        let mut ring = core.ring.lock();
        core.wait_cooler(&mut ring)?;
        let asked: Vec<Asked> = intents.iter().filter_map(|intent| core.hot.ask(*intent)).collect();
        if !asked.is_empty() {
            let share = match self.share.disk >= INTENTS_ROOM.disk && self.intents == State::Held {
                true => {
                    self.intents = State::Used;
                    self.share.disk -= INTENTS_ROOM.disk;
                    INTENTS_ROOM
                }
                // A generation began between: rare, and little.
                false => core.take_room(&mut ring, INTENTS_ROOM).map(|()| INTENTS_ROOM)?,
            };
            ring.push_intents(&asked, share);
        }
        let upto = ring.intents_given;
        while ring.intents_durable < upto {
            ring.sound()?;
            match ring.leader {
                Leader::None => core.lead_commit(&mut ring),
                Leader::Busy => core.done.wait(&mut ring),
            }
        }
        Ok(())
    }
}

impl Journal {
    /// Sends intents on their way without waiting, where there is room at once: somebody is about to change the objects.
    pub fn prefetch(&self, intents: &[Intent]) {
        let core = &*self.core;
        let mut ring = core.ring.lock();
        if ring.open().is_err() || core.is_hot_set_full() || ring.take_room(INTENTS_ROOM).is_err() {
            return;
        }
        let asked: Vec<Asked> = intents.iter().filter_map(|intent| core.hot.ask(*intent)).collect();
        if asked.is_empty() {
            return ring.give_back(INTENTS_ROOM);
        }
        ring.push_intents(&asked, INTENTS_ROOM);
        drop(ring);
        core.work.notify_one();
    }
}

impl Core {
    /// Takes room for a change whose longest record has `bytes`, when changes are taken.
    fn reserve_share(&self, bytes: usize, share: Share) -> Result<(), JournalError> {
        if self.superseded.load(Ordering::Relaxed) {
            return Err(JournalError::Superseded);
        }
        let mut ring = self.ring.lock();
        let most = self.log.max_body().min(ring.most_bytes - Share::of(0).bytes);
        if bytes > most {
            return Err(JournalError::TooLarge { bytes, most });
        }
        loop {
            self.take_room(&mut ring, share)?;
            if !matches!(ring.gate, Gate::Blocked | Gate::Paused) {
                return Ok(());
            }
            ring.give_back(share);
            self.space.wait(&mut ring);
        }
    }

    /// Takes room, waiting for our own disk and for nothing else.
    pub(super) fn take_room(&self, ring: &mut MutexGuard<'_, Ring>, share: Share) -> Result<(), JournalError> {
        loop {
            ring.open()?;
            match ring.take_room(share) {
                Ok(()) => return Ok(()),
                Err(_) if ring.leader == Leader::Busy => self.done.wait(ring),
                Err(Lack::Segment) => self.lead_prepare(ring)?,
                Err(Lack::Commit) if ring.has_work() => self.lead_commit(ring),
                Err(Lack::Commit) => self.space.wait(ring),
            }
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.state == State::Held {
            self.core.ring.lock().give_back(self.share);
            self.core.space.notify_all();
        }
    }
}
