//! A program that does not come out of exec(2): it closes a file of a FUSE server that does not answer.
//!
//! exec(2) closes descriptors under a lock (`exec_update_lock`) that everybody needs who reads the program's `maps` in
//! /proc, and some of what `ps` shows: whoever does so waits as well. So a watchdog ends the rig after a minute, whatever
//! the test does; when the test's process ends, its server ends with it, and the kernel then lets the program go.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use dtfs::sys;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use tempfile::TempDir;

use super::fuse_rig;
use super::process::{Process, try_tool};
use super::scratch::utf8;

/// After it the server is cut off.
const WATCHDOG: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(50);
const FILE: &str = "file";

/// Opens the file that it closes in exec, keeps what else it is given open for writing, and goes on as `sh`.
const PROGRAM: &str = "
import os, sys
os.open(sys.argv[1], os.O_RDONLY)
for path in sys.argv[2:]:
    os.set_inheritable(os.open(path, os.O_WRONLY), True)
os.execv('/bin/sh', ['sh', '-c', 'echo; read line'])
";

/// The program, and what holds it. Dropping it lets the program go, and ends it.
pub(crate) struct StuckInExec {
    program: Process,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// Dropped: the answer that the program waits for.
    answer: Option<Sender<()>>,
    /// Dropped: the watchdog ends.
    calm: Option<Sender<()>>,
    watchdog: Option<JoinHandle<()>>,
    cut_off: Arc<AtomicBool>,
    point: TempDir,
    session: Option<JoinHandle<()>>,
}

impl StuckInExec {
    /// Returns when the program is stuck, with `held` open for writing.
    pub(crate) fn holding(held: &[&Path]) -> StuckInExec {
        let point = tempfile::Builder::new().prefix("dtfs-stuck-").tempdir().expect("a directory");
        let (answer, answered) = bounded(0);
        let (asks, asked) = bounded(1);
        let session = serve(Silent { asks, answered }, point.path());
        let (calm, calmed) = bounded(0);
        let cut_off = Arc::new(AtomicBool::new(false));
        let watchdog = std::thread::spawn({
            let (point, cut_off) = (point.path().to_owned(), cut_off.clone());
            move || watch(&point, &calmed, &cut_off)
        });
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM, utf8(&point.path().join(FILE))]).args(held);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Process::spawn(&mut command);
        let (stdin, stdout) = program.pipes();
        let stuck = StuckInExec {
            program,
            stdin: Some(stdin),
            stdout,
            answer: Some(answer),
            calm: Some(calm),
            watchdog: Some(watchdog),
            cut_off,
            point,
            session: Some(session),
        };
        asked.recv_timeout(LIMIT).expect("the program gets to its exec");
        stuck
    }

    pub(crate) fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// Lets the program go on; returns when it does.
    pub(crate) fn let_go(&mut self) {
        assert!(!self.cut_off.load(Ordering::Relaxed), "the test took so long that the watchdog ended the rig");
        drop(self.answer.take());
        drop(self.calm.take());
        self.stdout.read_exact(&mut [0]).expect("the program says that it goes on");
    }

    /// Lets the program go on and end.
    pub(crate) fn end(mut self) {
        if self.answer.is_some() {
            self.let_go();
        }
        drop(self.stdin.take());
        self.program.wait("the program to end", LIMIT);
    }
}

impl Drop for StuckInExec {
    fn drop(&mut self) {
        drop(self.answer.take());
        drop(self.calm.take());
        drop(self.stdin.take());
        let _ = self.watchdog.take().map(JoinHandle::join);
        if try_tool("umount", &["--force", utf8(self.point.path())]).status.success() {
            let _ = self.session.take().map(JoinHandle::join);
        }
    }
}

/// Cuts the server off (umount2(2), MNT_FORCE) unless all is over before.
fn watch(point: &Path, calm: &Receiver<()>, cut_off: &AtomicBool) {
    if calm.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
        cut_off.store(true, Ordering::Relaxed);
        let point = CString::new(point.as_os_str().as_bytes()).expect("no NUL");
        let _ = sys::unmount(&point, libc::MNT_FORCE | libc::MNT_DETACH);
    }
}

fn serve(server: Silent, point: &Path) -> JoinHandle<()> {
    // One waits in the flush.
    let session = fuse_rig::mount(server, c"dtfs-stuck", point, 2);
    std::thread::spawn(move || drop(session.run()))
}

/// One empty file, whose close is answered when the sender of `answered` is gone.
struct Silent {
    asks: Sender<()>,
    answered: Receiver<()>,
}

fn attr(ino: u64) -> FileAttr {
    let kind = if ino == 1 { FileType::Directory } else { FileType::RegularFile };
    fuse_rig::attr(ino, kind, 0)
}

impl Filesystem for Silent {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == FILE {
            true => reply.entry(&WATCHDOG, &attr(2), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&WATCHDOG, &attr(ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _ = self.asks.try_send(());
        let _ = self.answered.recv();
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
