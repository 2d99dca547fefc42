//! What the objects of a promoted volume are called: those that came from another instance keep the oid that they had.
//!
//! The file `oids` lies beside the log. It is written once, when a copy becomes a master, and never changed: objects of other
//! instances are never born again here. An entry whose object is gone means nothing, because a recycled inode number has
//! another generation.
//!
//! File: 8 bytes magic, then 28 bytes for each object: oid (16), inode number u64, generation u32, little endian; at the end
//! crc32c of everything before, u32. Held in memory, 32 bytes for each object: looking one up must not cost a system call.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::base::{ObjectKey, Oid};

const MAGIC: &[u8; 8] = b"dtfsoid1";
const ENTRY: usize = Oid::LEN + 12;
/// Name of the file in the journal's directory.
pub(super) const FILE: &str = "oids";

/// Which oid an object of the tree has that was not born in this instance, and the reverse.
#[derive(Default)]
pub struct OidMap {
    /// Sorted by key.
    entries: Vec<(ObjectKey, Oid)>,
    /// Places in `entries`, sorted by oid.
    by_oid: Vec<u32>,
}

impl OidMap {
    fn new(mut entries: Vec<(ObjectKey, Oid)>) -> OidMap {
        entries.sort_unstable_by_key(|(key, _)| (key.ino, key.generation));
        let mut by_oid: Vec<u32> = (0..entries.len() as u32).collect();
        by_oid.sort_unstable_by_key(|at| entries[*at as usize].1);
        OidMap { entries, by_oid }
    }

    /// Reads the map in `dir`.
    ///
    /// # Errors
    /// As read(2); `InvalidData` when it is not what was written.
    pub(super) fn load(dir: &Path) -> io::Result<OidMap> {
        let bytes = fs::read(dir.join(FILE))?;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the map of oids is damaged");
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        let (entries, rest) = body.strip_prefix(MAGIC).ok_or_else(damaged)?.as_chunks::<ENTRY>();
        if crc32c::crc32c(body).to_le_bytes() != *crc || !rest.is_empty() {
            return Err(damaged());
        }
        Ok(OidMap::new(entries.iter().map(decode).collect()))
    }

    /// Writes the map of `objects` into `dir`, durable when it returns.
    pub(super) fn write(dir: &Path, objects: &[(Oid, ObjectKey)]) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        for (oid, key) in objects {
            bytes.extend_from_slice(&oid.to_bytes());
            bytes.extend_from_slice(&key.ino.to_le_bytes());
            bytes.extend_from_slice(&key.generation.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let path = dir.join(FILE);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    }

    /// The oid of an object that came from another instance.
    pub fn oid_of(&self, key: ObjectKey) -> Option<Oid> {
        if self.entries.is_empty() {
            return None;
        }
        let wanted = (key.ino, key.generation);
        let at = self.entries.binary_search_by_key(&wanted, |(key, _)| (key.ino, key.generation)).ok()?;
        Some(self.entries[at].1)
    }

    /// The object of another instance that has this oid.
    pub fn key_of(&self, oid: Oid) -> Option<ObjectKey> {
        let at = self.by_oid.binary_search_by_key(&oid, |at| self.entries[*at as usize].1).ok()?;
        Some(self.entries[self.by_oid[at] as usize].0)
    }

    /// How many objects it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether every object was born in this instance.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn decode(entry: &[u8; ENTRY]) -> (ObjectKey, Oid) {
    let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    let mut oid = [0; Oid::LEN];
    oid.copy_from_slice(&entry[..Oid::LEN]);
    let ino = u64::from(word(16)) | u64::from(word(20)) << 32;
    (ObjectKey { ino, generation: word(24) }, Oid::from_bytes(oid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Space;

    #[test]
    fn objects_are_found_both_ways_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OidMap::load(dir.path()).is_err(), "a promoted volume without its map is no volume");
        let oid = |ino| Oid { space: Space(7), generation: 3, ino };
        let key = |ino| ObjectKey { ino, generation: 9 };
        let objects: Vec<_> = (0..500).map(|ino| (oid(1000 - ino), key(ino * 3))).collect();
        OidMap::write(dir.path(), &objects).unwrap();
        let map = OidMap::load(dir.path()).unwrap();
        assert_eq!(map.len(), 500);
        for (oid, key) in objects {
            assert_eq!((map.oid_of(key), map.key_of(oid)), (Some(oid), Some(key)));
        }
        assert_eq!(map.oid_of(ObjectKey { ino: 3, generation: 8 }), None, "a recycled inode number");
        assert_eq!(map.key_of(oid(5000)), None);
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(OidMap::load(dir.path()).is_err());
    }
}
