//! Which files and directories the kernel holds open.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::types::{FileId, NodeId};
use crate::base::{ObjectKey, Timespec};
use crate::sys::{DirEntry, DirStream};

const SHARDS: usize = 64;

/// An open regular file.
pub(super) struct OpenFile {
    pub(super) key: ObjectKey,
    pub(super) node: NodeId,
    fd: OwnedFd,
    /// The access time that is recorded, in nanoseconds: at first the one at open.
    recorded_atime: AtomicI64,
    pub(super) backing: BackingMode,
    /// Whether the kernel may read through this handle, which moves the access time.
    reads: bool,
    /// Whether the backing descriptor is open for writing.
    writes: bool,
}

/// How the backing descriptor treats the offset of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BackingMode {
    /// Writes go where they say: the kernel resolves O_APPEND of the mount's files itself.
    Positioned,
    /// The inode is append-only and cannot be opened for writing any other way: the backing filesystem chooses the end.
    AppendOnly,
}

impl OpenFile {
    /// `flags` are those of the mount's open.
    pub(super) fn new(key: ObjectKey, node: NodeId, fd: OwnedFd, backing: BackingMode, flags: i32) -> OpenFile {
        OpenFile {
            key,
            node,
            fd,
            recorded_atime: AtomicI64::new(0),
            backing,
            reads: flags & libc::O_ACCMODE != libc::O_WRONLY,
            writes: flags & libc::O_ACCMODE != libc::O_RDONLY,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it can do what `flags` (of open(2)) ask for.
    pub(super) fn serves(&self, flags: i32) -> bool {
        self.writes || flags & libc::O_ACCMODE == libc::O_RDONLY
    }

    /// Says which access time the records know.
    pub(super) fn atime_is(&self, atime: Timespec) {
        self.recorded_atime.store(atime.as_nanos(), Ordering::Relaxed);
    }

    /// Whether reading moved the access time to `atime` and no record says so.
    pub(super) fn atime_moved(&self, atime: Timespec) -> bool {
        self.reads && self.recorded_atime.load(Ordering::Relaxed) != atime.as_nanos()
    }
}

/// An open directory.
pub(super) struct OpenDir {
    pub(super) key: ObjectKey,
    pub(super) node: NodeId,
    pub(super) atime: Timespec,
    /// Protects the place in the directory. Rank: below nothing, above the node table; held across getdents64 and the
    /// look-ups of a listing.
    pub(super) cursor: Mutex<DirCursor>,
}

/// A place in a directory.
pub(super) struct DirCursor {
    pub(super) stream: DirStream,
    /// Cookie of the entry that comes next.
    pub(super) offset: u64,
    /// An entry that was read from the stream but did not fit into the last answer.
    pub(super) pending: Option<DirEntry>,
}

/// An open handle.
#[derive(Clone)]
pub(super) enum Handle {
    File(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
}

#[derive(Default)]
struct Holders {
    handles: u64,
    /// The handle that was entered last; another one may have outlived it.
    last: Weak<OpenFile>,
    /// Set when the last name went while handles were open.
    nameless: bool,
}

/// What the end of a handle meant for its object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// It has names, or other handles.
    Stays,
    /// It had no name any more and this was its last handle.
    Gone,
}

/// The open handles, and per object how many there are.
///
/// Locks: one per shard of handles, one per shard of holders; each protects its map. Rank: leaves, below the object
/// locks, never two at once. Held only for a look-up in the map.
pub(super) struct OpenTable {
    handles: Vec<Mutex<HashMap<u64, Handle>>>,
    holders: Vec<Mutex<HashMap<ObjectKey, Holders>>>,
    next: AtomicU64,
}

impl OpenTable {
    /// `seed` makes the numbers of this process life differ from those of the one before, so that a handle from there
    /// is recognised and opened again.
    pub(super) fn new(seed: u32) -> OpenTable {
        OpenTable {
            handles: (0..SHARDS).map(|_| Mutex::default()).collect(),
            holders: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(u64::from(seed) << 32 | 1),
        }
    }

    fn handle_shard(&self, id: u64) -> &Mutex<HashMap<u64, Handle>> {
        &self.handles[id as usize % SHARDS]
    }

    fn holder_shard(&self, key: ObjectKey) -> &Mutex<HashMap<ObjectKey, Holders>> {
        &self.holders[key.ino as usize % SHARDS]
    }

    /// Enters a new handle. For a file the caller holds the object's lock, so that an unlink sees it or fails it.
    pub(super) fn insert(&self, handle: Handle) -> FileId {
        let id = FileId(self.next.fetch_add(1, Ordering::Relaxed));
        self.insert_as(id, handle);
        id
    }

    /// Enters a handle under the number that the kernel already uses for it. For a file the caller holds the object's lock.
    pub(super) fn insert_as(&self, id: FileId, handle: Handle) {
        let file = match &handle {
            Handle::File(file) => Some(file.clone()),
            Handle::Dir(_) => None,
        };
        let old = self.handle_shard(id.0).lock().insert(id.0, handle);
        if let Some(file) = file {
            let again = matches!(old, Some(Handle::File(old)) if old.key == file.key);
            let mut shard = self.holder_shard(file.key).lock();
            let holders = shard.entry(file.key).or_default();
            // Opened again for more: the kernel still closes it once.
            holders.handles += u64::from(!again);
            holders.last = Arc::downgrade(&file);
        }
    }

    pub(super) fn get(&self, id: FileId) -> Option<Handle> {
        self.handle_shard(id.0).lock().get(&id.0).cloned()
    }

    /// An open file of `key`, if there is one.
    pub(super) fn open_of(&self, key: ObjectKey) -> Option<Arc<OpenFile>> {
        self.holder_shard(key).lock().get(&key)?.last.upgrade()
    }

    /// Takes a handle out. Its object still counts as held until [`OpenTable::end`].
    pub(super) fn remove(&self, id: FileId) -> Option<Handle> {
        self.handle_shard(id.0).lock().remove(&id.0)
    }

    /// Ends the hold that a removed file handle had on `key`. The caller holds the object's lock.
    pub(super) fn end(&self, key: ObjectKey) -> Ended {
        let mut shard = self.holder_shard(key).lock();
        let Some(holders) = shard.get_mut(&key) else {
            return Ended::Stays;
        };
        holders.handles -= 1;
        if holders.handles > 0 {
            return Ended::Stays;
        }
        match shard.remove(&key) {
            Some(Holders { nameless: true, .. }) => Ended::Gone,
            _ => Ended::Stays,
        }
    }

    /// Notes that `key` lost its last name. True when handles keep it alive. The caller holds the object's lock.
    pub(super) fn outlives_its_name(&self, key: ObjectKey) -> bool {
        match self.holder_shard(key).lock().get_mut(&key) {
            Some(holders) => {
                holders.nameless = true;
                true
            }
            None => false,
        }
    }

    /// The objects that are open for writing, each once.
    pub(super) fn written(&self) -> BTreeSet<ObjectKey> {
        let mut keys = BTreeSet::new();
        for shard in &self.handles {
            let shard = shard.lock();
            let files = shard.values().filter_map(|handle| match handle {
                Handle::File(file) if file.writes => Some(file.key),
                Handle::File(_) | Handle::Dir(_) => None,
            });
            keys.extend(files);
        }
        keys
    }

    /// How many handles are open.
    pub(super) fn len(&self) -> usize {
        self.handles.iter().map(|shard| shard.lock().len()).sum()
    }
}
