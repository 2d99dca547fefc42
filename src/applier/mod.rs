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
mod check;
mod data;
mod displaced;
mod doubt;
mod durable;
mod error;
mod fresh;
mod guard;
mod keep;
mod listing;
mod names;
mod objects;
mod orphans;
mod park;
mod replica;
mod roles;
mod state;
mod trust;
mod view;
mod whole;

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use attributes::Touched;
pub use catalog::CatalogError;
use catalog::{Catalog, Known};
use doubt::DoubtFile;
use durable::Background;
pub use error::ApplyError;
use error::{Outcome, Trouble};
use fresh::Fresh;
use guard::Guard;
pub use guard::Guarding;
use keep::Keeping;
use listing::Listing;
use park::Park;
pub use replica::{About, Adopt, Origin, Replica, ReplicaError, ReplicaLock};
pub use roles::{Joined, Joining, Leftovers, join, leave, told_history, told_mark};
use trust::Sieve;
pub use trust::Trust;
pub use view::{CopyView, Turns, ViewError};

use crate::backing::Tree;
use crate::base::{Ballast, Commit, Oid, Position, StoredTimes, Tid, faults};
use crate::record::{Instead, Op, Record};
use crate::sys::{self, Errno};

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

impl Missing {
    /// The entries of a directory, without what is in them: an offset of 1 and no length.
    fn listing(oid: Oid) -> Missing {
        Missing { oid, offset: 1, len: 0 }
    }
}

