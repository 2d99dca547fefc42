//! Mode, owner, size and times.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::mutation::{Mutation, SMALL_RECORD, Touch};
use super::opens::{Handle, OpenFile};
use super::types::{AttrChange, Caller, FileId, NodeId, Object, Privileges};
use super::{Stack, creds};
use crate::backing::Growth;
use crate::record::{Attrs, Op};
use crate::sys::{self, Result, Stat, TimeChange};

/// How far a change of several attributes came.
enum Progress {
    Untouched,
    Changed,
}

/// By which descriptor the size is changed.
enum Sized {
    Open(Arc<OpenFile>),
    Opened(OwnedFd),
    Not,
}

impl Sized {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sized::Open(file) => Some(file.fd()),
            Sized::Opened(fd) => Some(fd.as_fd()),
            Sized::Not => None,
        }
    }
}

const CAPABILITY: &std::ffi::CStr = c"security.capability";

impl Stack {
    /// chmod(2), chown(2), truncate(2) and utimensat(2) in one; gives the attributes afterwards.
    ///
    /// When a later part fails, what was changed before is recorded and the error is reported, as the backing
    /// filesystem is left.
    ///
    /// # Errors
    /// As those calls.
    pub fn setattr(&self, caller: &Caller, node: NodeId, file: Option<FileId>, change: &AttrChange) -> Result<Stat> {
        let object = self.object(node)?;
        let sized = self.sized(&object, node, file, change)?;
        let touch = match change.size {
            Some(_) => Touch::Size(object.key),
            None => Touch::Attributes(object.key),
        };
        let (mutation, growing) = match change.size.zip(sized.fd()) {
            None => (self.begin(caller, &[touch], SMALL_RECORD)?, None),
            Some((size, file)) => {
                let begun = self.begin_growing(caller, touch, SMALL_RECORD, (file, Growth::Size(size)))?;
                (begun.0, Some(begun.1))
            }
        };
        let capable = (change.uid.is_some() || change.gid.is_some()) && self.is_capable(&object)?;
        let mut progress = Progress::Untouched;
        let outcome = apply(&mutation, caller, &object, &sized, change, &mut progress);
        let stat = match progress {
            Progress::Untouched => {
                drop(mutation);
                outcome?;
                return sys::fstat(object.fd.as_fd());
            }
            Progress::Changed => mutation.read_back(sys::fstat(object.fd.as_fd()))?,
        };
        if let Some(Handle::File(open)) = file.and_then(|id| self.opens.get(id)) {
            open.atime_is(stat.atime);
        }
        let attrs = Attrs::of(&stat);
        let op = match change.size {
            Some(_) => Op::Truncate { attrs },
            // A change of owner took the capability away (chown(2)), which attributes alone do not say.
            None if capable && !mutation.read_back(self.is_capable(&object))? => {
                Op::RemoveXattr { name: CAPABILITY.to_bytes().to_vec(), attrs }
            }
            None => Op::SetAttr { attrs },
        };
        match sized.fd().zip(growing) {
            Some((file, growing)) => mutation.commit_growth((object.key, file), (&op, &[]), growing, &stat)?,
            None => mutation.commit(object.key, &op, &[]),
        };
        outcome.map(|()| stat)
    }

    fn is_capable(&self, object: &Object) -> Result<bool> {
        Ok(self.tree.xattr(object.fd.as_fd(), CAPABILITY)?.is_some())
    }

    fn sized(&self, object: &Object, node: NodeId, file: Option<FileId>, change: &AttrChange) -> Result<Sized> {
        if change.size.is_none() {
            return Ok(Sized::Not);
        }
        if let Some(Handle::File(open)) = file.and_then(|id| self.opens.get(id))
            && open.node == node
        {
            return Ok(Sized::Open(open));
        }
        let fd = self.tree.open_key(object.key, libc::O_WRONLY)?;
        Ok(Sized::Opened(fd))
    }
}

fn apply(
    mutation: &Mutation<'_>,
    caller: &Caller,
    object: &Object,
    sized: &Sized,
    change: &AttrChange,
    progress: &mut Progress,
) -> Result<()> {
    let (tree, fd) = (mutation.tree(), object.fd.as_fd());
    if let (Some(size), Some(file)) = (change.size, sized.fd()) {
        creds::changing_data(caller, Privileges::of(caller))?;
        mutation.whole(object.key, tree.truncate(file, size))?;
        *progress = Progress::Changed;
    }
    // The backing filesystem charges the new owner's quota and takes privilege bits away by itself (chown(2)).
    if change.uid.is_some() || change.gid.is_some() || takes_privileges(caller, change) {
        creds::changing_group_bit(caller, &sys::fstat(fd)?)?;
        tree.chown(fd, change.uid, change.gid)?;
        *progress = Progress::Changed;
    }
    if let Some(mode) = change.mode {
        creds::changing_attrs()?;
        tree.chmod(fd, mode)?;
        *progress = Progress::Changed;
    }
    if change.atime != TimeChange::Keep || change.mtime != TimeChange::Keep {
        tree.set_times(fd, change.atime, change.mtime)?;
        *progress = Progress::Changed;
    }
    Ok(())
}

/// A request that names nothing comes for chown(-1, -1), and for a change of data of a file with capabilities after
/// those were removed (file_remove_privs in fs/inode.c). Both take privilege bits away from a user's file, and the kernel
/// leaves that to us (fuse_setattr in fs/fuse/dir.c); from root's only the first does, and cannot be told apart.
fn takes_privileges(caller: &Caller, change: &AttrChange) -> bool {
    *change == AttrChange::default() && caller.uid != 0
}
