//! Room for a change's record, taken before the change is made.

use std::path::Path;

use super::ring::{Gate, Lack, Leader, Share};
use super::{Core, Journal};
use crate::base::{Tid, faults};
use crate::journal::error::{JournalError, io};
use crate::journal::log::frame_bytes;
use crate::record::Draft;

/// Room in ring and log for one record. Dropped without [`Reservation::commit`], it gives the room back.
pub struct Reservation<'a> {
    core: &'a Core,
    share: Share,
    state: State,
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
    /// `Failed`; `TooLarge` for more than a frame takes; `Io` with ENOSPC when the disk has no room for the log to go on.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation<'_>, JournalError> {
        faults::point("journal.reserve").map_err(io("reserve", Path::new("ring")))?;
        let core = &*self.core;
        let share = Share { bytes, disk: frame_bytes(bytes) };
        let mut ring = core.ring.lock();
        let most = core.log.max_body().min(ring.most_bytes);
        if bytes > most {
            return Err(JournalError::TooLarge { bytes, most });
        }
        loop {
            ring.open()?;
            if ring.gate == Gate::Blocked {
                core.space.wait(&mut ring);
                continue;
            }
            match ring.take_room(share) {
                Ok(()) => break,
                Err(_) if ring.leader == Leader::Busy => core.done.wait(&mut ring),
                Err(Lack::Segment) => core.lead_prepare(&mut ring)?,
                Err(Lack::Commit) if ring.pending() > 0 => core.lead_commit(&mut ring),
                Err(Lack::Commit) => core.space.wait(&mut ring),
            }
        }
        Ok(Reservation { core, share, state: State::Held })
    }
}

impl Reservation<'_> {
    /// Gives the change its TID and queues its record for the next group commit. The caller holds the object's lock, so
    /// that the order of TIDs is the order of the changes. Does not wait for a disk.
    pub fn commit(mut self, draft: Draft) -> Tid {
        debug_assert!(draft.len_bytes() <= self.share.bytes, "more than reserved");
        self.state = State::Used;
        // Room is reserved for the longest record that the change may need; what this one does not need is free again.
        let needed = Share { bytes: draft.len_bytes(), disk: frame_bytes(draft.len_bytes()) };
        let mut ring = self.core.ring.lock();
        ring.give_back(self.share);
        ring.take(needed);
        let tid = ring.push(draft, needed);
        let wake = std::mem::take(&mut ring.resting);
        drop(ring);
        if wake {
            self.core.work.notify_one();
        }
        // Whoever waits for room may lead a commit now.
        self.core.space.notify_one();
        tid
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