/// The objects that could not be brought to their state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Blocked {
    /// How many.
    pub count: u32,
    /// One of them, and its errno.
    pub first: Option<(Oid, i32)>,
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
    /// What was lacking when the source had nothing left to send.
    lacking: whole::Lacking,
    /// Names that the directory which is being checked has at the source, as hashes.
    checked: check::Names,
    /// The tree's filesystem stores times with fewer digits than they are sent with.
    coarse_times: bool,
    /// The directory whose parts are coming.
    listing: Option<Listing>,
    /// The directory whose last part came last, and the objects in it whose state was not all here.
    listed: Option<(Oid, Vec<Oid>)>,
    /// Objects that a directory's state, or its end, put out of their slot and that nothing has bound again yet.
    unlisted: BTreeSet<Oid>,
    /// Parked objects whose displaced slot may be put back when the replay has passed `high_water`.
    displaced: BTreeSet<Oid>,
    /// Up to here the tree may hold changes from a time before a crash.
    high_water: Tid,
    doubt: DoubtFile,
    /// Keeps what this tree has from a history that its source does not have.
    keeping: Option<Keeping>,
    /// Where the state of this copy lies.
    state: PathBuf,
    /// What keeps others out of the tree.
    guard: Guard,
    /// What is not taken from the source.
    sieve: Sieve,
    /// The last TID that may be in the tree, as it is written down.
    reach: Option<Tid>,
    /// Room for the catalog on a full disk.
    ballast: Ballast,
    /// Syncs the tree while more is performed; there from the first time on that this is asked for.
    background: Option<Background>,
    /// The place that the sync under way makes durable.
    syncing: Option<Position>,
    /// Keeps every other process from this replica.
    _lock: ReplicaLock,
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
        let coarse_times = replica.stored_times() == StoredTimes::Coarse;
        let reach = replica.reach()?;
        let Replica { tree, catalog, park, doubt, ballast, lock, state, guard, .. } = replica;
        let plain = park.is_plain(&tree);
        let mut applier = Applier {
            fresh: Fresh::new(plain.unwrap_or(false)),
            tree,
            catalog,
            park,
            touched: HashMap::new(),
            open: HashMap::new(),
            missing: BTreeSet::new(),
            lacking: whole::Lacking::default(),
            checked: check::Names::default(),
            coarse_times,
            listing: None,
            listed: None,
            unlisted: BTreeSet::new(),
            displaced: BTreeSet::new(),
            high_water,
            doubt,
            keeping: None,
            sieve: Sieve::of(&state),
            state,
            guard,
            reach,
            ballast,
            background: None,
            syncing: None,
            _lock: lock,
        };
        applier.resume_keeping().map_err(|cause| applier.explain("start", Oid::ROOT, Tid::ZERO, cause))?;
        applier.load_displaced().map_err(|cause| applier.explain("start", Oid::ROOT, Tid::ZERO, cause))?;
        Ok(applier)
    }

    /// Performs one record.
    ///
    /// # Errors
    /// [`ApplyError`]; the record must be performed again.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), ApplyError> {
        if let Op::Filtered { instead: Some(Instead { oid, op }), .. } = &record.op {
            return self.apply(&Record { oid: *oid, op: Op::clone(op), ..record.clone() });
        }
        let sifted = self.sieve.sift(record);
        let record = sifted.as_ref().unwrap_or(record);
        faults::point("applier.record")
            .map_err(|errno| self.explain(record.op.word(), record.oid, record.tid, errno.into()))?;
        let done = match self.perform(record) {
            Err(Trouble::Errno(errno @ (Errno::EPERM | Errno::EXDEV))) => self.perform_lifted(record, errno),
            other => other,
        };
        if matches!(&done, Err(trouble) if trouble.lies_with_one_object()) && matches!(record.op, Op::StateDir { .. }) {
            self.give_up_listing(record.oid);
        }
        let done = self.block_if_alone(record.oid, done);
        done.map_err(|cause| self.explain(record.op.word(), record.oid, record.tid, cause))?;
        // A state record stands behind every record up to its stamp, so it tells the place as well.
        if self.is_settled(record.tid) && !self.displaced.is_empty() && !faults::skipped("applier.put_back") {
            self.put_back_displaced().map_err(|cause| self.explain("put back", record.oid, record.tid, cause))?;
        }
        Ok(())
    }

    /// Sets the attributes of all objects touched since the last call. Called at the end of every group.
    ///
    /// # Errors
    /// [`ApplyError`]; what is not done yet is done at the next call.
    pub fn finish_group(&mut self) -> Result<(), ApplyError> {
        for oid in self.touched.keys().copied().collect::<Vec<_>>() {
            faults::point("applier.finish").map_err(|errno| self.explain("finish", oid, Tid::ZERO, errno.into()))?;
            let touched = self.touched.remove(&oid).unwrap_or_default();
            let done = self.finish_lifted(oid, touched.clone());
            self.block_if_alone(oid, done).map_err(|cause| {
                self.touched.insert(oid, touched);
                self.explain("finish", oid, Tid::ZERO, cause)
            })?;
        }
        Ok(())
    }

    /// What tree and catalog were last made durable as.
    pub fn commit_no(&self) -> Commit {
        self.catalog.cursor().commit
    }

    /// Up to here is durable in the tree.
    pub fn applied(&self) -> Position {
        self.catalog.cursor().applied
    }

    /// Whether the replay has passed everything that the tree could hold from before a crash.
    fn is_settled(&self, at: Tid) -> bool {
        at >= self.high_water
    }

    /// From now on the replica is in doubt until its whole tree begins to be compared, also after a restart.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn cast_doubt(&mut self, reason: &str) -> Result<(), ApplyError> {
        let reached = self.applied();
        Ok(self.doubt.cast(reason, Some(reached))?)
    }

    /// Whether the replica is in doubt.
    pub fn is_in_doubt(&self) -> bool {
        self.doubt.reason().is_some()
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
        self.ask_for_objects()?;
        self.ask_for_parked()
    }

    /// As [`Applier::ask_for_incomplete`], but for nothing that is parked.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`].
    pub fn ask_for_objects(&mut self) -> Result<(), ApplyError> {
        self.ask_again().map_err(|cause| self.explain("start", Oid::ROOT, Tid::ZERO, cause))
    }

    /// Before the whole tree is compared: only what no listing will name has to be asked for.
    ///
    /// # Errors
    /// The park cannot be read.
    pub fn ask_for_parked(&mut self) -> Result<(), ApplyError> {
        let parked = self.park.oids().map_err(|errno| self.explain("start", Oid::ROOT, Tid::ZERO, errno.into()))?;
        parked.into_iter().for_each(|oid| self.need(oid));
        Ok(())
    }

    /// The objects that could not be brought to their state are asked for again.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`].
    pub fn ask_for_blocked(&mut self) -> Result<(), ApplyError> {
        for oid in self.catalog.blocked_oids() {
            self.need(oid);
        }
        Ok(())
    }

    fn ask_again(&mut self) -> Outcome<()> {
        self.catalog.incomplete()?.into_iter().try_for_each(|oid| self.ask_for(oid))
    }

    fn ask_for(&mut self, oid: Oid) -> Outcome<()> {
        match self.catalog.get(oid)? {
            // Only a copy that was a source itself has these: what is in the directory is known one by one.
            Some(row) if row.kind == libc::S_IFDIR && row.known == Known::Partial => {
                self.missing.insert(Missing::listing(oid));
            }
            _ => self.need(oid),
        }
        Ok(())
    }

    /// The objects that could not be brought to their state.
    pub fn blocked(&self) -> Blocked {
        self.catalog.blocked()
    }

    fn perform(&mut self, record: &Record<'_>) -> Outcome<()> {
        let oid = record.oid;
        match &record.op {
            Op::Create { .. } | Op::Link { .. } | Op::Unlink { .. } | Op::Rename { .. } | Op::Exchange { .. } => {
                self.perform_namespace(oid, &record.op)
            }
            Op::Gone | Op::StateGone => self.drop_object(oid),
            Op::StateOutside => self.drop_if_nameless(oid),
            Op::Filtered { .. } => Ok(()),
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

    /// What lies with one object alone does not stop the stream.
    fn block_if_alone(&mut self, oid: Oid, done: Outcome<()>) -> Outcome<()> {
        match done {
            Err(trouble @ (Trouble::Object(errno) | Trouble::Errno(errno))) if trouble.lies_with_one_object() => {
                self.block(oid, errno)
            }
            other => other,
        }
    }

    /// setxattr(2) answers ENOSPC also when the one inode has no room for it, on a disk that has.
    fn set_xattr(&self, fd: BorrowedFd<'_>, name: &std::ffi::CStr, value: &[u8]) -> Outcome<()> {
        const ROOM_BYTES: u64 = 4 << 20;
        match self.tree.mutate().set_xattr(fd, name, value, 0) {
            Err(errno @ Errno::ENOSPC) => {
                let stat = self.tree.statfs()?;
                match stat.blocks_free * u64::from(stat.fragment_size) >= ROOM_BYTES {
                    true => Err(Trouble::Object(errno)),
                    false => Err(errno.into()),
                }
            }
            done => Ok(done?),
        }
    }

    /// One object cannot have what its record says; the stream goes on without it, it is named, and asked for again in a
    /// while.
    fn block(&mut self, oid: Oid, errno: Errno) -> Outcome<()> {
        tracing::warn!(%oid, %errno, "an object cannot be brought to its state on this target");
        self.catalog.block(oid, errno);
        Ok(())
    }

    fn explain(&self, word: &'static str, oid: Oid, tid: Tid, cause: Trouble) -> ApplyError {
        match cause {
            Trouble::Errno(errno) | Trouble::Object(errno) => ApplyError::Tree { word, oid, tid, errno },
            Trouble::Catalog(error) => ApplyError::Catalog(error),
        }
    }

    /// An open descriptor of the object, or `None` when this target does not have it.
    fn fd(&mut self, oid: Oid) -> Outcome<Option<Arc<OwnedFd>>> {
        if let Some(fd) = self.open.get(&oid) {
            if !is_removed(fd.as_fd())? {
                return Ok(Some(fd.clone()));
            }
            self.open.remove(&oid);
        }
        let Some(row) = self.catalog.get(oid)? else {
            return Ok(None);
        };
        let flags = match row.kind {
            libc::S_IFREG => libc::O_RDWR | libc::O_NOATIME,
            libc::S_IFDIR => libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME,
            _ => libc::O_PATH,
        };
        match self.tree.open_key(row.key, flags) {
            Ok(fd) if !is_removed(fd.as_fd())? => Ok(Some(self.keep_open(oid, fd))),
            Ok(_) | Err(Errno::ESTALE | Errno::ENOENT) => {
                self.catalog.remove(oid)?;
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
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

/// Whether the last name of an open object is gone. What is done here leaves every object a name, so somebody else has taken it:
/// what is done to the object from now on is lost.
fn is_removed(object: BorrowedFd<'_>) -> Outcome<bool> {
    Ok(sys::fstat(object)?.nlink == 0 && !faults::skipped("applier.is_removed"))
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
