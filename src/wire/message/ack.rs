//! How far a target is, and what it must be sent.

use crate::base::{Commit, Oid, Tid};
use crate::record::{DecodeError, FieldReader, FieldWriter};

/// Something the target must have to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// The object.
    pub oid: Oid,
    /// First byte of the range, 0 with `len` 0 for the whole object.
    pub offset: u64,
    /// Length of the range; 0 for the whole object.
    pub len: u64,
}

/// How far the target is. All positions are cumulative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Every batch up to this one was taken in (in the inbox, or applied): it no longer fills the window.
    pub batch_taken: u64,
    /// Every batch up to this one is durable in the tree.
    pub batch_durable: u64,
    /// Last TID durable in the inbox.
    pub received: Tid,
    /// Last TID durable in the tree.
    pub applied: Tid,
    /// The state that tree and catalog were last made durable in.
    pub commit: Commit,
    /// What the target takes itself for, also when its source is gone: the last word on that which is durable there.
    pub convergence: Convergence,
    /// Up to here everything is durable in the trees of its own targets too, and of theirs; the largest number when it has
    /// none.
    pub downstream: Tid,
    /// How many objects could not be brought to their state.
    pub blocked: u32,
    /// One of them.
    pub blocked_oid: Oid,
    /// Its errno, else 0.
    pub blocked_errno: i32,
    /// Of how many objects it has left something out, because it does not trust its source with that.
    pub left_out: u32,
    /// Why nothing goes on for now, though the session lives; 0 when it does. A full disk, mostly.
    pub stalled_errno: i32,
    /// Where it does not go on.
    pub stalled_at: Stall,
    /// What the target must be sent.
    pub needs: Vec<Need>,
}

impl Default for Ack {
    fn default() -> Ack {
        Ack {
            batch_taken: 0,
            batch_durable: 0,
            received: Tid::ZERO,
            applied: Tid::ZERO,
            commit: Commit::default(),
            convergence: Convergence::Converging,
            downstream: Tid(u64::MAX),
            blocked: 0,
            blocked_oid: Oid::ROOT,
            blocked_errno: 0,
            left_out: 0,
            stalled_errno: 0,
            stalled_at: Stall::No,
            needs: Vec::new(),
        }
    }
}

/// Which part of a target waits for its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stall {
    /// None.
    #[default]
    No,
    /// Its inbox.
    Inbox,
    /// Its tree.
    Tree,
}

/// What stands against a target's being a past state of its source, as far as the source knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Convergence {
    /// Nothing.
    Consistent,
    /// Objects must still be sent or compared.
    Converging,
}

/// Most needs in one ack.
const MAX_NEEDS: u32 = 4096;

impl Need {
    /// Offset that stands, with length 0, for a directory's entries without what is in them.
    const LISTING: u64 = 1;

    /// The entries of the directory `oid`, without what is in them.
    pub fn listing(oid: Oid) -> Need {
        Need { oid, offset: Need::LISTING, len: 0 }
    }

    /// Whether it is for a directory's entries alone.
    pub fn is_listing(&self) -> bool {
        self.offset == Need::LISTING && self.len == 0
    }
}

impl Ack {
    /// Most needs that one ack can carry; the rest goes with the next.
    pub const MAX_NEEDS: usize = MAX_NEEDS as usize;
}

impl Ack {
    pub(super) fn encode(&self, out: &mut FieldWriter) {
        out.u64(self.batch_taken);
        out.u64(self.batch_durable);
        out.u64(self.received.0);
        out.u64(self.applied.0);
        out.0.extend_from_slice(&self.commit.to_bytes());
        out.u8(self.convergence as u8);
        out.u64(self.downstream.0);
        out.u32(self.blocked);
        out.oid(self.blocked_oid);
        out.u32(self.blocked_errno as u32);
        out.u32(self.left_out);
        out.u8(self.stalled_at as u8);
        out.u32(self.stalled_errno as u32);
        out.u32(self.needs.len() as u32);
        for need in &self.needs {
            out.oid(need.oid);
            out.u64(need.offset);
            out.u64(need.len);
        }
    }

    pub(super) fn decode(r: &mut FieldReader<'_>) -> Result<Ack, DecodeError> {
        let (batch_taken, batch_durable) = (r.u64("batch taken")?, r.u64("batch durable")?);
        let (received, applied) = (Tid(r.u64("received")?), Tid(r.u64("applied")?));
        let (commit, convergence) = (Commit::from_bytes(r.fixed("commit")?), convergence(r)?);
        let downstream = Tid(r.u64("downstream")?);
        let (blocked, blocked_oid) = (r.u32("blocked")?, r.oid("blocked")?);
        let blocked_errno = r.u32("errno")? as i32;
        let left_out = r.u32("left out")?;
        let offset = r.offset();
        let stalled_at = match r.u8("stall")? {
            0 => Stall::No,
            1 => Stall::Inbox,
            2 => Stall::Tree,
            other => return Err(DecodeError::Value { what: "stall", offset, value: u64::from(other) }),
        };
        let stalled_errno = r.u32("errno")? as i32;
        let count = r.bounded_u32("need count", MAX_NEEDS)?;
        let needs = (0..count)
            .map(|_| Ok(Need { oid: r.oid("need")?, offset: r.file_u64("offset")?, len: r.file_u64("length")? }))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Ack {
            batch_taken,
            batch_durable,
            received,
            applied,
            commit,
            convergence,
            downstream,
            blocked,
            blocked_oid,
            blocked_errno,
            left_out,
            stalled_at,
            stalled_errno,
            needs,
        })
    }
}

pub(super) fn convergence(r: &mut FieldReader<'_>) -> Result<Convergence, DecodeError> {
    Ok(if r.flag("convergence")? { Convergence::Converging } else { Convergence::Consistent })
}
