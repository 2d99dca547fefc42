//! Which objects the kernel may have handed out file handles of: a durable, bounded list of (inode number, generation).
//!
//! A handle that comes back after everybody forgot it, or after a new start, carries only these two numbers. A directory
//! proves by its way up that it lies in the tree; anything else proves it by this list. XFS needs it for the generation
//! too. The list is not synced: what is lost of it is found again by a walk over the tree.
//!
//! File: 16 bytes of header (magic, session), then 16 bytes for each entry: inode number u64, generation u32, session u32,
//! little endian, in the order in which they were learned. A new session begins whenever the tree may have been changed
//! behind the mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::{ObjectKey, Timespec};
use crate::sys::Stat;

const MAGIC: &[u8; 8] = b"dtfsino1";
const ENTRY: usize = 16;
/// Entries in the file; 16 MiB.
const MOST: usize = 1 << 20;
/// Entries that wait to be written together, and for how long at most while look-ups go on.
const BATCH: usize = 4096;
const BATCH_AGE: Duration = Duration::from_millis(200);

/// What the list knows of an inode number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Remembered {
    pub(super) key: ObjectKey,
    /// Learned since the tree was last out of sight.
    current: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    ino: u64,
    session: u32,
    generation: u32,
}

impl Remembered {
    /// Learned since the tree was last out of sight.
    pub(super) fn is_current(self) -> bool {
        self.current
    }
}

/// The list.
pub(super) struct Inodes {
    /// Objects that have not changed since this time are where they were in the session before.
    unchanged_before: Option<Timespec>,
    /// Protects file, index and what waits. Rank: a leaf. Held for a copy, and now and then for the write of a batch into
    /// the page cache.
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    session: u32,
    /// Entries in the file.
    written: usize,
    waiting: Vec<Entry>,
    last_write: Instant,
    /// The first `indexed` entries of the file, sorted; the newest session of a number last.
    index: Vec<Entry>,
    indexed: usize,
    /// Every object of the tree is in the list.
    complete: bool,
}

impl Inodes {
    /// Opens or begins the list in `path`, in a new session. `unchanged_before` as far as it is known.
    pub(super) fn open(path: &Path, unchanged_before: Option<Timespec>) -> io::Result<Inodes> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut header = [0; ENTRY];
        let known = file.read_exact_at(&mut header, 0).is_ok() && header.starts_with(MAGIC);
        let session = match known {
            true => u32::from_le_bytes([header[8], header[9], header[10], header[11]]).wrapping_add(1),
            false => {
                file.set_len(0)?;
                1
            }
        };
        write_header(&file, session)?;
        let written = (file.metadata()?.len() as usize / ENTRY).saturating_sub(1);
        let inner = Inner {
            file,
            session,
            written,
            waiting: Vec::new(),
            last_write: Instant::now(),
            index: Vec::new(),
            indexed: 0,
            complete: false,
        };
        Ok(Inodes { unchanged_before, inner: Mutex::new(inner) })
    }

    /// Learns that `key` lies in the tree. Cheap: most calls copy 16 bytes.
    pub(super) fn learn(&self, key: ObjectKey) {
        let mut inner = self.inner.lock();
        let session = inner.session;
        inner.waiting.push(Entry { ino: key.ino, session, generation: key.generation });
        if inner.waiting.len() >= BATCH || inner.last_write.elapsed() >= BATCH_AGE {
            inner.write_or_lose();
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&self) {
        self.inner.lock().write_or_lose();
    }

    /// What is known of `ino`.
    pub(super) fn get(&self, ino: u64) -> Option<Remembered> {
        let mut inner = self.inner.lock();
        inner.write_or_lose();
        if let Err(error) = inner.read_index() {
            tracing::warn!(%error, "the list of inodes cannot be read");
            inner.complete = false;
        }
        let end = inner.index.partition_point(|entry| entry.ino <= ino);
        let entry = inner.index[..end].last().filter(|entry| entry.ino == ino)?;
        let key = ObjectKey { ino, generation: entry.generation };
        Some(Remembered { key, current: entry.session == inner.session })
    }

    /// Whether the object that `remembered` and `stat` speak of is in the tree for sure: learned in this session, or not
    /// moved since the one before, because a move changes the ctime.
    pub(super) fn trusts(&self, remembered: Remembered, stat: &Stat) -> bool {
        remembered.current || self.unchanged_before.is_some_and(|time| stat.ctime < time)
    }

    /// Whether what is not in the list is not in the tree.
    pub(super) fn is_complete(&self) -> bool {
        self.inner.lock().complete
    }

    /// Every object was learned by a walk.
    pub(super) fn completed(&self) {
        self.inner.lock().complete = true;
    }
}

