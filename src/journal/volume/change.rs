//! A change under way: between the look at what is hot and the record's TID.

use std::cell::Cell;

use super::hot::Pass;
use super::slots::UnderWay;
use super::{Core, Journal};
use crate::base::{Oid, faults};
use crate::journal::local::Intent;

/// A change that may be made now. Dropped when its record has its TID, or when it came to nothing.
pub struct InFlight<'a> {
    core: &'a Core,
    pass: Pass<'a>,
    slot: usize,
    end: Cell<End>,
}

/// What becomes of the slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Cleared,
    /// The change may have happened, and there is no record: the next open looks at its objects.
    Left,
}

impl Journal {
    /// Begins a change under the locks of its objects: `None` when one of the intents is not durable, or not any more;
    /// then [`super::Reservation::announce`] comes first, without the locks.
    ///
    /// Costs no system call.
    pub fn begin_change(&self, intents: &[Intent], under_way: &UnderWay<'_>) -> Option<InFlight<'_>> {
        let core = &*self.core;
        let pass = core.hot.enter();
        let hot = |intent: &Intent| pass.is_hot(*intent);
        if !intents.iter().all(hot) && !faults::skipped("rule.intents") {
            return None;
        }
        let slot = core.slots.fill(&core.shared, under_way);
        // A kill here leaves a slot for a change that was never made.
        let _ = faults::point("journal.slot_filled");
        Some(InFlight { core, pass, slot, end: Cell::new(End::Cleared) })
    }
}

impl Journal {
    /// `oid` has lost its last name and is held open: should it end by a crash, no record will say so.
    pub fn orphan(&self, oid: Oid) {
        self.core.orphans.lock().insert(oid);
    }

    /// The end of an orphan is recorded.
    pub fn not_orphan(&self, oid: Oid) {
        self.core.orphans.lock().remove(&oid);
    }
}

impl InFlight<'_> {
    /// The change made `oid`, in a directory that it announced: what happens to it next needs no intent of its own, until
    /// a checkpoint begins.
    pub fn born(&self, oid: Oid) {
        self.pass.born(oid, self.core.most_births());
    }

    /// The change was made and cannot be recorded.
    pub fn leave(&self) {
        self.end.set(End::Left);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let _ = faults::point("journal.slot_clearing");
        // A change that ends in a panic may be half made.
        if self.end.get() == End::Cleared && !std::thread::panicking() {
            self.core.slots.clear(&self.core.shared, self.slot);
        }
    }
}
