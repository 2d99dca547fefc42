//! Descriptors of directories that were used a moment ago: a name in one of them then costs no open and no close.
//!
//! Bounded, whatever the number of nodes. A descriptor keeps its inode alive, so one goes when its directory is removed;
//! should a request that runs beside the removal bring it back, it goes in its turn, and meanwhile answers as a removed
//! directory does (ENOENT).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::ObjectKey;

const SHARDS: usize = 16;
const MOST_PER_SHARD: usize = 8;

/// O_PATH descriptors by object.
///
/// Locks: one per shard; each protects its list. Rank: a leaf. Held for a look at a few words.
#[derive(Default)]
pub(super) struct Descriptors {
    shards: [Mutex<Vec<Kept>>; SHARDS],
}

/// The list is in the order of use, the last used at the end.
struct Kept {
    key: ObjectKey,
    fd: Arc<OwnedFd>,
}

impl Descriptors {
    fn shard(&self, key: ObjectKey) -> &Mutex<Vec<Kept>> {
        &self.shards[key.ino as usize % SHARDS]
    }

    /// The descriptor of `key`, when it is kept.
    pub(super) fn get(&self, key: ObjectKey) -> Option<Arc<OwnedFd>> {
        let mut kept = self.shard(key).lock();
        let at = kept.iter().rposition(|one| one.key == key)?;
        let fd = Arc::clone(&kept[at].fd);
        kept[at..].rotate_left(1);
        Some(fd)
    }

    /// Keeps a descriptor; the one that was not used for longest goes when there are too many.
    pub(super) fn keep(&self, key: ObjectKey, fd: &Arc<OwnedFd>) {
        let mut kept = self.shard(key).lock();
        if kept.iter().any(|one| one.key == key) {
            return;
        }
        let oldest = (kept.len() >= MOST_PER_SHARD).then(|| kept.remove(0));
        kept.push(Kept { key, fd: Arc::clone(fd) });
        drop(kept);
        // Closed here and not under the lock.
        drop(oldest);
    }

    /// `key` was removed.
    pub(super) fn let_go(&self, key: ObjectKey) {
        let mut kept = self.shard(key).lock();
        let gone = kept.iter().position(|one| one.key == key).map(|at| kept.remove(at));
        drop(kept);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_are_kept() {
        let descriptors = Descriptors::default();
        let fd = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let key = |n: u64| ObjectKey { ino: n * SHARDS as u64, generation: 1 };
        for n in 0..MOST_PER_SHARD as u64 {
            descriptors.keep(key(n), &fd);
        }
        assert!(descriptors.get(key(0)).is_some());
        descriptors.keep(key(100), &fd);
        assert!(descriptors.get(key(1)).is_none(), "the one that was used first went");
        assert!(descriptors.get(key(0)).is_some());
        assert!(descriptors.get(ObjectKey { generation: 2, ..key(0) }).is_none());
        descriptors.let_go(key(0));
        assert!(descriptors.get(key(0)).is_none());
        drop(descriptors);
        assert_eq!(Arc::strong_count(&fd), 1);
    }
}
