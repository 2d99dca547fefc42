//! Performs records on a target's tree.
//!
//! Invariants:
//! - Apply is idempotent by object: replaying any suffix of the stream from a durable cursor over a tree that already
//!   holds part of it ends equal. The table of cases is in `CONVERGENCE.md` beside this file.
//! - The catalog says which objects are known and how far; it becomes durable only together with the cursor, after the
//!   tree was synced. So after a crash it is never ahead of the tree's certain part.
//! - Every object carries its oid in an xattr before it gets a name; what has no name waits in the park.
//! - Nothing outside the tree is touched: objects are opened by handle, entries by (directory, one checked name).
//! - What the tree held before it became a replica is never destroyed: it is moved to `.dtfs/orphans`.

mod attributes;
mod catalog;
mod data;
mod displaced;
mod fresh;
mod names;
mod objects;
mod park;
mod replica;
mod state;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use attributes::Touched;
use catalog::Catalog;
pub use catalog::CatalogError;
use fresh::Fresh;
use park::Park;
pub use replica::{Adopt, Origin, Replica, ReplicaError};

use crate::backing::Tree;
use crate::base::{Oid, Tid, faults};
use crate::record::{DirItem, Op, Record};
use crate::sys::Errno;

/// Why a record could not be performed. The stream must stop: the record is performed again later.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The tree's filesystem refused.
    #[error("{word} of {oid} at {tid}: {errno}")]
    Tree {
        /// The record's kind.
        word: &'static str,
        /// Its object.
        oid: Oid,
        /// Its TID.
        tid: Tid,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The tree could not be made durable.
    #[error("syncfs of the target tree: {0}")]
    Sync(Errno),
}

/// What goes wrong inside: told apart so that the caller can name the record.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Errno(#[from] Errno),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

type Outcome<T> = std::result::Result<T, Trouble>;

/// Something the applier must be sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Missing {
    /// The object.
    pub oid: Oid,
    /// First byte of the range; 0 with `len` 0 for the whole object.
    pub offset: u64,
    /// Length of the range, 0 for the whole object.
    pub len: u64,
}

/// The objects that could not be brought to their state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Blocked {
    /// How many.
    pub count: u32,
    /// Errno of the first, else 0.
    pub errno: i32,
}

/// Performs records on one tree.
pub struct Applier {
    tree: Tree,
    catalog: Catalog,
    park: Park,
    /// Attributes to set when the group ends.
    touched: HashMap<Oid, Touched>,
    /// Open descriptors of objects used lately; O_RDWR for files, readable for directories, O_PATH for the rest.
    open: HashMap<Oid, Arc<OwnedFd>>,
    /// Files that were made here and have nothing yet but their oid.
    fresh: Fresh,
    /// What the next ack asks for.
    missing: BTreeSet<Missing>,
    /// Parts of a directory's state that wait for the last one.
    listing: Vec<DirItem>,
    /// The directory whose state came last, and the objects in it.
    listed: Option<(Oid, Vec<Oid>)>,
    /// Objects that a directory's state put out of their slot and that nothing has bound again yet.
    unlisted: BTreeSet<Oid>,
    /// Parked objects whose displaced slot may be put back when the replay has passed `high_water`.
    displaced: BTreeSet<Oid>,
    /// Up to here the tree may hold changes from a time before a crash.
    high_water: Tid,
}

/// More open descriptors than this are closed together.
const OPEN_MAX: usize = 512;

impl Applier {
    /// Works on `replica`; `high_water` is the end of what was ever handed to its tree: the end of what its inbox holds, or
    /// the source's end when the inbox is lost.
    ///
    /// # Errors
    /// [`ApplyError`] when the park cannot be read.
    pub fn new(replica: Replica, high_water: Tid) -> Result<Applier, ApplyError> {
        let Replica { tree, catalog, park, .. } = replica;
        let plain = park.is_plain(&tree);
        let mut applier = Applier {
            fresh: Fresh::new(plain.unwrap_or(false)),
            tree,
            catalog,
            park,
            touched: HashMap::new(),
            open: HashMap::new(),
            missing: BTreeSet::new(),
            listing: Vec::new(),
            listed: None,
            unlisted: BTreeSet::new(),
            displaced: BTreeSet::new(),
            high_water,
        };
        applier.load_displaced().map_err(|cause| applier.explain("start", Oid::ROOT, Tid::ZERO, cause))?;
        Ok(applier)
    }

