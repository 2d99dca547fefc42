//! One method per request of the kernel: decode, one stack call, reply.
//!
//! Not here, and so answered with ENOSYS by `fuser`: access (never sent under `default_permissions`), getlk and setlk (the
//! kernel keeps locks itself: POSIX_LOCKS was not requested).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::follow::Asker;
use super::readers::{Pace, Watching};
use super::reply::{
    KEEP, add_plus, attr, caller, error, file, listed_type, node, open_flags, room, send_attr, send_empty, send_entry,
    send_looked_up, send_opened, send_value, send_written, time,
};
use super::requests::{Kind, Requests};
use super::waiting::Waiting;
use super::{follow, init, worker};
use crate::stack::{AttrChange, MAX_TRANSFER_BYTES, Privileges, Stack, WriteMode, Writer, Writes};

/// A stack as `fuser` wants to see a filesystem.
pub(super) struct Adapter {
    pub(super) stack: Arc<Stack>,
    pub(super) requests: Arc<Requests>,
    pub(super) waiting: Waiting,
    pub(super) watching: Watching,
}

impl Adapter {
    fn serve(&self, request: &Request, kind: Kind, act: impl FnOnce(&Stack)) {
        self.serve_at(Asker::of(request.pid(), kind), kind, kind.pace(), act);
    }

    fn serve_at(&self, asker: Asker, kind: Kind, pace: Pace, act: impl FnOnce(&Stack)) {
        self.requests.count(kind);
        let _turn = self.watching.readers.begin(pace);
        let began = Instant::now();
        worker::serve(&self.stack, act);
        let ended = Instant::now();
        self.requests.took(kind, ended - began);
        follow::served(asker, ended);
    }

    /// Runs one request that may wait for a disk.
    fn change(&self, request: &Request, kind: Kind, act: impl FnOnce(&Stack) + Send + 'static) {
        match self.waiting.enter() {
            // Given back with the answer: a worker that is parked afterwards must not keep it.
            Some(pass) => self.serve(request, kind, move |stack| {
                let _pass = pass;
                act(stack);
            }),
            None => self.hand_over(kind, act),
        }
    }

    fn hand_over(&self, kind: Kind, act: impl FnOnce(&Stack) + Send + 'static) {
        self.requests.count(kind);
        self.requests.count_handed_over();
        let _turn = self.watching.readers.begin(Pace::Quick);
        let (stack, requests, began) = (Arc::clone(&self.stack), Arc::clone(&self.requests), Instant::now());
        self.waiting.hand_over(Box::new(move || {
            worker::serve(&stack, act);
            requests.took(kind, began.elapsed());
        }));
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let agreed = init::agree(config, self.stack.writes());
        self.stack.remember_connection(&agreed.to_string())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(request, Kind::Lookup, |stack| send_looked_up(stack.lookup(node(parent), name.as_bytes()), reply));
    }

