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

use super::readers::{Pace, Watching};
use super::reply::{
    KEEP, add_plus, attr, caller, error, file, listed_type, node, open_flags, room, send_attr, send_empty, send_entry,
    send_looked_up, send_opened, send_value, send_written, time,
};
use super::requests::{Kind, Requests};
use super::waiting::Waiting;
use super::{init, worker};
use crate::stack::{AttrChange, MAX_TRANSFER_BYTES, Privileges, Stack, WriteMode};

/// A stack as `fuser` wants to see a filesystem.
pub(super) struct Adapter {
    pub(super) stack: Arc<Stack>,
    pub(super) requests: Arc<Requests>,
    pub(super) waiting: Waiting,
    pub(super) watching: Watching,
}

impl Adapter {
    fn serve(&self, kind: Kind, act: impl FnOnce(&Stack)) {
        self.serve_at(kind, kind.pace(), act);
    }

    fn serve_at(&self, kind: Kind, pace: Pace, act: impl FnOnce(&Stack)) {
        self.requests.count(kind);
        let _turn = self.watching.readers.begin(pace);
        let began = Instant::now();
        worker::serve(&self.stack, act);
        self.requests.took(kind, began.elapsed());
    }

    /// Runs one request that may wait for a disk.
    fn change(&self, kind: Kind, act: impl FnOnce(&Stack) + Send + 'static) {
        match self.waiting.enter() {
            Some(_pass) => self.serve(kind, act),
            None => self.hand_over(kind, act),
        }
    }

    fn hand_over(&self, kind: Kind, act: impl FnOnce(&Stack) + Send + 'static) {
        self.requests.count(kind);
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
        let agreed = init::agree(config);
        self.stack.remember_connection(&agreed.to_string())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Kind::Lookup, |stack| send_looked_up(stack.lookup(node(parent), name.as_bytes()), reply));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.serve(Kind::Forget, |stack| stack.forget(node(ino), lookups));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(Kind::Getattr, |stack| send_attr(stack.getattr(node(ino), fh.map(file)), reply));
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
        self.change(Kind::Setattr, move |stack| {
            let outcome = stack.setattr(&caller, node(ino), fh.map(file), &change);
            send_attr(outcome, reply);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(Kind::Readlink, |stack| match stack.readlink(node(ino)) {
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
        self.change(Kind::Mknod, move |stack| {
            let (parent, name) = (node(parent), &name);
            send_entry(stack.mknod(&caller, parent, name, mode, rdev.into()), reply);
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.change(Kind::Mkdir, move |stack| {
            send_entry(stack.mkdir(&caller, node(parent), &name, mode), reply);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(Kind::Unlink, move |stack| {
            send_empty(stack.unlink(&caller, node(parent), &name), reply);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(Kind::Rmdir, move |stack| {
            send_empty(stack.rmdir(&caller, node(parent), &name), reply);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let caller = caller(request, 0);
        let (name, text) = (name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        self.change(Kind::Symlink, move |stack| send_entry(stack.symlink(&caller, node(parent), &name, &text), reply));
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
        self.change(Kind::Rename, move |stack| {
            let (from, to) = ((node(parent), &name[..]), (node(new_parent), &new_name[..]));
            send_empty(stack.rename(&caller, from, to, flags.bits()), reply);
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(Kind::Link, move |stack| {
            let outcome = stack.link(&caller, node(ino), node(parent), &name);
            send_entry(outcome, reply);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request, 0);
        let act = move |stack: &Stack| send_opened(stack.open(&caller, node(ino), flags.0), reply);
        match flags.0 & libc::O_TRUNC {
            0 => self.serve(Kind::Open, act),
            _ => self.change(Kind::Open, act),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = (size as usize).min(MAX_TRANSFER_BYTES);
        self.serve(Kind::Read, |stack| {
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
        };
        let act = move |stack: &Stack, data: &[u8]| {
            send_written(stack.write(&caller, node(ino), file(fh), offset, data, mode), reply);
        };
        if let Some(_pass) = self.waiting.enter() {
            let pace = if flags.0 & libc::O_SYNC == 0 { Pace::Usual } else { Pace::Slow };
            return self.serve_at(Kind::Write, pace, |stack| act(stack, data));
        }
        let data = data.to_vec();
        self.hand_over(Kind::Write, move |stack| act(stack, &data));
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.serve(Kind::Flush, |stack| send_empty(stack.flush(file(fh)), reply));
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.change(Kind::Release, move |stack| {
            stack.release(file(fh));
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.change(Kind::Fsync, move |stack| send_empty(stack.fsync(node(ino), file(fh), data), reply));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.serve(Kind::Opendir, |stack| match stack.opendir(node(ino)) {
            Ok(id) => reply.opened(FileHandle(id.0), FopenFlags::empty()),
            Err(errno) => reply.error(error(errno)),
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.serve(Kind::Readdir, |stack| {
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

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.serve(Kind::Readdirplus, |stack| {
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

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.change(Kind::Releasedir, move |stack| {
            stack.releasedir(file(fh));
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, data: bool, reply: ReplyEmpty) {
        self.change(Kind::Fsyncdir, move |stack| send_empty(stack.fsyncdir(node(ino), file(fh), data), reply));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.serve(Kind::Statfs, |stack| match stack.statfs() {
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
        self.change(Kind::Setxattr, move |stack| {
            let outcome = stack.setxattr(&caller, node(ino), &name, &value, flags);
            send_empty(outcome, reply);
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Kind::Getxattr, |stack| send_value(stack.getxattr(node(ino), name.as_bytes()), size, reply));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(request, 0);
        self.serve(Kind::Listxattr, |stack| send_value(stack.listxattr(&caller, node(ino)), size, reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        self.change(Kind::Removexattr, move |stack| {
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
        self.change(Kind::Create, move |stack| match stack.create(&caller, node(parent), &name, mode, flags) {
            Ok((entry, opened)) => reply.created(
                &KEEP,
                &attr(&entry.stat, entry.node.0),
                Generation(u64::from(entry.generation)),
                FileHandle(opened.file.0),
                open_flags(&opened),
            ),
            Err(errno) => reply.error(error(errno)),
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
        self.change(Kind::Ioctl, move |stack| match stack.ioctl(&caller, node(ino), file(fh), command, &input) {
            Ok(output) => reply.ioctl(0, &output[..output.len().min(out_size as usize)]),
            Err(errno) => reply.error(error(errno)),
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
        self.change(Kind::Fallocate, move |stack| {
            let outcome = stack.fallocate(&caller, node(ino), file(fh), mode, offset, len);
            send_empty(outcome, reply);
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.serve(Kind::Lseek, |stack| match stack.lseek(node(ino), file(fh), offset, whence) {
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
        self.change(Kind::CopyFileRange, move |stack| {
            send_written(stack.copy_file_range(&caller, from, to, len), reply)
        });
    }
}