fn write_header(file: &File, session: u32) -> io::Result<()> {
    let mut header = [0; ENTRY];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&session.to_le_bytes());
    file.write_all_at(&header, 0)
}

impl Inner {
    /// What cannot be written is lost: a walk finds it again.
    fn write_or_lose(&mut self) {
        self.last_write = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return;
        }
        if let Err(error) = self.make_room(waiting.len()).and_then(|()| self.append(&waiting)) {
            tracing::warn!(%error, "the list of inodes cannot be written");
            self.complete = false;
        }
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        self.file.write_all_at(&bytes, ((self.written + 1) * ENTRY) as u64)?;
        self.written += entries.len();
        Ok(())
    }

    /// At the bound each number is kept once; when that is not enough, the list begins anew.
    fn make_room(&mut self, count: usize) -> io::Result<()> {
        if self.written + count <= MOST {
            return Ok(());
        }
        self.read_index()?;
        let mut kept = std::mem::take(&mut self.index);
        kept.reverse();
        kept.dedup_by_key(|entry| entry.ino);
        if kept.len() > MOST / 4 * 3 {
            kept.clear();
            self.complete = false;
        }
        (self.written, self.indexed) = (0, 0);
        self.file.set_len(ENTRY as u64)?;
        self.append(&kept)
    }

    fn read_index(&mut self) -> io::Result<()> {
        if self.indexed == self.written {
            return Ok(());
        }
        let mut bytes = vec![0; (self.written - self.indexed) * ENTRY];
        self.file.read_exact_at(&mut bytes, ((self.indexed + 1) * ENTRY) as u64)?;
        self.index.extend(bytes.as_chunks().0.iter().map(Entry::from_bytes));
        self.indexed = self.written;
        // Stable: of two in one session the later one stays last.
        self.index.sort_by_key(|entry| (entry.ino, entry.session));
        Ok(())
    }
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.ino.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.generation.to_le_bytes());
        bytes[12..].copy_from_slice(&self.session.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY]) -> Entry {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let ino = u64::from(word(0)) | u64::from(word(4)) << 32;
        Entry { ino, generation: word(8), session: word(12) }
    }
}

impl Drop for Inodes {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ino: u64, generation: u32) -> ObjectKey {
        ObjectKey { ino, generation }
    }

    #[test]
    fn what_was_learned_is_known_in_the_next_session() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inodes");
        let list = Inodes::open(&path, None).unwrap();
        (0..5000).for_each(|ino| list.learn(key(ino, 1)));
        list.learn(key(7, 2));
        assert_eq!(list.get(7), Some(Remembered { key: key(7, 2), current: true }));
        drop(list);
        let list = Inodes::open(&path, None).unwrap();
        assert_eq!(list.get(4999), Some(Remembered { key: key(4999, 1), current: false }));
        assert_eq!(list.get(7).map(|r| r.key), Some(key(7, 2)));
        assert_eq!(list.get(5000), None);
        std::fs::write(&path, b"garbage").unwrap();
        assert_eq!(Inodes::open(&path, None).unwrap().get(7), None);
    }

    #[test]
    fn the_list_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inodes");
        let list = Inodes::open(&path, None).unwrap();
        (0..3 * MOST as u64).for_each(|ino| list.learn(key(ino % 1000, (ino / 1000) as u32)));
        list.flush();
        assert!(std::fs::metadata(&path).unwrap().len() <= ((MOST + 1) * ENTRY) as u64);
        let last = (3 * MOST as u64 - 1) / 1000 * 1000;
        assert_eq!(list.get(0).map(|r| r.key), Some(key(0, (last / 1000) as u32)));
    }
}
