//! A file that grows and whose last block was a hole: where the filesystem makes data of that (`backing/tail.rs`), a second
//! record says so, for a target's filesystem may leave the hole.

use std::os::fd::BorrowedFd;

use super::Stack;
use super::mutation::{Mutation, Reserved, SMALL_RECORD, Touch, Touched};
use super::types::Caller;
use crate::backing::{Growth, HoleAtEnd};
use crate::base::{ObjectKey, Tid, faults};
use crate::journal::Reservation;
use crate::record::{Attrs, FIRST_BLOCK_IS_DATA, Op};
use crate::sys::{Result, Stat};

/// What a file looked like before it grew, and room for the second record where one may be needed.
pub(super) struct Growing<'s> {
    hole: Option<HoleAtEnd>,
    spare: Option<Reservation<'s>>,
}

impl Stack {
    /// As [`Stack::begin`], for a change by which `file` may grow.
    ///
    /// # Errors
    /// As [`Stack::begin`], and as fstat(2).
    pub(super) fn begin_growing(
        &self,
        caller: &Caller,
        touch: Touch,
        record_bytes: usize,
        (file, growth): (BorrowedFd<'_>, Growth),
    ) -> Result<(Mutation<'_>, Growing<'_>)> {
        let (reserved, spare) = match self.tree.hole_at_end(file, growth)? {
            None => (self.reserve(caller, record_bytes)?, None),
            Some(_) => {
                self.check_alive()?;
                let both = self.journal.reserve_both(record_bytes, SMALL_RECORD);
                let (first, spare) = both.map_err(|error| error.errno())?;
                (Reserved::of(self, caller, first), Some(spare))
            }
        };
        let touches = [touch];
        let mutation = reserved.lock(&Touched::from(&touches[..]))?;
        let hole = self.tree.hole_at_end(file, growth)?;
        Ok((mutation, Growing { hole, spare }))
    }
}

impl<'s> Mutation<'s> {
    /// Records what was done to `file`, which has `stat` now, and what its growth did.
    ///
    /// # Errors
    /// EIO when that cannot be known; the volume is Failed then.
    pub(super) fn commit_growth(
        self,
        (key, file): (ObjectKey, BorrowedFd<'_>),
        (op, payload): (&Op, &[u8]),
        growing: Growing<'s>,
        stat: &Stat,
    ) -> Result<Tid> {
        let Growing { hole: Some(hole), spare } = growing else {
            return Ok(self.commit(key, op, payload));
        };
        let Some((offset, len)) = self.read_back(hole.filled(file, stat.size))? else {
            return Ok(self.commit(key, op, payload));
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE | FIRST_BLOCK_IS_DATA;
        let filled = Op::Allocate { mode, offset, len, attrs: Attrs::of(stat) };
        match spare {
            _ if faults::skipped("stack.growth") => Ok(self.commit(key, op, payload)),
            Some(spare) => Ok(self.commit_both(key, (op, payload), (spare, &filled))),
            None => {
                // It did not end so when room was taken.
                self.doubt(key, "its last block was filled when it grew");
                Ok(self.commit(key, op, payload))
            }
        }
    }
}
