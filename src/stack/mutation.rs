//! The one way to change the backing tree: begin, do, commit.
//!
//! Order, which is the contract of the journal:
//! 1. Room for the record is reserved, before the tree is touched and before any lock is taken: this may wait for our
//!    own disk.
//! 2. The objects are locked. Those that are cold, whose intent is not durable since the last checkpoint began, are
//!    announced first: without the locks, and then everything is looked at again.
//! 3. A slot says what is about to happen.
//! 4. The backing call is made through [`Mutation::tree`], and its result read back.
//! 5. [`Mutation::commit`] encodes the record and gives it its TID while the locks are held; then the slot is cleared and
//!    they are dropped.
//!
//! A mutation that is dropped without a commit was a failed op and leaves no record.

use super::Stack;
use super::types::Caller;
use crate::backing::TreeMut;
use crate::base::{ObjectGuard, ObjectKey, Oid, Tid, faults};
use crate::journal::{InFlight, Intent, Region, Reservation, UnderWay};
use crate::record::{Draft, Op};
use crate::sys::{Errno, Result};

/// Room for a record without names or payload.
pub(super) const SMALL_RECORD: usize = 1024;
/// Room for a record with two names and a symlink's text.
pub(super) const NAME_RECORD: usize = 8 * 1024;
/// Room for a record of a new object: a symlink's text or two access control lists, each at most as long as an xattr may
/// be (XATTR_SIZE_MAX), and a label.
pub(super) const BIRTH_RECORD: usize = 160 * 1024;

/// What a change does to one object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Touch {
    /// Names come or go in this directory, and whatever is born gets into it.
    Entries(ObjectKey),
    /// Attributes, xattrs or flags.
    Attributes(ObjectKey),
    /// Bytes of a file.
    Data { key: ObjectKey, offset: u64, len: u64 },
    /// A file's size, and with it any of its bytes.
    Size(ObjectKey),
    /// A name of it comes or goes, which is a change of the directory; it is locked all the same.
    Name(ObjectKey),
}

/// Most objects that one change touches, and most intents that it needs.
const MOST: usize = 4;

/// All that a change touches: at most [`MOST`] objects.
pub(super) struct Touched<'a> {
    pub(super) touches: &'a [Touch],
    /// The name that comes, goes or is moved to; empty where there is none.
    pub(super) name: &'a [u8],
}

/// A few values without memory of their own.
struct Few<T> {
    all: [T; MOST],
    len: usize,
}

/// What came of an attempt to begin a change.
pub(super) enum Locked<'s> {
    Begun(Mutation<'s>),
    /// An intent is missing: nothing is locked.
    Cold(Reserved<'s>),
}

impl<T: Copy + PartialEq> Few<T> {
    fn new(filler: T) -> Few<T> {
        Few { all: [filler; MOST], len: 0 }
    }

    fn push(&mut self, value: T) {
        if !self.as_slice().contains(&value) {
            debug_assert!(self.len < MOST, "a change touches at most {MOST}");
            self.all[self.len] = value;
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[T] {
        &self.all[..self.len]
    }
}

impl Touch {
    pub(super) fn key(self) -> ObjectKey {
        match self {
            Touch::Entries(key) | Touch::Attributes(key) | Touch::Size(key) | Touch::Name(key) => key,
            Touch::Data { key, .. } => key,
        }
    }

    /// What must be announced before.
    fn announce(self, stack: &Stack, intents: &mut Few<Intent>) {
        let oid = stack.oid(self.key());
        match self {
            Touch::Name(_) => {}
            Touch::Entries(_) | Touch::Attributes(_) => intents.push(Intent { oid, region: Region::Number(0) }),
            Touch::Size(_) => intents.push(Intent { oid, region: Region::Whole }),
            Touch::Data { offset, len, .. } => {
                let (first, last) = (Region::of(offset), Region::of(offset.saturating_add(len.saturating_sub(1))));
                match (first, last) {
                    (Region::Number(a), Region::Number(b)) if b - a <= 1 => {
                        intents.push(Intent { oid, region: first });
                        intents.push(Intent { oid, region: last });
                    }
                    _ => intents.push(Intent { oid, region: Region::Whole }),
                }
            }
        }
    }
}

impl Touched<'_> {
    fn keys(&self) -> Few<ObjectKey> {
        let mut keys = Few::new(ObjectKey { ino: 0, generation: 0 });
        self.touches.iter().for_each(|touch| keys.push(touch.key()));
        keys
    }

    fn intents(&self, stack: &Stack) -> Few<Intent> {
        let mut intents = Few::new(Intent { oid: Oid::ROOT, region: Region::Whole });
        self.touches.iter().for_each(|touch| touch.announce(stack, &mut intents));
        intents
    }

    /// The objects that a crash in the middle leaves in doubt. One whose name comes or goes is told by its directory.
    fn oids(&self, stack: &Stack) -> Few<Oid> {
        let mut oids = Few::new(Oid::ROOT);
        let own = self.touches.iter().filter(|touch| !matches!(touch, Touch::Name(_)));
        own.for_each(|touch| oids.push(stack.oid(touch.key())));
        oids
    }
}

impl<'a> From<&'a [Touch]> for Touched<'a> {
    fn from(touches: &'a [Touch]) -> Touched<'a> {
        Touched { touches, name: &[] }
    }
}

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
    // Ends before the locks do.
    in_flight: InFlight<'s>,
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
        Ok(Reserved::of(self, caller, reservation))
    }

    /// Reserves room and locks what is touched.
    ///
    /// # Errors
    /// As [`Stack::reserve`].
    pub(super) fn begin(&self, caller: &Caller, touches: &[Touch], record_bytes: usize) -> Result<Mutation<'_>> {
        self.begin_named(caller, &Touched::from(touches), record_bytes)
    }

    /// As [`Stack::begin`], for a change of a name.
    ///
    /// # Errors
    /// As [`Stack::reserve`].
    pub(super) fn begin_named(
        &self,
        caller: &Caller,
        touched: &Touched<'_>,
        record_bytes: usize,
    ) -> Result<Mutation<'_>> {
        self.reserve(caller, record_bytes)?.lock(touched)
    }

    /// Sends the intent for a change of `touch` on its way, which is about to come.
    pub(super) fn expect(&self, touch: Touch) {
        let touches = [touch];
        let touched = Touched::from(&touches[..]);
        self.journal.prefetch(touched.intents(self).as_slice());
    }
}

