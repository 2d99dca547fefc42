//! Hard links: the names of one inode must be the same names on both sides.

use std::collections::HashMap;

use super::What;
use super::object::Object;

/// Which inode of one side stands for which of the other. The two partitions of names are equal exactly when this is
/// one to one. Only inodes with several links are kept.
#[derive(Default)]
pub(super) struct LinkGroups {
    b_of_a: HashMap<u64, u64>,
    a_of_b: HashMap<u64, u64>,
}

impl LinkGroups {
    /// Enters a pair found at one name. True when the same pair was met before, so that its content needs no second
    /// reading.
    pub(super) fn seen(&mut self, a: &Object, b: &Object, found: &mut Vec<What>) -> bool {
        if a.stat.nlink < 2 && b.stat.nlink < 2 {
            return false;
        }
        let (ino_a, ino_b) = (a.stat.ino, b.stat.ino);
        let known = self.b_of_a.get(&ino_a) == Some(&ino_b);
        let expected_b = *self.b_of_a.entry(ino_a).or_insert(ino_b);
        let expected_a = *self.a_of_b.entry(ino_b).or_insert(ino_a);
        if (expected_a, expected_b) != (ino_a, ino_b) {
            found.push(What::HardLinks);
        }
        known
    }
}
