//! The stacking filesystem: every operation passes through to the backing tree, and every change leaves one record.
//!
//! Invariants:
//! - Nothing changes the backing tree but a `Mutation` (mutation.rs): room for the record is reserved first, the
//!   objects are locked across the backing call and the taking of the TID, and the reply comes after both.
//! - A successful change leaves exactly one record with its result (attributes read back afterwards); a failed one none.
//! - A node is a backing inode number. There is no table of paths, and no state here that only one process life knows:
//!   nodes and handles are found again from what the kernel sends.
//! - No descriptor is kept for a node, but for a bounded number of directories that were used last; an object is opened by
//!   its key for the time of one request, or reached by the descriptor of a program that has it open.
//!
//! Locks, from first to last: the rename lock (directories that change their parent), a directory stream's cursor,
//! the object locks (base), then the leaves (node table, open table, the journal's own). The journal may be waited
//! for only while none of them is held.
//!
//! What differs from the backing directory is listed in `SEMANTICS.md`.

mod ahead;
mod create;
mod creds;
mod descriptors;
mod dirs;
mod growth;
mod inodes;
mod ioctl;
mod lookup;
mod mutation;
mod nodes;
mod open;
mod opens;
mod read;
mod remove;
mod rename;
mod setattr;
mod statfs;
mod storm;
mod sync;
#[cfg(test)]
mod tests;
mod types;
mod write;
mod xattr;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use self::ahead::Ahead;
use self::descriptors::Descriptors;
use self::inodes::Inodes;
use self::nodes::NodeTable;
use self::opens::OpenTable;
use self::storm::Storm;
pub use self::types::{
    AtimeMode, AttrChange, Caching, Caller, Closing, Entry, FileId, Listed, NodeId, Opened, Privileges, Room,
    StackOptions, Writes,
};
pub use self::write::{WriteMode, Writer};
use crate::backing::{Tree, TreeView};
use crate::base::{ObjectGuard, ObjectKey, ObjectLocks, Oid, Space, Tid, Timespec, random_bytes};
use crate::journal::{Checkpointer, Journal, JournalError, OidMap, SyncTree};
pub use crate::sys::{Errno, FileSystemStat, Result, Stat, TimeChange};

/// Key of the volume's state under which the mount's connection is described.
const CONNECTION: &str = "connection";
/// Longest transfer of one request.
pub const MAX_TRANSFER_BYTES: usize = crate::record::MAX_PAYLOAD_BYTES;

