//! The ioctls that pass: inode flags, read and set (chattr(1), lsattr(1), xfs_io). Everything else is ENOTTY: what
//! cannot be recorded must not happen behind the journal.

use std::os::fd::{AsFd, OwnedFd};

use super::mutation::{SMALL_RECORD, Touch};
use super::opens::Handle;
use super::types::{Caller, FileId, NodeId};
use super::{Stack, creds};
use crate::base::ObjectKey;
use crate::record::{Attrs, Op};
use crate::sys::{self, Errno, FileFlags, Result};

/// FS_IOC_GETFLAGS (ioctl_iflags(2)).
const GET_FLAGS: u32 = 0x8008_6601;
/// FS_IOC_SETFLAGS.
const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR (ioctl_xfs_fsgetxattr(2)).
const GET_FSXATTR: u32 = 0x801c_581f;
/// FS_IOC_FSSETXATTR.
const SET_FSXATTR: u32 = 0x401c_5820;

impl Stack {
    /// ioctl(2) from the allow-list; gives the bytes for the caller.
    ///
    /// # Errors
    /// ENOTTY for any other command; EINVAL for a short argument; else as ioctl_iflags(2).
    pub fn ioctl(&self, caller: &Caller, node: NodeId, id: FileId, command: u32, input: &[u8]) -> Result<Vec<u8>> {
        match command {
            GET_FLAGS => {
                let (_, fd) = self.readable(node, id)?;
                let flags = sys::file_flags_get(fd.as_fd())?;
                Ok(flags.0.to_ne_bytes().to_vec())
            }
            SET_FLAGS => self.set_flags(caller, node, id, input),
            GET_FSXATTR => {
                let (_, fd) = self.readable(node, id)?;
                sys::fsxattr_get(fd.as_fd()).map(|raw| raw.to_vec())
            }
            SET_FSXATTR => self.set_fsxattr(caller, node, id, input),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// A descriptor of `node` that ioctls accept (O_PATH does not do).
    fn readable(&self, node: NodeId, id: FileId) -> Result<(ObjectKey, OwnedFd)> {
        let key = match self.opens.get(id) {
            Some(Handle::File(file)) if file.node == node => file.key,
            _ => self.key(node)?,
        };
        let fd = self.tree.open_key(key, libc::O_RDONLY | libc::O_NONBLOCK)?;
        Ok((key, fd))
    }

    fn set_flags(&self, caller: &Caller, node: NodeId, id: FileId, input: &[u8]) -> Result<Vec<u8>> {
        let word = input.first_chunk::<4>().ok_or(Errno::EINVAL)?;
        let flags = FileFlags(u32::from_ne_bytes(*word));
        self.change_flags(caller, node, id, |tree, fd| tree.set_flags(fd, flags))
    }

    fn set_fsxattr(&self, caller: &Caller, node: NodeId, id: FileId, input: &[u8]) -> Result<Vec<u8>> {
        let raw = input.first_chunk().ok_or(Errno::EINVAL)?;
        self.change_flags(caller, node, id, |tree, fd| tree.set_fsxattr(fd, raw))
    }

    fn change_flags(
        &self,
        caller: &Caller,
        node: NodeId,
        id: FileId,
        set: impl FnOnce(crate::backing::TreeMut<'_>, std::os::fd::BorrowedFd<'_>) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let (key, fd) = self.readable(node, id)?;
        let change = self.begin(caller, &[Touch::Attributes(key)], SMALL_RECORD)?;
        creds::changing_attrs()?;
        let before = sys::inode_flags_get(fd.as_fd())?;
        let outcome = set(change.tree(), fd.as_fd());
        let flags = change.read_back(sys::inode_flags_get(fd.as_fd()))?;
        // ext4 sets the flags first and may then refuse the project (fs/ext4/ioctl.c): a failed call can have an effect.
        if outcome.is_err() && flags == before {
            return outcome.map(|()| Vec::new());
        }
        let stat = change.read_back(sys::fstat(fd.as_fd()))?;
        let op = Op::SetFlags { flags, attrs: Attrs::of(&stat) };
        change.commit(key, &op, &[]);
        outcome.map(|()| Vec::new())
    }
}
