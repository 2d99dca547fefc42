//! Names that move: rename, with RENAME_NOREPLACE and RENAME_EXCHANGE.

use std::os::fd::{AsFd, OwnedFd};

use super::Stack;
use super::lookup::{name_of, shape_of};
use super::mutation::{Mutation, NAME_RECORD};
use super::types::{Caller, NodeId, Object, attrs, kind};
use crate::backing::Found;
use crate::base::{Name, ObjectKey};
use crate::record::{Op, Replaced};
use crate::sys::{self, Errno, Result};

/// The two slots of a rename.
struct Ends {
    from: (Object, Name),
    to: (Object, Name),
}

/// What the two slots hold.
struct Held {
    from: (Found, OwnedFd),
    to: Option<(Found, OwnedFd)>,
}

impl Held {
    fn keys(&self) -> (ObjectKey, Option<ObjectKey>) {
        (self.from.0.key, self.to.as_ref().map(|to| to.0.key))
    }

    fn moves_a_directory(&self) -> bool {
        let is_dir = |found: &Found| kind(&found.stat) == libc::S_IFDIR;
        is_dir(&self.from.0) || self.to.as_ref().is_some_and(|to| is_dir(&to.0))
    }
}

impl Stack {
    /// renameat2(2) with its raw flags.
    ///
    /// # Errors
    /// As renameat2(2); EINVAL for RENAME_WHITEOUT; EPERM onto a reserved name.
    pub fn rename(&self, caller: &Caller, from: (NodeId, &[u8]), to: (NodeId, &[u8]), flags: u32) -> Result<()> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(Errno::EINVAL);
        }
        let ends = Ends { from: (self.object(from.0)?, name_of(from.1)?), to: self.place(to.0, to.1)? };
        loop {
            let seen = self.held(&ends)?;
            if let Some(outcome) = self.try_rename(caller, &ends, &seen, flags) {
                return outcome;
            }
        }
    }

    fn held(&self, ends: &Ends) -> Result<Held> {
        let from = self.find(&ends.from.0, &ends.from.1)?;
        let to = match self.find(&ends.to.0, &ends.to.1) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        Ok(Held { from, to })
    }

    /// Locks what was seen and renames; `None` when the slots hold something else by then.
    fn try_rename(&self, caller: &Caller, ends: &Ends, seen: &Held, flags: u32) -> Option<Result<()>> {
        let reserved = match self.reserve(caller, NAME_RECORD) {
            Ok(reserved) => reserved,
            Err(errno) => return Some(Err(errno)),
        };
        let changes_parent = ends.from.0.key != ends.to.0.key;
        let _graph = (changes_parent && seen.moves_a_directory()).then(|| self.rename_lock.lock());
        let mut keys = vec![ends.from.0.key, ends.to.0.key, seen.from.0.key];
        keys.extend(seen.keys().1);
        let change = match reserved.lock(&keys) {
            Ok(change) => change,
            Err(errno) => return Some(Err(errno)),
        };
        match self.held(ends) {
            Err(errno) => Some(Err(errno)),
            Ok(held) if held.keys() != seen.keys() => None,
            Ok(held) => Some(self.rename_locked(change, ends, &held, flags)),
        }
    }

    fn rename_locked(&self, change: Mutation<'_>, ends: &Ends, held: &Held, flags: u32) -> Result<()> {
        let (from, to) = (&ends.from, &ends.to);
        change.tree().rename(from.0.fd.as_fd(), &from.1, to.0.fd.as_fd(), &to.1, flags)?;
        if held.keys().1 == Some(held.keys().0) {
            // Two names of one object: rename(2) does nothing and succeeds, so nothing is recorded.
            return Ok(());
        }
        let op = match flags & libc::RENAME_EXCHANGE {
            0 => self.rename_op(ends, held),
            _ => self.exchange_op(ends, held),
        };
        let op = change.read_back(op)?;
        change.commit(held.from.0.key, &op, &[]);
        Ok(())
    }

    fn rename_op(&self, ends: &Ends, held: &Held) -> Result<Op> {
        let (moved, fd) = &held.from;
        Ok(Op::Rename {
            from: self.slot(&ends.from.0, ends.from.1.clone()),
            to: self.slot(&ends.to.0, ends.to.1.clone()),
            shape: shape_of(&moved.stat, fd.as_fd())?,
            replaced: held.to.as_ref().map(|to| Replaced { oid: self.oid(to.0.key), fate: self.fate_of(to) }),
            from_after: attrs(&sys::fstat(ends.from.0.fd.as_fd())?),
            to_after: attrs(&sys::fstat(ends.to.0.fd.as_fd())?),
        })
    }

    fn exchange_op(&self, ends: &Ends, held: &Held) -> Result<Op> {
        let (moved, fd) = &held.from;
        let (other, other_fd) = held.to.as_ref().ok_or(Errno::EIO)?;
        Ok(Op::Exchange {
            from: self.slot(&ends.from.0, ends.from.1.clone()),
            to: self.slot(&ends.to.0, ends.to.1.clone()),
            shape: shape_of(&moved.stat, fd.as_fd())?,
            other: self.oid(other.key),
            other_shape: shape_of(&other.stat, other_fd.as_fd())?,
            from_after: attrs(&sys::fstat(ends.from.0.fd.as_fd())?),
            to_after: attrs(&sys::fstat(ends.to.0.fd.as_fd())?),
        })
    }
}
