//! Changes under way: each fills a slot of the shared memory before it touches the tree and clears it when its record is
//! there. What a kill leaves filled may have happened, and has no record.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::shared::{SLOT_BYTES, SLOTS, Shared};
use crate::base::{Oid, faults};

/// Most objects that one change touches: two directories, what moves, what it puts out.
const MOST_OIDS: usize = 4;
const NAME_BYTES: usize = 255;
const HEAD_BYTES: usize = 12;
const WORDS: usize = SLOTS / 64;

/// What a change is about to do.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay<'a> {
    /// The kernel's number of the request; 0 for the daemon's own changes.
    pub unique: u64,
    /// The objects it changes, known before it is done. A directory that gets or loses a name is one of them.
    pub oids: &'a [Oid],
    /// The name it makes, takes away or moves to; empty where there is none.
    pub name: &'a [u8],
}

/// Which slots are taken, in this process.
pub(super) struct Slots {
    taken: [AtomicU64; WORDS],
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where a thread looks first, so that threads do not meet.
    static FIRST: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS;
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots { taken: Default::default() }
    }

    /// Fills a free slot; returns its number.
    pub(super) fn fill(&self, shared: &Shared, under_way: &UnderWay<'_>) -> usize {
        let no = self.take();
        if !faults::skipped("rule.slots") {
            let mut content = [0; SLOT_BYTES - 8];
            let len = encode(under_way, &mut content);
            shared.fill_slot(no, &content[..len]);
        }
        no
    }

    /// The change is recorded, or did not happen.
    pub(super) fn clear(&self, shared: &Shared, no: usize) {
        shared.clear_slot(no);
        self.taken[no / 64].fetch_and(!(1 << (no % 64)), Ordering::Release);
    }

    /// There are more slots than threads that change anything.
    fn take(&self) -> usize {
        let mut no = FIRST.with(|first| *first);
        loop {
            let bit = 1 << (no % 64);
            if self.taken[no / 64].fetch_or(bit, Ordering::Acquire) & bit == 0 {
                return no;
            }
            no = (no + 1) % SLOTS;
        }
    }
}

fn encode(under_way: &UnderWay<'_>, out: &mut [u8]) -> usize {
    let oids = &under_way.oids[..under_way.oids.len().min(MOST_OIDS)];
    let name = &under_way.name[..under_way.name.len().min(NAME_BYTES)];
    out[..8].copy_from_slice(&under_way.unique.to_le_bytes());
    out[8] = oids.len() as u8;
    out[9] = name.len() as u8;
    let mut at = HEAD_BYTES;
    for oid in oids {
        out[at..at + Oid::LEN].copy_from_slice(&oid.to_bytes());
        at += Oid::LEN;
    }
    out[at..at + name.len()].copy_from_slice(name);
    at + name.len()
}

/// The objects in a slot that a life left filled; `None` when it cannot have written this.
pub(super) fn oids_of(slot: &[u8; SLOT_BYTES]) -> Option<Vec<Oid>> {
    let len = usize::try_from(u64::from_le_bytes(*slot.first_chunk()?)).ok()?;
    let content = slot[8..].get(..len)?;
    let (count, name) = (usize::from(*content.get(8)?), usize::from(*content.get(9)?));
    if count > MOST_OIDS || len != HEAD_BYTES + count * Oid::LEN + name {
        return None;
    }
    let oids = content[HEAD_BYTES..].as_chunks().0;
    Some(oids[..count].iter().map(|bytes| Oid::from_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    #[test]
    fn a_slot_gives_its_objects_back_and_damage_is_seen() {
        let oids: Vec<Oid> = (1..=4).map(|ino| Oid { space: Space(2), generation: 1, ino }).collect();
        let mut slot = [0; SLOT_BYTES];
        let len = encode(&UnderWay { unique: 9, oids: &oids, name: &[b'n'; 255] }, &mut slot[8..]);
        slot[..8].copy_from_slice(&(len as u64).to_le_bytes());
        assert_eq!(oids_of(&slot), Some(oids));
        for (at, value) in [(0, 1), (0, 255), (7, 1), (16, 5)] {
            let mut wrong = slot;
            wrong[at] = value;
            assert_eq!(oids_of(&wrong), None, "byte {at}");
        }
    }
}