    /// Performs one record.
    ///
    /// # Errors
    /// [`ApplyError`]; the record must be performed again.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), ApplyError> {
        let done = match self.perform(record) {
            Err(Trouble::Errno(errno @ (Errno::EPERM | Errno::EXDEV))) => self.perform_lifted(record, errno),
            other => other,
        };
        let done = match done {
            Err(Trouble::Errno(errno)) if blocks_one_object(errno) => self.block(record.oid, errno),
            other => other,
        };
        done.map_err(|cause| self.explain(record.op.word(), record.oid, record.tid, cause))?;
        // A state record stands behind every record up to its stamp, so it tells the place as well.
        if record.tid >= self.high_water && !self.displaced.is_empty() && !faults::skipped("applier.put_back") {
            self.put_back_displaced().map_err(|cause| self.explain("put back", record.oid, record.tid, cause))?;
        }
        Ok(())
    }

    /// Sets the attributes of all objects touched since the last call. Called at the end of every group.
    ///
    /// # Errors
    /// [`ApplyError`]; the group must be performed again.
    pub fn finish_group(&mut self) -> Result<(), ApplyError> {
        let touched = std::mem::take(&mut self.touched);
        for (oid, touched) in touched {
            match self.finish_lifted(oid, touched) {
                Err(Trouble::Errno(errno)) if blocks_one_object(errno) => self.block(oid, errno),
                other => other,
            }
            .map_err(|cause| self.explain("finish", oid, Tid::ZERO, cause))?;
        }
        Ok(())
    }

    /// Makes everything done so far durable: the tree, then the catalog with the cursor.
    ///
    /// # Errors
    /// [`ApplyError::Sync`] means that data was lost; the caller must not try again but end, so that the next start
    /// performs everything since the last cursor again.
    pub fn make_durable(&mut self, applied: Tid) -> Result<(), ApplyError> {
        self.finish_group()?;
        self.ask_for_unlisted().map_err(|cause| self.explain("listing", Oid::ROOT, applied, cause))?;
        self.open.clear();
        self.tree.sync().map_err(ApplyError::Sync)?;
        self.catalog.commit(applied)?;
        Ok(())
    }

    /// Takes up to `limit` of what must be sent. They are not reported again in this session.
    pub fn take_missing(&mut self, limit: usize) -> Vec<Missing> {
        let mut taken = Vec::new();
        while let Some(next) = (taken.len() < limit).then(|| self.missing.pop_first()).flatten() {
            taken.push(next);
        }
        taken
    }

    /// Whether [`Applier::take_missing`] has something to give.
    pub fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// At the start of a session: everything incomplete and everything parked is asked for again, because a request may
    /// have been lost with the session before.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`], or the park cannot be read.
    pub fn ask_for_incomplete(&mut self) -> Result<(), ApplyError> {
        self.ask_again().map_err(|cause| self.explain("start", Oid::ROOT, Tid::ZERO, cause))
    }

    fn ask_again(&mut self) -> Outcome<()> {
        for oid in self.catalog.incomplete()? {
            self.need(oid);
        }
        for oid in self.park.oids()? {
            self.need(oid);
        }
        Ok(())
    }

    /// The objects that could not be brought to their state.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`].
    pub fn blocked(&self) -> Result<Blocked, ApplyError> {
        Ok(self.catalog.blocked()?)
    }

    fn perform(&mut self, record: &Record<'_>) -> Outcome<()> {
        let oid = record.oid;
        match &record.op {
            Op::Create { .. } | Op::Link { .. } | Op::Unlink { .. } | Op::Rename { .. } | Op::Exchange { .. } => {
                self.perform_namespace(oid, &record.op)
            }
            Op::Gone | Op::StateGone => self.drop_object(oid),
            op if op.is_state() => self.perform_state(oid, op, record.payload),
            op => self.perform_data(oid, op, record.payload),
        }
    }

    /// An immutable or append-only object stood in the way, or a directory that hands its project down: that is taken off
    /// until the group ends.
    fn perform_lifted(&mut self, record: &Record<'_>, errno: Errno) -> Outcome<()> {
        let mut lifted = false;
        for oid in objects_of(record) {
            lifted |= self.lift_flags(oid)?;
        }
        match lifted {
            true => self.perform(record),
            false => Err(errno.into()),
        }
    }

    fn need(&mut self, oid: Oid) {
        self.missing.insert(Missing { oid, offset: 0, len: 0 });
    }

    /// Nothing of this object has to be sent any more.
    fn forget_missing(&mut self, oid: Oid) {
        let (first, last) = (Missing { oid, offset: 0, len: 0 }, Missing { oid, offset: u64::MAX, len: u64::MAX });
        while let Some(missing) = self.missing.range(first..=last).next().copied() {
            self.missing.remove(&missing);
        }
    }

    /// One object cannot have what its record says; the stream goes on without it, it is named, and asked for again at the
    /// next session.
    fn block(&mut self, oid: Oid, errno: Errno) -> Outcome<()> {
        tracing::warn!(%oid, %errno, "an object cannot be brought to its state on this target");
        Ok(self.catalog.block(oid, errno)?)
    }

    fn explain(&self, word: &'static str, oid: Oid, tid: Tid, cause: Trouble) -> ApplyError {
        match cause {
            Trouble::Errno(errno) => ApplyError::Tree { word, oid, tid, errno },
            Trouble::Catalog(error) => ApplyError::Catalog(error),
        }
    }

    /// An open descriptor of the object, or `None` when this target does not have it.
    fn fd(&mut self, oid: Oid) -> Outcome<Option<Arc<OwnedFd>>> {
        if let Some(fd) = self.open.get(&oid) {
            return Ok(Some(fd.clone()));
        }
        let Some(row) = self.catalog.get(oid)? else {
            return Ok(None);
        };
        let flags = match row.kind {
            libc::S_IFREG => libc::O_RDWR | libc::O_NOATIME,
            libc::S_IFDIR => libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME,
            _ => libc::O_PATH,
        };
        let fd = match self.tree.open_key(row.key, flags) {
            Ok(fd) => fd,
            Err(Errno::ESTALE | Errno::ENOENT) => {
                self.catalog.remove(oid)?;
                return Ok(None);
            }
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some(self.keep_open(oid, fd)))
    }

    fn keep_open(&mut self, oid: Oid, fd: OwnedFd) -> Arc<OwnedFd> {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        let fd = Arc::new(fd);
        self.open.insert(oid, fd.clone());
        fd
    }
}

/// Errors that concern one object and would come again at every try; others concern the disk and stop the stream.
fn blocks_one_object(errno: Errno) -> bool {
    matches!(errno, Errno::EFBIG | Errno::EOPNOTSUPP | Errno::E2BIG | Errno::EINVAL | Errno::EMLINK | Errno::EOVERFLOW)
}

/// The objects that a record changes.
fn objects_of(record: &Record<'_>) -> Vec<Oid> {
    let mut oids = vec![record.oid];
    match &record.op {
        Op::Create { slot, .. } | Op::Link { slot, .. } | Op::Unlink { slot, .. } => oids.push(slot.parent),
        Op::Rename { from, to, replaced, .. } => {
            oids.extend([from.parent, to.parent]);
            oids.extend(replaced.map(|replaced| replaced.oid));
        }
        Op::Exchange { from, to, other, .. } => oids.extend([from.parent, to.parent, *other]),
        _ => {}
    }
    oids
}
