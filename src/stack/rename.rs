//! Names that move: rename, with RENAME_NOREPLACE and RENAME_EXCHANGE.

use std::os::fd::{AsFd, OwnedFd};

use super::Stack;
use super::lookup::{lockable, name_of};
use super::mutation::{Locked, Mutation, NAME_RECORD, Touch, Touched};
use super::types::{Caller, NodeId, Object, kind};
use crate::backing::Found;
use crate::base::Name;
use crate::record::{Attrs, Op, Replaced, Shape};
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

/// What the two slots seemed to hold before anything was locked: inode number and type.
#[derive(PartialEq, Eq)]
struct Seen {
    from: (u64, u32),
    to: Option<(u64, u32)>,
}

/// What came of an attempt to rename.
enum Attempt {
    Done,
    /// The slots hold something else than what was locked, or something was cold: look again.
    Changed,
}

impl Held {
    fn seen(&self) -> Seen {
        let what = |found: &Found| (found.stat.ino, kind(&found.stat));
        Seen { from: what(&self.from.0), to: self.to.as_ref().map(|to| what(&to.0)) }
    }
}

impl Seen {
    fn moves_a_directory(&self) -> bool {
        self.from.1 == libc::S_IFDIR || self.to.is_some_and(|to| to.1 == libc::S_IFDIR)
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
        let ends = Ends { from: (self.directory(from.0)?, name_of(from.1)?), to: self.place(to.0, to.1)? };
        while let Attempt::Changed = self.try_rename(caller, &ends, flags)? {}
        Ok(())
    }

    fn look(&self, ends: &Ends) -> Result<Seen> {
        let what = |end: &(Object, Name)| {
            let stat = sys::fstatat(end.0.fd.as_fd(), end.1.as_cstr())?;
            Ok((stat.ino, kind(&stat)))
        };
        Ok(Seen { from: what(&ends.from)?, to: if_there(what(&ends.to))? })
    }

    fn held(&self, ends: &Ends) -> Result<Held> {
        let from = self.find(&ends.from.0, &ends.from.1)?;
        Ok(Held { from, to: if_there(self.find(&ends.to.0, &ends.to.1))? })
    }

    /// Locks what the slots seem to hold, and renames when that is what they hold.
    fn try_rename(&self, caller: &Caller, ends: &Ends, flags: u32) -> Result<Attempt> {
        let seen = self.look(ends)?;
        let reserved = self.reserve(caller, NAME_RECORD)?;
        let changes_parent = ends.from.0.key != ends.to.0.key;
        let graph = (changes_parent && seen.moves_a_directory()).then(|| self.rename_lock.lock());
        let mut touches = vec![Touch::Entries(ends.from.0.key), Touch::Entries(ends.to.0.key)];
        match flags & libc::RENAME_EXCHANGE {
            0 => {
                touches.push(Touch::Name(lockable(seen.from.0)));
                touches.extend(seen.to.map(|to| Touch::Name(lockable(to.0))));
            }
            // XFS counts this as a change of a moved directory's data (see [`Op::Exchange`]).
            _ => {
                let held = self.held(ends)?;
                touches.push(Touch::Attributes(held.from.0.key));
                touches.extend(held.to.map(|to| Touch::Attributes(to.0.key)));
            }
        }
        let touched = Touched { touches: &touches, name: ends.to.1.as_bytes() };
        let change = match reserved.try_lock(&touched)? {
            Locked::Begun(change) => change,
            Locked::Cold(mut cold) => {
                drop(graph);
                cold.announce(&touched)?;
                return Ok(Attempt::Changed);
            }
        };
        let held = self.held(ends)?;
        if held.seen() != seen {
            return Ok(Attempt::Changed);
        }
        self.rename_locked(change, ends, held, flags)?;
        Ok(Attempt::Done)
    }

    fn rename_locked(&self, change: Mutation<'_>, ends: &Ends, held: Held, flags: u32) -> Result<()> {
        let (from, to) = (&ends.from, &ends.to);
        change.tree().rename(from.0.fd.as_fd(), &from.1, to.0.fd.as_fd(), &to.1, flags)?;
        if held.to.as_ref().is_some_and(|to| to.0.key == held.from.0.key) {
            // Two names of one object: rename(2) does nothing and succeeds, so nothing is recorded.
            return Ok(());
        }
        let moved = held.from.0.key;
        let op = match flags & libc::RENAME_EXCHANGE {
            0 => self.rename_op(ends, held),
            _ => self.exchange_op(ends, &held),
        };
        let op = change.read_back(op)?;
        change.commit(moved, &op, &[]);
        Ok(())
    }

    fn rename_op(&self, ends: &Ends, held: Held) -> Result<Op> {
        let (moved, fd) = &held.from;
        Ok(Op::Rename {
            from: self.slot(&ends.from.0, ends.from.1.clone()),
            to: self.slot(&ends.to.0, ends.to.1.clone()),
            shape: Shape::of(fd.as_fd(), &moved.stat)?,
            attrs: Attrs::of(&sys::fstat(fd.as_fd())?),
            replaced: held.to.map(|to| Replaced { oid: self.oid(to.0.key), fate: self.fate_of(to) }),
            from_after: Attrs::of(&sys::fstat(ends.from.0.fd.as_fd())?),
            to_after: Attrs::of(&sys::fstat(ends.to.0.fd.as_fd())?),
        })
    }

    fn exchange_op(&self, ends: &Ends, held: &Held) -> Result<Op> {
        let (moved, fd) = &held.from;
        let (other, other_fd) = held.to.as_ref().ok_or(Errno::EIO)?;
        Ok(Op::Exchange {
            from: self.slot(&ends.from.0, ends.from.1.clone()),
            to: self.slot(&ends.to.0, ends.to.1.clone()),
            shape: Shape::of(fd.as_fd(), &moved.stat)?,
            attrs: Attrs::of(&sys::fstat(fd.as_fd())?),
            other: self.oid(other.key),
            other_shape: Shape::of(other_fd.as_fd(), &other.stat)?,
            other_attrs: Attrs::of(&sys::fstat(other_fd.as_fd())?),
            from_after: Attrs::of(&sys::fstat(ends.from.0.fd.as_fd())?),
            to_after: Attrs::of(&sys::fstat(ends.to.0.fd.as_fd())?),
        })
    }
}

/// `None` for what is not there.
fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
