//! Locks on objects: whoever changes an object, or reads its state for a target, holds its lock.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use parking_lot::{Mutex, MutexGuard};

use super::ObjectKey;

const SHARDS: usize = 1024;

/// Shard locks over all objects of a volume. Rank: above the journal's ring, below nothing; taken before any other lock.
///
/// Protects: the pairing of one backing change with its TID, and of one read of an object's state with its stamp.
/// May be held across: backing system calls on the object, taking a TID. Never across a commit or the network.
pub struct ObjectLocks {
    shards: Vec<Mutex<()>>,
}

/// The shards of one op, held. Dropping it unlocks.
pub struct ObjectGuard<'a> {
    _held: Vec<MutexGuard<'a, ()>>,
}

impl Default for ObjectLocks {
    fn default() -> Self {
        ObjectLocks { shards: (0..SHARDS).map(|_| Mutex::new(())).collect() }
    }
}

impl ObjectLocks {
    /// Locks every object in `keys`, in shard order and each shard once, so that two ops never wait for each other.
    pub fn lock(&self, keys: &[ObjectKey]) -> ObjectGuard<'_> {
        let mut shards: Vec<usize> = keys.iter().map(|key| shard_of(*key)).collect();
        shards.sort_unstable();
        shards.dedup();
        ObjectGuard { _held: shards.into_iter().map(|i| self.shards[i].lock()).collect() }
    }
}

fn shard_of(key: ObjectKey) -> usize {
    // By inode only: a caller may know an object before it knows its generation.
    let mut hasher = DefaultHasher::new();
    key.ino.hash(&mut hasher);
    hasher.finish() as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_object_twice_is_locked_once() {
        let locks = ObjectLocks::default();
        let key = ObjectKey { ino: 5, generation: 1 };
        let guard = locks.lock(&[key, key, ObjectKey { ino: 6, generation: 1 }]);
        drop(guard);
        let _again = locks.lock(&[key]);
    }
}
