//! Which nodes the kernel knows.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::base::ObjectKey;

const SHARDS: usize = 64;

struct Node {
    generation: u32,
    /// Look-ups that were answered and not yet given back.
    lookups: u64,
}

/// The nodes that answered look-ups, by inode number. No descriptor is kept for any of them.
///
/// Locks: one per shard; each protects its map. Rank: a leaf, below the object locks. Held only for a look-up in the map.
pub(super) struct NodeTable {
    shards: Vec<Mutex<HashMap<u64, Node>>>,
}

impl NodeTable {
    pub(super) fn new() -> NodeTable {
        NodeTable { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
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
    pub(super) fn count(&self, key: ObjectKey) {
        let mut shard = self.shard(key.ino).lock();
        let node = shard.entry(key.ino).or_insert(Node { generation: key.generation, lookups: 0 });
        node.generation = key.generation;
        node.lookups += 1;
    }

    /// Gives `lookups` back; the last one removes the node.
    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        let mut shard = self.shard(ino).lock();
        if let Some(node) = shard.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                shard.remove(&ino);
            }
        }
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
}