    fn forget(&self, request: &Request, ino: INodeNo, lookups: u64) {
        self.serve(request, Kind::Forget, |stack| stack.forget(node(ino), lookups));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(request, Kind::Getattr, |stack| send_attr(stack.getattr(node(ino), fh.map(file)), reply));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange { mode, uid, gid, size, atime: time(atime), mtime: time(mtime) };
        let caller = caller(request, 0);
        self.change(request, Kind::Setattr, move |stack| {
            let outcome = stack.setattr(&caller, node(ino), fh.map(file), &change);
            send_attr(outcome, reply);
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(request, Kind::Readlink, |stack| match stack.readlink(node(ino)) {
            Ok(text) => reply.data(&text),
            Err(errno) => reply.error(error(errno)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(request, Kind::Mknod, move |stack| {
            let (parent, name) = (node(parent), &name);
            send_entry(stack.mknod(&caller, parent, name, mode, rdev.into()), reply);
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(request, Kind::Mkdir, move |stack| {
            send_entry(stack.mkdir(&caller, node(parent), &name, mode), reply);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(request, Kind::Unlink, move |stack| {
            send_empty(stack.unlink(&caller, node(parent), &name), reply);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(request, Kind::Rmdir, move |stack| {
            send_empty(stack.rmdir(&caller, node(parent), &name), reply);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let caller = caller(request, 0);
        let (name, text) = (name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        self.change(request, Kind::Symlink, move |stack| {
            send_entry(stack.symlink(&caller, node(parent), &name, &text), reply)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request, 0);
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.change(request, Kind::Rename, move |stack| {
            let (from, to) = ((node(parent), &name[..]), (node(new_parent), &new_name[..]));
            send_empty(stack.rename(&caller, from, to, flags.bits()), reply);
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(request, Kind::Link, move |stack| {
            let outcome = stack.link(&caller, node(ino), node(parent), &name);
            send_entry(outcome, reply);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request, 0);
        let act = move |stack: &Stack| send_opened(stack.open(&caller, node(ino), flags.0), reply);
        match flags.0 & libc::O_TRUNC {
            0 => self.serve(request, Kind::Open, act),
            _ => self.change(request, Kind::Open, act),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = (size as usize).min(MAX_TRANSFER_BYTES);
        let asker = Asker::of_read(request.pid(), size);
        self.serve_at(asker, Kind::Read, Kind::Read.pace(), |stack| {
            worker::with_buffer(size, |buffer| match stack.read(node(ino), file(fh), flags.0, offset, buffer) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(errno) => reply.error(error(errno)),
            });
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let caller = caller(request, 0);
        let mode = WriteMode {
            flags: flags.0,
            privileges: match write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                true => Privileges::Kill,
                false => Privileges::Keep,
            },
            writer: match write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                true => Writer::PageCache,
                false => Writer::Caller,
            },
        };
        let act = move |stack: &Stack, data: &[u8]| {
            send_written(stack.write(&caller, node(ino), file(fh), offset, data, mode), reply);
        };
        if let Some(pass) = self.waiting.enter() {
            let pace = if flags.0 & libc::O_SYNC == 0 { Pace::Usual } else { Pace::Slow };
            let asker = Asker::of(request.pid(), Kind::Write);
            return self.serve_at(asker, Kind::Write, pace, move |stack| {
                let _pass = pass;
                act(stack, data);
            });
        }
        let data = data.to_vec();
        self.hand_over(Kind::Write, move |stack| act(stack, &data));
    }

    fn flush(&self, request: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.serve(request, Kind::Flush, |stack| send_empty(stack.flush(file(fh)), reply));
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.change(request, Kind::Release, move |stack| {
            stack.release(file(fh));
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.change(request, Kind::Fsync, move |stack| send_empty(stack.fsync(node(ino), file(fh), data), reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.serve(request, Kind::Opendir, |stack| match stack.opendir(node(ino)) {
            Ok(id) => reply.opened(FileHandle(id.0), FopenFlags::empty()),
            Err(errno) => reply.error(error(errno)),
        });
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.serve(request, Kind::Readdir, |stack| {
            let mut any = false;
            let outcome = stack.readdir(file(fh), node(ino), offset, &mut |listed| {
                let full = reply.add(
                    INodeNo(listed.ino),
                    listed.next_offset,
                    listed_type(listed.d_type),
                    OsStr::from_bytes(listed.name),
                );
                any |= !full;
                room(full)
            });
            match outcome {
                Err(errno) if !any => reply.error(error(errno)),
                // An error behind the first entries comes back when the kernel asks for the next ones.
                _ => reply.ok(),
            }
        });
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.serve(request, Kind::Readdirplus, |stack| {
            let mut any = false;
            let outcome = stack.readdirplus(file(fh), node(ino), offset, &mut |listed| {
                let full = add_plus(&mut reply, listed);
                any |= !full;
                room(full)
            });
            match outcome {
                Err(errno) if !any => reply.error(error(errno)),
                _ => reply.ok(),
            }
        });
    }

    fn releasedir(&self, request: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.change(request, Kind::Releasedir, move |stack| {
            stack.releasedir(file(fh));
            reply.ok();
        });
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.change(request, Kind::Fsyncdir, move |stack| send_empty(stack.fsyncdir(node(ino), file(fh), data), reply));
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.serve(request, Kind::Statfs, |stack| match stack.statfs() {
            Ok(fs) => reply.statfs(
                fs.blocks,
                fs.blocks_free,
                fs.blocks_available,
                fs.files,
                fs.files_free,
                fs.block_size,
                fs.name_max,
                fs.fragment_size,
            ),
            Err(errno) => reply.error(error(errno)),
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        let value = value.to_vec();
        self.change(request, Kind::Setxattr, move |stack| {
            let outcome = stack.setxattr(&caller, node(ino), &name, &value, flags);
            send_empty(outcome, reply);
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(request, Kind::Getxattr, |stack| {
            send_value(stack.getxattr(node(ino), name.as_bytes()), size, reply)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(request, 0);
        self.serve(request, Kind::Listxattr, |stack| send_value(stack.listxattr(&caller, node(ino)), size, reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(request, Kind::Removexattr, move |stack| {
            send_empty(stack.removexattr(&caller, node(ino), &name), reply);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(request, Kind::Create, move |stack| {
            match stack.create(&caller, node(parent), &name, mode, flags) {
                Ok((entry, opened)) => reply.created(
                    &KEEP,
                    &attr(&entry.stat, entry.node.0),
                    Generation(u64::from(entry.generation)),
                    FileHandle(opened.file.0),
                    open_flags(&opened),
                ),
                Err(errno) => reply.error(error(errno)),
            }
        });
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        input: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let (caller, input) = (caller(request, 0), input.to_vec());
        self.change(request, Kind::Ioctl, move |stack| {
            match stack.ioctl(&caller, node(ino), file(fh), command, &input) {
                Ok(output) => reply.ioctl(0, &output[..output.len().min(out_size as usize)]),
                Err(errno) => reply.error(error(errno)),
            }
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request, 0);
        self.change(request, Kind::Fallocate, move |stack| {
            let outcome = stack.fallocate(&caller, node(ino), file(fh), mode, offset, len);
            send_empty(outcome, reply);
        });
    }

    /// The kernel asks for data without writing back what it holds (fuse_lseek in fs/fuse/file.c). With a cache that is
    /// written back later it must not ask at all: a copying program would take new data for a hole.
    fn lseek(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        if self.stack.writes() == Writes::Back {
            return self.serve(request, Kind::Lseek, |_| reply.error(fuser::Errno::ENOSYS));
        }
        self.serve(request, Kind::Lseek, |stack| match stack.lseek(node(ino), file(fh), offset, whence) {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(error(errno)),
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let caller = caller(request, 0);
        let from = (node(ino_in), file(fh_in), offset_in);
        let to = (node(ino_out), file(fh_out), offset_out);
        self.change(request, Kind::CopyFileRange, move |stack| {
            send_written(stack.copy_file_range(&caller, from, to, len), reply)
        });
    }
}
