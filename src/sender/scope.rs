//! Which objects a target gets by the volume's rules, at the place of the stream: records are judged by the paths that
//! objects had when the change was made, and readings by those at their stamp, whatever was renamed since.
//!
//! Paths follow from where every directory is, which is kept here and goes on with each record. It is read from the tree
//! when the first session begins, so up to that moment (*settled*) it may be from the future of the stream.
//!
//! Invariants:
//! - A directory is *outside* when a rule excludes it or one above it. Any other object is when all of its names are known
//!   and excluded; in doubt it is inside, and the target ignores what it does not have.
//! - What may have been kept from a target while it could know the object is never believed again: whatever comes inside,
//!   by any way, is compared, and the row stands before the record is sent.
//! - What goes outside is taken from the target, and asked about until it is gone: a row stands for it, too.
//! - While the places are from the future, everything that is moved counts as if it had come inside.
//! - So no wrong judgement outlives its rows, and while rows are there the target is consistent nowhere.

mod learn;
mod records;
mod state;

pub(super) use state::Use;

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::{Oid, Rules, Tid};
use crate::journal::{NewWork, WorkKind, WorkReason};
use crate::record::Slot;

/// Where a directory is, for the rules.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// Its path from the root on.
    Inside(Arc<[u8]>),
    /// Excluded, or below what is.
    Outside,
    /// It is gone, or was met nowhere yet.
    Unknown,
}

/// An object that is no directory and has, or had, an excluded name.
#[derive(Clone, Debug)]
struct Names {
    /// Those that are known.
    slots: Vec<Slot>,
    /// How many it has.
    count: u32,
    /// The count was read from the tree at this TID: records up to there are in it.
    counted: Tid,
}

impl Names {
    /// More than any object has: some names are not known, and never will be.
    const UNKNOWN: u32 = u32::MAX;

    fn has_more(&self) -> bool {
        (self.slots.len() as u64) < u64::from(self.count)
    }
}

/// What is replicated to one target. Takes some 150 bytes for each directory and for each excluded object.
pub(super) struct Scope {
    rules: Arc<Rules>,
    /// The slot of every directory but the root.
    dirs: HashMap<Oid, Slot>,
    names: HashMap<Oid, Names>,
    /// What follows from `dirs`; empty again when a directory moves.
    places: HashMap<Oid, Place>,
    /// The last record that was judged.
    at: Tid,
    /// Up to here the places may be from the future.
    settled: Tid,
}

/// Deeper than any path that the kernel takes.
const MOST_DEPTH: usize = 4096;

impl Scope {
    fn new(rules: Arc<Rules>) -> Scope {
        let (dirs, names, places) = Default::default();
        Scope { rules, dirs, names, places, at: Tid::ZERO, settled: Tid::ZERO }
    }

    /// Up to here what is said of a place may come too early.
    pub(super) fn settled(&self) -> Tid {
        self.settled
    }

    /// There are no records up to `to` that were not judged.
    pub(super) fn skip(&mut self, to: Tid) {
        self.at = self.at.max(to);
    }

    fn place(&mut self, dir: Oid) -> Place {
        let (mut way, mut at) = (Vec::new(), dir);
        let mut place = loop {
            if at == Oid::ROOT {
                break Place::Inside(Arc::from(&b""[..]));
            }
            if let Some(place) = self.places.get(&at) {
                break place.clone();
            }
            // Places of different times may lie in a circle.
            let Some(slot) = self.dirs.get(&at).filter(|_| way.len() < MOST_DEPTH) else { return Place::Unknown };
            way.push(at);
            at = slot.parent;
        };
        for dir in way.into_iter().rev() {
            if let (Place::Inside(path), Some(slot)) = (&place, self.dirs.get(&dir)) {
                let path = join(path, slot.name.as_bytes());
                place = match self.rules.excludes(&path, true) {
                    true => Place::Outside,
                    false => Place::Inside(path.into()),
                };
            }
            self.places.insert(dir, place.clone());
        }
        place
    }

    fn set_place(&mut self, dir: Oid, slot: &Slot) {
        if self.dirs.get(&dir) != Some(slot) {
            self.dirs.insert(dir, slot.clone());
            self.places.clear();
        }
    }

    /// Whether an object with this name is replicated.
    fn includes(&mut self, slot: &Slot, is_dir: bool) -> bool {
        match self.place(slot.parent) {
            Place::Inside(path) => !self.rules.excludes(&join(&path, slot.name.as_bytes()), is_dir),
            Place::Outside => false,
            Place::Unknown => true,
        }
    }

    fn is_outside(&mut self, oid: Oid) -> bool {
        if self.dirs.contains_key(&oid) {
            return self.place(oid) == Place::Outside;
        }
        match self.names.get(&oid) {
            Some(names) if !names.has_more() => {
                let slots = names.slots.clone();
                !slots.iter().any(|slot| self.includes(slot, false))
            }
            _ => false,
        }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// A comparison of the object, and of what is in it. It stands against every TID.
fn compared(oid: Oid, is_dir: bool) -> NewWork {
    row(oid, if is_dir { WorkKind::Tree } else { WorkKind::Object })
}

/// A directory alone, with the names that are in it.
fn listing(oid: Oid) -> NewWork {
    row(oid, WorkKind::Dir)
}

/// The attributes of an object.
fn attributes(oid: Oid) -> NewWork {
    row(oid, WorkKind::Range)
}

fn row(oid: Oid, kind: WorkKind) -> NewWork {
    NewWork { oid, kind, reason: WorkReason::Verify, offset: 0, len: 0, created_tid: Tid::ZERO }
}
