//! Objects that move while a tree is read: one that leaves a directory before that is read, for one that was read already, is
//! met in neither. Its name is put right by the record of the move; what it holds would never be looked at.

use std::collections::HashMap;

use crate::base::{Oid, Tid};
use crate::record::{Instead, Op, RecordIter};

/// An object that got a name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moved {
    pub(super) oid: Oid,
    pub(super) is_dir: bool,
    /// Where it was before; `None` where that is not said.
    from: Option<Oid>,
    /// Where it is now.
    pub(super) to: Oid,
    tid: Tid,
}

/// What moved by these records. Those that cannot be read are the target's to refuse.
pub(super) fn moved_by(body: &[u8]) -> Vec<Moved> {
    let mut moved = Vec::new();
    for record in RecordIter::new(body).flatten() {
        let tid = record.tid;
        let (oid, op) = match record.op {
            Op::Filtered { instead: Some(Instead { oid, op }), .. } => (oid, *op),
            op => (record.oid, op),
        };
        match op {
            Op::Rename { from, to, shape, .. } => {
                moved.push(Moved { oid, is_dir: shape.is_dir(), from: Some(from.parent), to: to.parent, tid });
            }
            Op::Exchange { from, to, shape, other, other_shape, .. } => {
                moved.push(Moved { oid, is_dir: shape.is_dir(), from: Some(from.parent), to: to.parent, tid });
                let is_dir = other_shape.is_dir();
                moved.push(Moved { oid: other, is_dir, from: Some(to.parent), to: from.parent, tid });
            }
            // Its other name may go next.
            Op::Link { slot, .. } => moved.push(Moved { oid, is_dir: false, from: None, to: slot.parent, tid }),
            _ => {}
        }
    }
    moved
}

/// The directories that were read, each with the stamp of its last part.
#[derive(Default)]
pub(super) struct Listed(HashMap<Oid, Tid>);

/// Most directories that are remembered. What moves out of others is read once more.
const MOST: usize = 200_000;

impl Listed {
    pub(super) fn add(&mut self, dir: Oid, stamp: Tid) {
        if self.0.len() < MOST {
            self.0.insert(dir, stamp);
        }
    }

    /// Whether the object may have been met nowhere: it is not sure that it was in its directory when that was read.
    pub(super) fn may_miss(&self, moved: &Moved) -> bool {
        moved.from.is_none_or(|from| self.0.get(&from).is_none_or(|stamp| *stamp >= moved.tid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(ino: u64) -> Oid {
        Oid { ino, ..Oid::ROOT }
    }

    #[test]
    fn what_left_a_directory_after_it_was_read_was_met() {
        let mut listed = Listed::default();
        listed.add(dir(5), Tid(10));
        let moved = |from, tid| Moved { oid: dir(9), is_dir: false, from, to: dir(6), tid: Tid(tid) };
        assert!(!listed.may_miss(&moved(Some(dir(5)), 11)));
        assert!(listed.may_miss(&moved(Some(dir(5)), 10)), "it had left when the directory was read");
        assert!(listed.may_miss(&moved(Some(dir(7)), 11)), "that one is not read yet");
        assert!(listed.may_miss(&moved(None, 11)));
    }
}
