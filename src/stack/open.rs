//! Handles: open, opendir, flush, release.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use super::mutation::{SMALL_RECORD, Touch};
use super::opens::{BackingMode, DirCursor, Ended, Handle, OpenDir, OpenFile};
use super::types::{Caching, Caller, Closing, FileId, NodeId, Opened, Privileges, Writes};
use super::{Stack, creds};
use crate::base::ObjectKey;
use crate::record::{Attrs, Op};
use crate::sys::{self, Errno, Result};

impl Stack {
    /// open(2) of a regular file, with O_TRUNC where the flags say so.
    ///
    /// # Errors
    /// As open(2); ESTALE when the object is gone.
    pub fn open(&self, caller: &Caller, node: NodeId, flags: i32) -> Result<Opened> {
        let file = Arc::new(self.open_file(node, flags)?);
        if flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE != libc::O_RDONLY {
            self.truncate_open(caller, &file)?;
        }
        // Under the object's lock an unlink comes either before, and the object is gone, or after, and sees the handle.
        let _object = self.locks.lock(&[file.key]);
        let stat = sys::fstat(file.fd())?;
        if stat.nlink == 0 && !self.may_open_nameless(&file) {
            return Err(Errno::ESTALE);
        }
        file.atime_is(stat.atime);
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            // The first write then seldom waits for its intent.
            self.expect(Touch::Attributes(file.key));
        }
        let backing = file.backing;
        Ok(self.opened(self.opens.insert(Handle::File(file)), backing, flags))
    }

    /// A file without a name opens again through /proc/PID/fd: as one more handle of those that keep it, or as a ghost.
    fn may_open_nameless(&self, file: &OpenFile) -> bool {
        self.nodes.is_ghost(file.key) || self.opens.outlives_its_name(file.key) || {
            self.haunt_open(file);
            self.nodes.is_ghost(file.key)
        }
    }

    fn haunt_open(&self, file: &OpenFile) {
        self.nodes.haunt(file.key, file.fd().try_clone_to_owned().ok());
    }

    /// A file that is written past the page cache, or only read, needs no coherence between readers and writers here:
    /// the kernel keeps it (fs/fuse/file.c). One that is opened for both is the operator's choice.
    pub(super) fn opened(&self, file: FileId, backing: BackingMode, flags: i32) -> Opened {
        let (caching, closing) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (Caching::Cached, Closing::Quiet),
            // Pages begin before what was appended, and would be appended once more.
            _ if self.options.writes == Writes::Back && backing == BackingMode::AppendOnly => {
                (Caching::Direct, Closing::Told)
            }
            _ if self.options.writes == Writes::Back => (Caching::Cached, Closing::Told),
            // Every write was answered when it was on its way to the disk or refused: a close has nothing to add.
            libc::O_WRONLY => (Caching::Direct, Closing::Quiet),
            _ => (self.options.read_write, Closing::Told),
        };
        Opened { file, caching, closing }
    }

    fn open_file(&self, node: NodeId, flags: i32) -> Result<OpenFile> {
        let key = self.key(node)?;
        let (fd, backing) = self.open_backing(key, flags)?;
        Ok(OpenFile::new(key, node, fd, backing, flags))
    }

    /// Backing descriptors never carry O_APPEND or O_DIRECT: mmap pages are written back through them at any offset and
    /// length. Writers read too: a copied range is read back for its record.
    fn open_backing(&self, key: ObjectKey, flags: i32) -> Result<(OwnedFd, BackingMode)> {
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Ok((self.tree.open_key(key, libc::O_RDONLY)?, BackingMode::Positioned));
        }
        match self.tree.open_key(key, libc::O_RDWR) {
            // An append-only inode opens for writing with O_APPEND only (ioctl_iflags(2)).
            Err(Errno::EPERM) if flags & libc::O_APPEND != 0 => {
                Ok((self.tree.open_key(key, libc::O_RDWR | libc::O_APPEND)?, BackingMode::AppendOnly))
            }
            fd => Ok((fd?, BackingMode::Positioned)),
        }
    }

    /// O_TRUNC is a change of its own, also of an empty file: it moves the times.
    fn truncate_open(&self, caller: &Caller, file: &OpenFile) -> Result<()> {
        let change = self.begin(caller, &[Touch::Size(file.key)], SMALL_RECORD)?;
        creds::changing_data(caller, Privileges::of(caller))?;
        change.whole(file.key, change.tree().truncate(file.fd(), 0))?;
        let stat = change.read_back(sys::fstat(file.fd()))?;
        let op = Op::Truncate { attrs: Attrs::of(&stat) };
        change.commit(file.key, &op, &[]);
        Ok(())
    }

    /// The open file behind `id`, good for what `flags` ask for. A handle from before this process is opened again from
    /// node and flags; again when a later request says that it was open for writing.
    ///
    /// # Errors
    /// EBADF for a directory; ESTALE when the object is gone.
    pub(super) fn file(&self, id: FileId, node: NodeId, flags: i32) -> Result<Arc<OpenFile>> {
        match self.opens.get(id) {
            Some(Handle::File(file)) if file.node == node && file.serves(flags) => return Ok(file),
            Some(Handle::Dir(_)) => return Err(Errno::EBADF),
            Some(Handle::File(_)) | None => {}
        }
        let file = Arc::new(self.open_file(node, flags)?);
        let _object = self.locks.lock(&[file.key]);
        // Another request for the same handle may have been quicker.
        if let Some(Handle::File(there)) = self.opens.get(id)
            && there.node == node
            && there.serves(flags)
        {
            return Ok(there);
        }
        file.atime_is(sys::fstat(file.fd())?.atime);
        self.opens.insert_as(id, Handle::File(file.clone()));
        Ok(file)
    }

    /// opendir(3).
    ///
    /// # Errors
    /// As open(2); ESTALE when the directory is gone.
    pub fn opendir(&self, node: NodeId) -> Result<FileId> {
        let dir = self.open_dir(node)?;
        if self.storm.rages() {
            self.expect(Touch::Entries(dir.key));
        }
        Ok(self.opens.insert(Handle::Dir(Arc::new(dir))))
    }

    fn open_dir(&self, node: NodeId) -> Result<OpenDir> {
        let dir = self.object(node)?;
        let stream = self.tree.read_dir(dir.fd.as_fd())?;
        Ok(OpenDir {
            key: dir.key,
            node,
            atime: sys::fstat(dir.fd.as_fd())?.atime,
            cursor: Mutex::new(DirCursor { stream, offset: 0, pending: None }),
        })
    }

    /// The open directory behind `id`, opened again when the handle is from before this process.
    ///
    /// # Errors
    /// ENOTDIR for a file; ESTALE when the directory is gone.
    pub(super) fn dir(&self, id: FileId, node: NodeId) -> Result<Arc<OpenDir>> {
        match self.opens.get(id) {
            Some(Handle::Dir(dir)) if dir.node == node => return Ok(dir),
            Some(Handle::File(_)) => return Err(Errno::ENOTDIR),
            Some(Handle::Dir(_)) | None => {}
        }
        let dir = Arc::new(self.open_dir(node)?);
        self.opens.insert_as(id, Handle::Dir(dir.clone()));
        Ok(dir)
    }

    /// close(2) of one of the descriptors that share a handle. Nothing is buffered here, so nothing can fail late.
    ///
    /// # Errors
    /// EIO when the volume has failed: the last chance to tell a writer that never calls fsync.
    pub fn flush(&self, _file: FileId) -> Result<()> {
        self.check_alive()
    }

    /// The end of a file's handle: its access time is recorded when it moved, and the object's end when it had no name
    /// any more.
    pub fn release(&self, id: FileId) {
        let Some(Handle::File(file)) = self.opens.remove(id) else {
            return;
        };
        self.record_moved_atime(&file);
        let key = file.key;
        let ended = {
            let _object = self.locks.lock(&[key]);
            let ended = self.opens.end(key);
            if ended == Ended::Gone {
                self.haunt_open(&file);
            }
            ended
        };
        drop(file);
        if ended == Ended::Gone {
            self.record_end(key);
        }
    }

    /// The end of a directory's handle.
    pub fn releasedir(&self, id: FileId) {
        let Some(Handle::Dir(dir)) = self.opens.remove(id) else {
            return;
        };
        let stat = sys::fstat(dir.cursor.lock().stream.fd());
        if stat.is_ok_and(|stat| stat.nlink > 0 && stat.atime != dir.atime)
            && let Ok(fd) = self.tree.open_key(dir.key, libc::O_PATH)
        {
            self.record_atime(dir.key, fd.as_fd());
        }
    }

    fn record_end(&self, key: ObjectKey) {
        match self.begin(&Caller::daemon(), &[Touch::Name(key)], SMALL_RECORD) {
            Ok(change) => {
                change.commit(key, &Op::Gone, &[]);
                self.journal.not_orphan(self.oid(key));
            }
            Err(errno) => {
                // The close cannot fail any more; a target keeps the object parked until it compares.
                tracing::warn!(%errno, ino = key.ino, "the end of an unlinked file could not be recorded");
            }
        }
    }

    /// Records the access time of `file` when reads moved it and no record says so yet.
    pub(super) fn record_moved_atime(&self, file: &OpenFile) {
        let Ok(stat) = sys::fstat(file.fd()) else {
            return;
        };
        if stat.nlink > 0 && file.atime_moved(stat.atime) {
            self.record_atime(file.key, file.fd());
            file.atime_is(stat.atime);
        }
    }

    fn record_atime(&self, key: ObjectKey, fd: BorrowedFd<'_>) {
        let Ok(change) = self.begin(&Caller::daemon(), &[Touch::Name(key)], SMALL_RECORD) else {
            return;
        };
        if let Ok(stat) = sys::fstat(fd) {
            let op = Op::SetAttr { attrs: Attrs::of(&stat) };
            change.commit(key, &op, &[]);
        }
    }
}
