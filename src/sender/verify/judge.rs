//! What the target's answers amount to: what is looked at again, what is a difference, and how it is told.

use std::sync::Arc;

use super::{Run, Stage, Task, What, join};
use crate::catchup::{TreeView, name_in};
use crate::record::{Difference, DifferenceKind};
use crate::sender::verify_desk::Found;

/// How often what is pending is looked at, a little later each time.
const MOST_TRIES: u32 = 20;
/// Differences that are kept with their paths.
const MOST_KEPT: usize = 1000;
/// Ranges of one object that get a second look: one that differs is enough.
const MOST_RANGES: usize = 64;
const SUSPECT_BYTES: u64 = 1 << 20;
/// Looks at what differs in nothing but what a single look may be wrong about.
const MOST_LOOKS: u32 = 6;

impl Run {
    /// What the target says of one reading.
    pub(super) fn judge(&mut self, view: &dyn TreeView, task: Task, heard: &[Difference]) {
        if heard.iter().any(|difference| difference.kind == DifferenceKind::Pending) {
            return self.look_again(task);
        }
        if heard.is_empty() {
            return;
        }
        match self.stage {
            Stage::FirstLook | Stage::LookAfterMending => self.suspect(&task, heard),
            Stage::SecondLook | Stage::LastLook if task.looks < MOST_LOOKS && heard.iter().all(may_be_wrong) => {
                self.later.push(Task { looks: task.looks + 1, ..task });
            }
            Stage::SecondLook => {
                heard.iter().for_each(|difference| self.report(view, &task, difference));
                self.confirmed.insert(task.oid, task);
            }
            Stage::LastLook => self.progress.left += heard.len() as u64,
            Stage::Mending => {}
        }
    }

    pub(super) fn look_again(&mut self, task: Task) {
        match task.tries < MOST_TRIES {
            true => self.later.push(Task { tries: task.tries + 1, ..task }),
            false => self.progress.unsettled += 1,
        }
    }

    fn suspect(&mut self, task: &Task, heard: &[Difference]) {
        let again = |what| Task { what, tries: 0, ..task.clone() };
        if let What::Tree | What::Listing = task.what {
            return self.suspects.push(again(What::Listing));
        }
        if heard.iter().any(|difference| !difference.kind.has_range()) {
            self.suspects.push(again(What::Suspect { offset: 0, len: 0 }));
        }
        for difference in heard.iter().filter(|difference| difference.kind.has_range()).take(MOST_RANGES) {
            let (offset, len) = (difference.offset, difference.len.min(SUSPECT_BYTES));
            self.suspects.push(again(What::Suspect { offset, len }));
        }
    }

    fn report(&mut self, view: &dyn TreeView, task: &Task, difference: &Difference) {
        if self.seen.len() >= MOST_KEPT {
            self.progress.found += 1;
            return;
        }
        let (path, xattr) = match (task.what, difference.kind) {
            (_, DifferenceKind::Xattr) => (self.path_of(view, task), difference.name.clone()),
            (What::Listing, _) if !difference.name.is_empty() => (join(task.dir.path(), &difference.name), Vec::new()),
            _ => (self.path_of(view, task), Vec::new()),
        };
        let told = |kind| self.seen.contains(&Found { path: path.clone(), kind, offset: 0, xattr: Vec::new() });
        let is_object = difference.kind == DifferenceKind::Missing && difference.name.is_empty();
        if is_object && (told(DifferenceKind::Replaced) || told(DifferenceKind::Missing)) {
            return;
        }
        let found = Found { path, kind: difference.kind, offset: difference.offset, xattr };
        // Seen in two ranges, or by two names, it is told once.
        if self.seen.insert(found.clone()) {
            self.progress.found += 1;
            Arc::make_mut(&mut self.progress.differences).push(found);
        }
    }

    fn path_of(&self, view: &dyn TreeView, task: &Task) -> Vec<u8> {
        if task.dir.oid == task.oid {
            return task.dir.path();
        }
        match name_in(view, task.dir.oid, task.oid) {
            Ok(Some(name)) => join(task.dir.path(), name.as_bytes()),
            // It has moved since.
            _ => join(task.dir.path(), format!("(object {})", task.oid).as_bytes()),
        }
    }
}

/// A name that came between two parts of a directory is named with none of them; and a filesystem that has no FIEMAP shows
/// data in a reserved range while somebody reads there.
fn may_be_wrong(difference: &Difference) -> bool {
    matches!(difference.kind, DifferenceKind::Extra | DifferenceKind::Holes)
}