/// Why a tree and a journal do not make a stack.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The journal stopped after an earlier failure.
    #[error("the journal has failed: {0}")]
    JournalFailed(String),
    /// The tree's filesystem does not say which it is.
    #[error("the filesystem's identity cannot be read: {0}")]
    Identity(Errno),
    /// The journal cannot say whose objects it knows, or cannot make checkpoints.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The thread that commits for fsync cannot be started.
    #[error("no thread for commits: {0}")]
    Thread(#[from] std::io::Error),
    /// The tree cannot be held open for it.
    #[error("hold the tree open: {0}")]
    Tree(#[from] Errno),
}

/// A backing tree with its journal.
pub struct Stack {
    tree: Tree,
    journal: Arc<Journal>,
    /// Dropped with the stack, before its tree.
    _checkpointer: Checkpointer,
    space: Space,
    /// What objects that were not born in this instance are called.
    oids: Arc<OidMap>,
    locks: ObjectLocks,
    /// Protects the shape of the directory graph while a directory changes its parent, so that two such renames cannot
    /// make a loop that neither saw. Rank: first of all. May be held across the backing rename.
    rename_lock: Mutex<()>,
    nodes: NodeTable,
    directories: Descriptors,
    /// Absent until [`Stack::remember_inodes`].
    inodes: OnceLock<Inodes>,
    /// Held by the one request that walks the tree for an inode number that nobody knows. Rank: first of all, beside the
    /// rename lock.
    walk: Mutex<()>,
    opens: OpenTable,
    storm: Storm,
    ahead: Ahead,
    options: StackOptions,
    failed: AtomicBool,
}

/// Syncs the tree by the descriptor that was open before any change: an error is told to each descriptor once.
fn sync_of(tree: &Tree) -> Result<SyncTree> {
    let syncer = tree.syncer()?;
    Ok(Box::new(move || syncer.sync()))
}

impl Stack {
    /// Joins `tree` and `journal`.
    ///
    /// # Errors
    /// [`StackError::JournalFailed`] when nothing could be recorded.
    pub fn new(
        tree: Tree,
        journal: Arc<Journal>,
        options: StackOptions,
    ) -> std::result::Result<Arc<Stack>, StackError> {
        if let Some(reason) = journal.failed() {
            return Err(StackError::JournalFailed(reason));
        }
        let identity = tree.identity().map_err(StackError::Identity)?;
        Ok(Arc::new(Stack {
            // In this order: what is called by which name is forgotten when the tree is another.
            space: journal.bind_backing(&identity)?,
            oids: journal.oids(),
            _checkpointer: journal.start_checkpoints(sync_of(&tree)?)?,
            tree,
            journal,
            locks: ObjectLocks::default(),
            rename_lock: Mutex::new(()),
            nodes: NodeTable::new(),
            directories: Descriptors::default(),
            inodes: OnceLock::new(),
            walk: Mutex::new(()),
            opens: OpenTable::new(u32::from_le_bytes(random_bytes())),
            storm: Storm::new(),
            ahead: Ahead::default(),
            options,
            failed: AtomicBool::new(false),
        }))
    }

    /// Keeps in `file` which objects the kernel may have handles of, so that these work after it, or this process, forgot
    /// the objects. Objects with a ctime before `unchanged_before` were not touched since the stack before this one.
    ///
    /// # Errors
    /// As open(2). Calling it a second time changes nothing.
    pub fn remember_inodes(&self, file: &Path, unchanged_before: Option<Timespec>) -> std::io::Result<()> {
        let inodes = Inodes::open(file, unchanged_before)?;
        let _ = self.inodes.set(inodes);
        Ok(())
    }

    /// Writes down what was remembered since the last time; happens by itself while look-ups go on.
    pub fn flush_inodes(&self) {
        if let Some(inodes) = self.inodes.get() {
            inodes.flush();
        }
    }

    /// When the kernel is to hand over what programs write.
    pub fn writes(&self) -> Writes {
        self.options.writes
    }

    /// The files of which the kernel may hold what programs wrote: those that are open for writing (a mapping keeps its file
    /// open). Each as backing inode number and generation.
    pub fn open_for_writing(&self) -> Vec<ObjectKey> {
        self.opens.written().into_iter().collect()
    }

    /// Keeps what was agreed with the kernel for the mount that is being made, where another process life finds it.
    ///
    /// # Errors
    /// When the volume's state cannot be written.
    pub fn remember_connection(&self, agreed: &str) -> std::io::Result<()> {
        let store = self.journal.store();
        store.meta_set(CONNECTION, agreed.as_bytes()).map_err(std::io::Error::other)
    }

    /// What was agreed with the kernel for the last mount of this volume.
    ///
    /// # Errors
    /// When the volume's state cannot be read.
    pub fn connection(&self) -> std::io::Result<Option<String>> {
        let stored = self.journal.store().meta_get(CONNECTION).map_err(std::io::Error::other)?;
        Ok(stored.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// Makes a checkpoint: everything up to now is durable, in the tree and in the journal.
    ///
    /// # Errors
    /// As [`Journal::checkpoint`].
    pub fn checkpoint(&self) -> std::result::Result<(), JournalError> {
        let sync = sync_of(&self.tree).map_err(|errno| JournalError::Io {
            what: "hold the tree open",
            path: "tree".into(),
            errno,
        })?;
        self.journal.checkpoint(&sync)
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// How many nodes the kernel knows, and how many handles it holds open.
    pub fn in_use(&self) -> (usize, usize) {
        (self.nodes.len(), self.opens.len())
    }

    /// Latches the volume: from now on every change is refused with EIO. Only a new start of the volume clears it.
    pub fn fail(&self, reason: &str) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            tracing::error!(reason, "volume failed: changes are refused from now on");
            self.journal.fail(reason);
        }
    }

    /// Whether changes are refused.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    fn check_alive(&self) -> Result<()> {
        match self.failed.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Errno::EIO),
        }
    }

    /// The name of the local object `key` on every host.
    pub fn oid(&self, key: ObjectKey) -> Oid {
        match key == self.tree.root_key() {
            true => Oid::ROOT,
            false => self.oids.oid_of(key).unwrap_or_else(|| Oid::new(self.space, key)),
        }
    }
}

impl TreeView for Stack {
    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn key_of(&self, oid: Oid) -> Result<Option<ObjectKey>> {
        Ok(match oid {
            Oid::ROOT => Some(self.tree.root_key()),
            oid if oid.space == self.space => Some(oid.key()),
            oid => self.oids.key_of(oid),
        })
    }

    fn oid_of(&self, key: ObjectKey) -> Result<Oid> {
        Ok(self.oid(key))
    }

    fn lock(&self, key: ObjectKey) -> ObjectGuard<'_> {
        self.locks.lock(&[key])
    }

    fn stamp(&self) -> Tid {
        self.journal.last_tid()
    }
}
