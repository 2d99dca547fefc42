//! Changes of data: write, fallocate, copy_file_range.

use std::os::fd::BorrowedFd;

use super::growth::Growing;
use super::mutation::{Mutation, SMALL_RECORD, Touch};
use super::opens::{BackingMode, OpenFile};
use super::types::{Caller, FileId, NodeId, Privileges};
use super::{MAX_TRANSFER_BYTES, Stack, creds};
use crate::backing::{Growth, HOLE_UNIT, block_is_data};
use crate::base::Tid;
use crate::record::{Attrs, FIRST_BLOCK_IS_DATA, LAST_BLOCK_IS_DATA, Op};
use crate::sys::{self, Errno, Result};

/// How one write is done.
#[derive(Clone, Copy, Debug)]
pub struct WriteMode {
    /// Open flags of the file, with O_DSYNC or O_SYNC set when this write asks for it (RWF_DSYNC, RWF_SYNC).
    pub flags: i32,
    /// Whether privilege bits go.
    pub privileges: Privileges,
    /// Who writes.
    pub writer: Writer,
}

/// Who sends a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The caller, who waits for it.
    Caller,
    /// The page cache, later, and as nobody (fuse_writepage_args_setup in fs/fuse/file.c).
    PageCache,
}

impl Stack {
    /// pwrite(2): one call, one look at the result, one record. May write less than asked.
    ///
    /// # Errors
    /// As pwrite(2), and as fsync(2) when the write was to be synchronous.
    pub fn write(
        &self,
        caller: &Caller,
        node: NodeId,
        id: FileId,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<usize> {
        let data = &data[..data.len().min(MAX_TRANSFER_BYTES)];
        let file = self.file(id, node, mode.flags)?;
        let caller = &match mode.writer {
            Writer::Caller => *caller,
            Writer::PageCache => owner_as_caller(&file, caller)?,
        };
        let len = data.len() as u64;
        let growth = Growth::Write { offset, len };
        let (touch, bytes) = (file.touch(offset, len), SMALL_RECORD + data.len());
        let (change, growing) = self.begin_growing(caller, touch, bytes, (file.fd(), growth))?;
        creds::changing_data(caller, mode.privileges)?;
        let written = change.whole(file.key, change.tree().write(file.fd(), data, offset))?;
        if written == 0 {
            return Ok(0);
        }
        let tid = self.record_write((change, growing), &file, offset, &data[..written])?;
        self.sync_written(&file, mode.flags, tid)?;
        Ok(written)
    }

    fn record_write<'s>(
        &self,
        (change, growing): (Mutation<'s>, Growing<'s>),
        file: &OpenFile,
        offset: u64,
        data: &[u8],
    ) -> Result<Tid> {
        let stat = change.read_back(sys::fstat(file.fd()))?;
        let offset = match file.backing {
            BackingMode::Positioned => offset,
            BackingMode::AppendOnly => stat.size - data.len() as u64,
        };
        let op = Op::Write { offset, attrs: Attrs::of(&stat) };
        file.atime_is(stat.atime);
        change.commit_growth((file.key, file.fd()), (&op, data), growing, &stat)
    }

    /// fallocate(2). The kernel passes KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE only.
    ///
    /// # Errors
    /// As fallocate(2); EOPNOTSUPP for other modes.
    pub fn fallocate(&self, caller: &Caller, node: NodeId, id: FileId, mode: i32, offset: u64, len: u64) -> Result<()> {
        const KNOWN: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !KNOWN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = self.file(id, node, libc::O_RDWR)?;
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let growth = Growth::Size(if keeps_size { 0 } else { offset.saturating_add(len) });
        let touch = file.touch(offset, len);
        let (change, growing) = self.begin_growing(caller, touch, SMALL_RECORD, (file.fd(), growth))?;
        creds::changing_data(caller, Privileges::of(caller))?;
        change.whole(file.key, change.tree().allocate(file.fd(), mode, offset, len))?;
        let stat = change.read_back(sys::fstat(file.fd()))?;
        let mode = mode | change.read_back(cut_blocks(file.fd(), mode, offset, len))?;
        let op = Op::Allocate { mode, offset, len, attrs: Attrs::of(&stat) };
        change.commit_growth((file.key, file.fd()), (&op, &[]), growing, &stat).map(drop)
    }

    /// copy_file_range(2), at most one transfer at a time, by reading and writing: the kernel's own would share extents
    /// where the filesystem can, and with them holes, which the record of a write does not tell a target.
    ///
    /// # Errors
    /// As copy_file_range(2).
    pub fn copy_file_range(
        &self,
        caller: &Caller,
        from: (NodeId, FileId, u64),
        to: (NodeId, FileId, u64),
        len: u64,
    ) -> Result<usize> {
        let len = len.min(MAX_TRANSFER_BYTES as u64) as usize;
        let source = self.file(from.1, from.0, libc::O_RDONLY)?;
        let file = self.file(to.1, to.0, libc::O_RDWR)?;
        let mut data = vec![0; len];
        let growth = Growth::Write { offset: to.2, len: len as u64 };
        let touch = file.touch(to.2, len as u64);
        let (change, growing) = self.begin_growing(caller, touch, SMALL_RECORD + len, (file.fd(), growth))?;
        creds::changing_data(caller, Privileges::of(caller))?;
        let there = sys::pread(source.fd(), &mut data, from.2)?;
        data.truncate(there);
        if data.is_empty() {
            return Ok(0);
        }
        let copied = change.whole(file.key, change.tree().write(file.fd(), &data, to.2))?;
        data.truncate(copied);
        self.record_write((change, growing), &file, to.2, &data)?;
        Ok(copied)
    }
}

/// Pages that are written back come as root's, who may use reserved blocks and pass quotas. Whoever stored into them could
/// not, as a rule: the space is taken as the file's owner would take it.
fn owner_as_caller(file: &OpenFile, caller: &Caller) -> Result<Caller> {
    let stat = sys::fstat(file.fd())?;
    Ok(Caller { uid: stat.uid, gid: stat.gid, ..*caller })
}

impl OpenFile {
    /// A change of `len` bytes at `offset`; at the end, wherever that is, of a file that can only grow.
    fn touch(&self, offset: u64, len: u64) -> Touch {
        match self.backing {
            BackingMode::Positioned => Touch::Data { key: self.key, offset, len },
            BackingMode::AppendOnly => Touch::Size(self.key),
        }
    }
}

/// Which of the blocks that a punched range cuts hold data now. Only btrfs decides that by what was reserved; the others do
/// on the target what they did here, and would mislead: they count a cached page of reserved space as data (iomap's
/// SEEK_DATA), which it stops to be when the page goes.
fn cut_blocks(file: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> Result<i32> {
    if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 || sys::fstatfs(file)?.magic != libc::BTRFS_SUPER_MAGIC {
        return Ok(0);
    }
    let mut bits = 0;
    for (at, bit) in [(offset, FIRST_BLOCK_IS_DATA), (offset + len, LAST_BLOCK_IS_DATA)] {
        if at % HOLE_UNIT != 0 && block_is_data(file, at)? {
            bits |= bit;
        }
    }
    Ok(bits)
}
