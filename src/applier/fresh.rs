//! Files that were made a moment ago: what they cannot have need not be looked for.

use std::collections::HashSet;

use crate::base::Oid;

/// Most files that are remembered; of others everything is looked at.
const MOST: usize = 131_072;

/// Files that this process made and that hold nothing yet: no data, no xattr but their oid, no flags. A restart forgets
/// them, because after a crash the tree may be ahead of what is known of it.
pub(super) struct Fresh {
    files: HashSet<Oid>,
    /// Whether new files are like that at all on this tree.
    plain: bool,
}

impl Fresh {
    /// `plain`: a new file inherits neither flags nor an access control list.
    pub(super) fn new(plain: bool) -> Fresh {
        Fresh { files: HashSet::new(), plain }
    }

    pub(super) fn insert(&mut self, oid: Oid) {
        if self.plain && self.files.len() < MOST {
            self.files.insert(oid);
        }
    }

    pub(super) fn contains(&self, oid: Oid) -> bool {
        self.files.contains(&oid)
    }

    /// Something is about to be set on it, or it is gone.
    pub(super) fn remove(&mut self, oid: Oid) -> bool {
        self.files.remove(&oid)
    }
}