impl<'s> Reserved<'s> {
    pub(super) fn of(stack: &'s Stack, caller: &Caller, reservation: Reservation<'s>) -> Reserved<'s> {
        Reserved { stack, caller: *caller, reservation }
    }

    /// Locks all objects whose state the change moves, announced.
    ///
    /// # Errors
    /// EIO when the volume has failed meanwhile; as [`Stack::reserve`].
    pub(super) fn lock(mut self, touched: &Touched<'_>) -> Result<Mutation<'s>> {
        loop {
            match self.try_lock(touched)? {
                Locked::Begun(mutation) => return Ok(mutation),
                Locked::Cold(cold) => {
                    self = cold;
                    self.announce(touched)?;
                }
            }
        }
    }

    /// Returns when the intents for what is touched are durable. The caller holds no lock.
    ///
    /// # Errors
    /// EIO when they cannot be.
    pub(super) fn announce(&mut self, touched: &Touched<'_>) -> Result<()> {
        self.stack.storm.wait();
        if self.stack.storm.rages() {
            touched.touches.iter().for_each(|touch| self.stack.expect_beside(*touch));
        }
        let intents = touched.intents(self.stack);
        self.reservation.announce(intents.as_slice()).map_err(|error| error.errno())
    }

    /// As [`Reserved::lock`], for a caller who may not wait: something may be cold.
    ///
    /// # Errors
    /// EIO when the volume has failed meanwhile.
    pub(super) fn try_lock(self, touched: &Touched<'_>) -> Result<Locked<'s>> {
        let stack = self.stack;
        let objects = stack.locks.lock(touched.keys().as_slice());
        stack.check_alive()?;
        let oids = touched.oids(stack);
        let under_way = UnderWay { unique: self.caller.unique, oids: oids.as_slice(), name: touched.name };
        match stack.journal.begin_change(touched.intents(stack).as_slice(), &under_way) {
            None => Ok(Locked::Cold(self)),
            Some(in_flight) => {
                tracing::trace!(unique = self.caller.unique, "change begins");
                let Reserved { caller, reservation, .. } = self;
                Ok(Locked::Begun(Mutation { stack, caller, reservation, in_flight, objects }))
            }
        }
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
            self.in_flight.leave();
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
            self.doubt(key, &format!("a change of its data failed: {errno}"));
        }
        outcome
    }

    /// Every target compares the object `key`.
    pub(super) fn doubt(&self, key: ObjectKey, why: &str) {
        let (oid, tid) = (self.stack.oid(key), self.stack.journal.last_tid());
        if let Err(error) = self.stack.journal.store().work_doubt(oid, tid, why) {
            self.stack.fail(&format!("{why}, which cannot be noted: {error}"));
        }
    }

    /// Records the change of `key` and ends it. The record is encoded, its payload copied, before the journal's lock.
    /// A change of a ghost leaves no record.
    pub(super) fn commit(self, key: ObjectKey, op: &Op, payload: &[u8]) -> Tid {
        self.commit_all(key, (op, payload), None)
    }

    /// As [`Mutation::commit`], for a change of a file that took two records: `beside` comes second, with its own room.
    pub(super) fn commit_both(self, key: ObjectKey, first: (&Op, &[u8]), beside: (Reservation<'s>, &Op)) -> Tid {
        self.commit_all(key, first, Some(beside))
    }

    fn commit_all(self, key: ObjectKey, (op, payload): (&Op, &[u8]), beside: Option<(Reservation<'s>, &Op)>) -> Tid {
        if is_of_one_object(op) && self.stack.nodes.is_ghost(key) {
            return self.stack.journal.last_tid();
        }
        if faults::skipped("stack.record") {
            // As if the process had died here.
            self.in_flight.leave();
            return self.stack.journal.last_tid();
        }
        let oid = self.stack.oid(key);
        let first = self.reservation.commit(Draft::new(oid, op, payload));
        let tid = beside.map_or(first, |(room, op)| room.commit(Draft::new(oid, op, &[])));
        if let Op::Create { .. } = op {
            self.in_flight.born(oid);
        }
        tracing::trace!(unique = self.caller.unique, %tid, op = op.word(), "change recorded");
        drop(self.in_flight);
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
