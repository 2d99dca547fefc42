//! Which nodes the kernel knows, and the ghosts among them.
//!
//! A ghost is an object that lost its last name while nobody had it open, and whose node the kernel still uses: as a
//! working directory, or behind an O_PATH descriptor. For a target it is gone, and nobody can give it a name again; so
//! what is done to it is done, and leaves no record.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::base::ObjectKey;

const SHARDS: usize = 64;
/// Most ghosts that are kept alive. Usually there are as many as the kernel has not yet come to forget.
const MOST_GHOSTS: usize = 256;

struct Node {
    generation: u32,
    /// Look-ups that were answered and not yet given back.
    lookups: u64,
    life: Life,
}

enum Life {
    Named,
    /// Gone, but the descriptor keeps the inode alive.
    Ghost {
        _inode: OwnedFd,
    },
    /// Gone: there were too many ghosts.
    Stale,
}

/// The nodes that answered look-ups, by inode number. No descriptor is kept for any of them but ghosts.
///
/// Locks: one per shard; each protects its map. Rank: a leaf, below the object locks. Held only for a look-up in the map.
pub(super) struct NodeTable {
    shards: Vec<Mutex<HashMap<u64, Node>>>,
    /// Descriptors that ghosts hold.
    ghosts: AtomicUsize,
}

impl NodeTable {
    pub(super) fn new() -> NodeTable {
        NodeTable { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), ghosts: AtomicUsize::new(0) }
    }

    fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, Node>> {
        &self.shards[ino as usize % SHARDS]
    }

    /// The object that the kernel means by `ino`.
    pub(super) fn known(&self, ino: u64) -> Option<ObjectKey> {
        let shard = self.shard(ino).lock();
        let node = shard.get(&ino)?;
        Some(ObjectKey { ino, generation: node.generation })
    }

    /// Counts one look-up of `key`. Must come before the reply: a FORGET on another thread may follow it at once.
    ///
    /// A recycled inode number takes the entry over; the count stays the sum of both, because the kernel gives back the
    /// look-ups of its stale inode under the same number.
    ///
    /// True when the object was not known.
    pub(super) fn count(&self, key: ObjectKey) -> bool {
        let mut shard = self.shard(key.ino).lock();
        let fresh = Node { generation: key.generation, lookups: 0, life: Life::Named };
        let node = shard.entry(key.ino).or_insert(fresh);
        let other = node.generation != key.generation;
        if other {
            node.generation = key.generation;
            self.bury(std::mem::replace(&mut node.life, Life::Named));
        }
        node.lookups += 1;
        other || node.lookups == 1
    }

    /// Gives `lookups` back; the last one removes the node.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        let mut shard = self.shard(ino).lock();
        let Some(node) = shard.get_mut(&ino) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0
            && let Some(node) = shard.remove(&ino)
        {
            self.bury(node.life);
        }
    }

    /// Makes `key`, open as `fd` (`None` when there was no descriptor to spare), a ghost if the kernel knows it. The caller holds the object's lock.
    pub(super) fn haunt(&self, key: ObjectKey, fd: Option<OwnedFd>) {
        let mut shard = self.shard(key.ino).lock();
        if let Some(node) = shard.get_mut(&key.ino)
            && node.generation == key.generation
        {
            let life = self.keep_alive(fd);
            self.bury(std::mem::replace(&mut node.life, life));
        }
    }

    fn keep_alive(&self, inode: Option<OwnedFd>) -> Life {
        let Some(_inode) = inode else {
            return Life::Stale;
        };
        let one_more = |ghosts| (ghosts < MOST_GHOSTS).then_some(ghosts + 1);
        match self.ghosts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Life::Ghost { _inode },
            Err(_) => Life::Stale,
        }
    }

    fn bury(&self, life: Life) {
        if let Life::Ghost { .. } = life {
            self.ghosts.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether `key` is a ghost: gone as far as any record is concerned.
    pub(super) fn is_ghost(&self, key: ObjectKey) -> bool {
        let shard = self.shard(key.ino).lock();
        shard.get(&key.ino).is_some_and(|node| node.generation == key.generation && !matches!(node.life, Life::Named))
    }

    /// How many nodes are known.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lives_as_long_as_its_lookups() {
        let table = NodeTable::new();
        let key = ObjectKey { ino: 9, generation: 3 };
        table.count(key);
        table.count(key);
        table.forget(9, 1);
        assert_eq!(table.known(9), Some(key));
        table.forget(9, 1);
        assert_eq!(table.known(9), None);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn ghosts_are_bounded_and_end_with_their_node() {
        let table = NodeTable::new();
        let file = tempfile::tempfile().unwrap();
        let keys = || (10..10 + 2 * MOST_GHOSTS as u64).map(|ino| ObjectKey { ino, generation: 1 });
        for key in keys() {
            table.count(key);
            table.haunt(key, Some(file.try_clone().unwrap().into()));
            assert!(table.is_ghost(key));
        }
        assert_eq!(table.ghosts.load(Ordering::Relaxed), MOST_GHOSTS);
        keys().for_each(|key| table.forget(key.ino, 1));
        assert_eq!((table.ghosts.load(Ordering::Relaxed), table.len()), (0, 0));
    }
}
