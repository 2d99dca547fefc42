//! Durability: fsync, fsyncdir, synchronous writes.
//!
//! When one of these succeeds, the data of the object and the journal's records up to its last change are both on disk.

use std::os::fd::{AsFd, BorrowedFd};

use super::Stack;
use super::opens::OpenFile;
use super::types::{FileId, NodeId};
use crate::base::Tid;
use crate::base::faults;
use crate::sys::{self, Errno, Result};

/// How much of an object is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SyncKind {
    /// fdatasync(2).
    Data,
    /// fsync(2).
    All,
}

impl Stack {
    /// fsync(2), or fdatasync(2) when `datasync`.
    ///
    /// # Errors
    /// As fsync(2). An error latches the volume: what is on the disk is not known any more.
    pub fn fsync(&self, node: NodeId, id: FileId, datasync: bool) -> Result<()> {
        let file = self.file(id, node, libc::O_RDONLY)?;
        let tid = self.journal.last_tid();
        self.sync_both(file.fd(), kind_of(datasync), tid)
    }

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// As [`Stack::fsync`].
    pub fn fsyncdir(&self, node: NodeId, id: FileId, datasync: bool) -> Result<()> {
        let dir = self.dir(id, node)?;
        let tid = self.journal.last_tid();
        // A descriptor of its own: the listing's lock must not be held while the disk is waited for.
        let fd = self.tree.open_key(dir.key, libc::O_RDONLY | libc::O_DIRECTORY)?;
        self.sync_both(fd.as_fd(), kind_of(datasync), tid)
    }

    /// What O_DSYNC or O_SYNC asks for behind a write that took `tid`. Called with no lock held.
    pub(super) fn sync_written(&self, file: &OpenFile, flags: i32, tid: Tid) -> Result<()> {
        match flags & libc::O_SYNC {
            0 => Ok(()),
            libc::O_SYNC => self.sync_both(file.fd(), SyncKind::All, tid),
            _ => self.sync_both(file.fd(), SyncKind::Data, tid),
        }
    }

    /// Both, one after the other and by this thread: to wake another one takes as long as a fast disk takes for its half. The
    /// disk has the journal's blocks while the file is synced. The first error wins.
    fn sync_both(&self, fd: BorrowedFd<'_>, kind: SyncKind, tid: Tid) -> Result<()> {
        self.check_alive()?;
        self.journal.start_commit(tid);
        let backing = faults::step("backing.fsync", || match kind {
            SyncKind::Data => sys::fdatasync(fd),
            SyncKind::All => sys::fsync(fd),
        });
        let journal = self.journal.commit(tid);
        if let Err(error) = &journal {
            self.fail(&format!("the journal cannot be made durable: {error}"));
        }
        backing.map_err(|errno| self.sync_failed(errno))?;
        journal.map_err(|error| error.errno())
    }

    /// The kernel reports lost pages once; a second fsync would claim success (fsync(2)).
    fn sync_failed(&self, errno: Errno) -> Errno {
        if !matches!(errno, Errno::EINVAL | Errno::EROFS) {
            self.fail(&format!("fsync of the backing tree failed: {errno}"));
        }
        errno
    }
}

fn kind_of(datasync: bool) -> SyncKind {
    match datasync {
        true => SyncKind::Data,
        false => SyncKind::All,
    }
}
