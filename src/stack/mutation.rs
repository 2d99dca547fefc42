//! The one way to change the backing tree: begin, do, commit.
//!
//! Order, which is the contract of the journal:
//! 1. Room for the record is reserved, before the tree is touched and before any lock is taken: this may wait for our
//!    own disk.
//! 2. The objects are locked.
//! 3. The backing call is made through [`Mutation::tree`], and its result read back.
//! 4. [`Mutation::commit`] encodes the record and gives it its TID while the locks are held; then they are dropped.
//!
//! A mutation that is dropped without a commit was a failed op and leaves no record.

use super::Stack;
use super::types::Caller;
use crate::backing::TreeMut;
use crate::base::{ObjectGuard, ObjectKey, Tid};
use crate::journal::Reservation;
use crate::record::{Draft, Op};
use crate::sys::{Errno, Result};

/// Room for a record without names or payload.
pub(super) const SMALL_RECORD: usize = 1024;
/// Room for a record with two names and a symlink's text.
pub(super) const NAME_RECORD: usize = 8 * 1024;
/// Room for a record of a new object: a symlink's text or two access control lists, each at most as long as an xattr may
/// be (XATTR_SIZE_MAX), and a label.
pub(super) const BIRTH_RECORD: usize = 160 * 1024;

/// A change for whose record there is room.
pub(super) struct Reserved<'s> {
    stack: &'s Stack,
    caller: Caller,
    reservation: Reservation<'s>,
}

/// A change that is under way: room for its record is reserved and its objects are locked.
pub(super) struct Mutation<'s> {
    stack: &'s Stack,
    caller: Caller,
    reservation: Reservation<'s>,
    objects: ObjectGuard<'s>,
}

impl Stack {
    /// Reserves room for a record of at most `record_bytes`. The caller must hold no lock.
    ///
    /// # Errors
    /// EIO when the volume has failed, ENOSPC or EIO when the journal cannot take the record.
    pub(super) fn reserve(&self, caller: &Caller, record_bytes: usize) -> Result<Reserved<'_>> {
        self.check_alive()?;
        let reservation = self.journal.reserve(record_bytes).map_err(|error| error.errno())?;
        Ok(Reserved { stack: self, caller: *caller, reservation })
    }

    /// Reserves room and locks `keys`.
    ///
    /// # Errors
    /// As [`Stack::reserve`].
    pub(super) fn begin(&self, caller: &Caller, keys: &[ObjectKey], record_bytes: usize) -> Result<Mutation<'_>> {
        self.reserve(caller, record_bytes)?.lock(keys)
    }
}

impl<'s> Reserved<'s> {
    /// Locks `keys`: all objects whose state the change moves.
    ///
    /// # Errors
    /// EIO when the volume has failed meanwhile.
    pub(super) fn lock(self, keys: &[ObjectKey]) -> Result<Mutation<'s>> {
        let objects = self.stack.locks.lock(keys);
        self.stack.check_alive()?;
        tracing::trace!(unique = self.caller.unique, "change begins");
        Ok(Mutation { stack: self.stack, caller: self.caller, reservation: self.reservation, objects })
    }
}

impl<'s> Mutation<'s> {
    /// The tree, to be changed.
    pub(super) fn tree(&self) -> TreeMut<'s> {
        self.stack.tree.mutate()
    }

    /// The outcome of reading back what the change did. When that fails after the backing call succeeded, the change
    /// cannot be recorded: the volume must not go on as if nothing had happened.
    pub(super) fn read_back<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|errno| {
            self.stack.fail(&format!("a change was made but its result cannot be read: {errno}"));
            Errno::EIO
        })
    }

    /// The outcome of a call that changes data. One that failed for want of room, or by the disk, may have left a mark all
    /// the same: btrfs moves mtime first (btrfs_write_check in fs/btrfs/file.c), fallocate and truncate may have done a
    /// part (ext4_fallocate in fs/ext4/extents.c). Then every target compares the object `key`.
    ///
    /// The row is written under the object's lock, against the rule for the store, so that no change comes between the
    /// failure and its being known; a disk that is full or broken has time for it.
    pub(super) fn whole<T>(&self, key: ObjectKey, outcome: Result<T>) -> Result<T> {
        if let Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO)) = &outcome {
            let why = format!("a change of its data failed: {errno}");
            let (oid, tid) = (self.stack.oid(key), self.stack.journal.last_tid());
            if let Err(error) = self.stack.journal.store().work_doubt(oid, tid, &why) {
                self.stack.fail(&format!("{why}, which cannot be noted: {error}"));
            }
        }
        outcome
    }

    /// Records the change of `key` and ends it. The record is encoded, its payload copied, before the journal's lock.
    /// A change of a ghost leaves no record.
    pub(super) fn commit(self, key: ObjectKey, op: &Op, payload: &[u8]) -> Tid {
        if is_of_one_object(op) && self.stack.nodes.is_ghost(key) {
            return self.stack.journal.last_tid();
        }
        let draft = Draft::new(self.stack.oid(key), op, payload);
        let tid = self.reservation.commit(draft);
        tracing::trace!(unique = self.caller.unique, %tid, op = op.word(), "change recorded");
        drop(self.objects);
        tid
    }
}

/// Whether `op` changes an object and no name.
fn is_of_one_object(op: &Op) -> bool {
    !matches!(
        op,
        Op::Create { .. } | Op::Link { .. } | Op::Unlink { .. } | Op::Rename { .. } | Op::Exchange { .. } | Op::Gone
    )
}
