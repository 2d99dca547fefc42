//! Between fuser's types and the stack's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};

use crate::base::Timespec;
use crate::stack::{
    Caching, Caller, Closing, Entry, Errno, FileId, Listed, NodeId, Opened, Result, Room, Stat, TimeChange,
};

/// How long the kernel may keep names and attributes: everything goes through the mount, so they do not go stale.
pub(super) const KEEP: Duration = Duration::from_secs(3600);

pub(super) fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(super) fn file(handle: FileHandle) -> FileId {
    FileId(handle.0)
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { unique: request.unique().0, uid: request.uid(), gid: request.gid(), pid: request.pid(), umask }
}

pub(super) fn error(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

pub(super) fn time(change: Option<TimeOrNow>) -> TimeChange {
    match change {
        None => TimeChange::Keep,
        Some(TimeOrNow::Now) => TimeChange::Now,
        Some(TimeOrNow::SpecificTime(time)) => TimeChange::Set(asked_for(time)),
    }
}

/// fuser 0.18 decodes seconds and nanoseconds before 1970 as if both counted backwards (its `system_time_from_time`);
/// so they can be told apart again.
fn asked_for(decoded: SystemTime) -> Timespec {
    match decoded.duration_since(UNIX_EPOCH) {
        Ok(_) => decoded.into(),
        Err(before) => {
            let backwards = before.duration();
            Timespec { sec: 0i64.wrapping_sub_unsigned(backwards.as_secs()), nsec: backwards.subsec_nanos() }
        }
    }
}

pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// DT_* types are the type bits of a mode, shifted (dirent.h, DTTOIF).
pub(super) fn listed_type(d_type: u8) -> FileType {
    file_type(u32::from(d_type) << 12)
}

/// fuser has one number for nodeid and st_ino; they differ for the root only, whose nodeid the kernel knows anyway.
pub(super) fn attr(stat: &Stat, ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.into(),
        mtime: stat.mtime.into(),
        ctime: stat.ctime.into(),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.mode),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink as u32,
        uid: stat.uid,
        gid: stat.gid,
        // The low 32 bits of glibc's dev_t are the kernel's new_encode_dev form for all numbers that fit in it.
        rdev: stat.rdev as u32,
        blksize: stat.block_size,
        flags: 0,
    }
}

/// Attributes that nobody looks at.
const NO_ATTR: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 1,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 4096,
    flags: 0,
};

/// Attributes of an entry that was listed without a look-up: the kernel takes its number and type, nothing else.
pub(super) fn bare_attr(listed: &Listed<'_>) -> FileAttr {
    FileAttr { ino: INodeNo(listed.ino), kind: listed_type(listed.d_type), ..NO_ATTR }
}

pub(super) fn open_flags(opened: &Opened) -> FopenFlags {
    let caching = match opened.caching {
        Caching::Cached => FopenFlags::FOPEN_KEEP_CACHE,
        Caching::Direct => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
    };
    match opened.closing {
        Closing::Quiet => caching | FopenFlags::FOPEN_NOFLUSH,
        Closing::Told => caching,
    }
}

pub(super) fn send_entry(outcome: Result<Entry>, reply: ReplyEntry) {
    match outcome {
        Ok(entry) => reply.entry(&KEEP, &attr(&entry.stat, entry.node.0), Generation(u64::from(entry.generation))),
        Err(errno) => reply.error(error(errno)),
    }
}

/// As [`send_entry`]; a name that is not there is remembered too (node 0, fs/fuse/dir.c): who makes it comes through the
/// mount.
pub(super) fn send_looked_up(outcome: Result<Entry>, reply: ReplyEntry) {
    match outcome {
        Err(Errno::ENOENT) => reply.entry(&KEEP, &NO_ATTR, Generation(0)),
        outcome => send_entry(outcome, reply),
    }
}

pub(super) fn send_attr(outcome: Result<Stat>, reply: ReplyAttr) {
    match outcome {
        Ok(stat) => reply.attr(&KEEP, &attr(&stat, stat.ino)),
        Err(errno) => reply.error(error(errno)),
    }
}

pub(super) fn send_empty(outcome: Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(error(errno)),
    }
}

pub(super) fn send_opened(outcome: Result<Opened>, reply: ReplyOpen) {
    match outcome {
        Ok(opened) => reply.opened(FileHandle(opened.file.0), open_flags(&opened)),
        Err(errno) => reply.error(error(errno)),
    }
}

/// The value, or its size when the caller only asks for that (getxattr(2)).
pub(super) fn send_value(outcome: Result<Vec<u8>>, room: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(error(errno)),
    }
}

/// Writes are answered with a u32; none is longer than one transfer.
pub(super) fn send_written(outcome: Result<usize>, reply: ReplyWrite) {
    match outcome {
        Ok(written) => reply.written(written as u32),
        Err(errno) => reply.error(error(errno)),
    }
}

pub(super) fn room(full: bool) -> Room {
    match full {
        true => Room::Full,
        false => Room::Taken,
    }
}

/// Node 0 tells the kernel that an entry was listed without a look-up.
pub(super) fn add_plus(reply: &mut ReplyDirectoryPlus, listed: &Listed<'_>) -> bool {
    let name = OsStr::from_bytes(listed.name);
    let (ino, attr, generation) = match &listed.entry {
        Some(entry) => (entry.node.0, attr(&entry.stat, listed.ino), entry.generation),
        None => (0, bare_attr(listed), 0),
    };
    let generation = Generation(u64::from(generation));
    reply.add(INodeNo(ino), listed.next_offset, name, &KEEP, &attr, generation)
}
