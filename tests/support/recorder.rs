//! Disks whose power can be cut: a small FUSE server shows each as one file, to put a loop device with direct I/O on.
//!
//! A disk answers a write as soon as it has it, and promises nothing before the next flush, as a disk with a cache does.
//! So each disk knows what is certain (everything before its last flush) and, in order, what came since. A cut fails
//! every later request, of several disks at one moment: one lock is their common clock. What a cut disk holds afterwards
//! is what was certain and any part of the rest: nothing, some writes, some sectors of some writes, everything.
//!
//! Only what was not flushed is kept as a list, so the list is as short as the pauses between flushes; the content lies
//! in memory. Who is told that something is durable was told so by a flush that had ended: no mark needs to be in the
//! list itself, the rig keeps those that were given before the cut.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dtfs::sys;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::fuse_rig;
use super::prng::Prng;
use super::process::try_tool;
use super::scratch::utf8;

/// Where content and images lie: in memory.
const MEMORY: &str = "/dev/shm";
/// More than this without a flush is no filesystem at work.
const MOST_UNFLUSHED: u64 = 1 << 30;
const MAX_WRITE: u32 = 1 << 20;
/// As a disk that is not slow.
const FLUSH_TAKES: Duration = Duration::from_micros(1500);
/// Flushes that can be under way beside other requests.
const THREADS: usize = 6;
/// How long a cut waits for a moment that it likes.
const CUT_PATIENCE: Duration = Duration::from_millis(300);
const FOREVER: Duration = Duration::from_secs(3600);
/// Inodes of the disks follow the root's.
const FIRST_DISK: u64 = 2;

/// What becomes of the writes that no flush followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unflushed {
    /// All are lost.
    Lost,
    /// Each is kept or lost.
    Some,
    /// Each sector of each is kept or lost.
    Torn,
    /// All are kept.
    Kept,
}

impl Unflushed {
    pub(crate) fn any(prng: &mut Prng) -> Unflushed {
        // The ends are few states, what lies between is many.
        prng.pick(&[
            Unflushed::Lost,
            Unflushed::Some,
            Unflushed::Some,
            Unflushed::Torn,
            Unflushed::Torn,
            Unflushed::Kept,
        ])
    }
}

#[derive(Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, len: u64 },
}

impl Change {
    fn range(&self) -> (u64, u64) {
        match self {
            Change::Write { offset, data } => (*offset, data.len() as u64),
            Change::Zero { offset, len } => (*offset, *len),
        }
    }

    fn written(&self) -> u64 {
        match self {
            Change::Write { data, .. } => data.len() as u64,
            Change::Zero { .. } => 0,
        }
    }

    fn apply(&self, to: &File) -> std::io::Result<()> {
        match self {
            Change::Write { offset, data } => to.write_all_at(data, *offset),
            Change::Zero { offset, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Ok(sys::fallocate(to.as_fd(), mode, *offset, *len)?)
            }
        }
    }
}

struct Disk {
    size: u64,
    sector: u64,
    /// What a read sees.
    now: File,
    /// What the last flush made certain.
    certain: File,
    unflushed: Vec<Change>,
    unflushed_bytes: u64,
    /// Changes that were made certain so far.
    flushed: u64,
    flush_takes: Duration,
    is_cut: bool,
    /// A write with a block that begins so fails, as on a bad sector.
    bad: Option<Vec<u8>>,
    /// Writes that failed for that.
    refused: u64,
}

/// What a filesystem writes of a file begins at a multiple of this.
const BLOCK_BYTES: usize = 4096;

impl Disk {
    fn new(size: u64, sector: u64) -> Disk {
        let file = || {
            let file = tempfile::tempfile_in(MEMORY).expect("a file in memory");
            file.set_len(size).expect("a sparse file");
            file
        };
        let (now, certain) = (file(), file());
        Disk {
            size,
            sector,
            now,
            certain,
            unflushed: vec![],
            unflushed_bytes: 0,
            flushed: 0,
            flush_takes: FLUSH_TAKES,
            is_cut: false,
            bad: None,
            refused: 0,
        }
    }

    fn change(&mut self, change: Change) -> std::io::Result<()> {
        let (offset, len) = change.range();
        if self.is_cut || offset + len > self.size || self.unflushed_bytes > MOST_UNFLUSHED {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        if let (Some(bad), Change::Write { data, .. }) = (&self.bad, &change)
            && data.chunks(BLOCK_BYTES).any(|block| block.starts_with(bad))
        {
            self.refused += 1;
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        change.apply(&self.now)?;
        self.unflushed_bytes += change.written();
        self.unflushed.push(change);
        Ok(())
    }

    /// Number of the last change so far: a flush that begins now covers it.
    fn changes(&self) -> u64 {
        self.flushed + self.unflushed.len() as u64
    }

    /// Makes the changes up to number `upto` certain.
    fn flush(&mut self, upto: u64) -> std::io::Result<()> {
        if self.is_cut {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        // Another flush may have covered them.
        let count = upto.saturating_sub(self.flushed) as usize;
        for change in self.unflushed.drain(..count) {
            self.unflushed_bytes -= change.written();
            change.apply(&self.certain)?;
        }
        self.flushed = self.flushed.max(upto);
        Ok(())
    }

    fn read(&self, offset: u64, size: u64) -> std::io::Result<Vec<u8>> {
        if self.is_cut {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        let mut data = vec![0; size.min(self.size.saturating_sub(offset)) as usize];
        self.now.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    /// Takes what `fate` leaves of the unflushed writes as certain, and forgets the rest.
    fn restore(&mut self, fate: Unflushed, prng: &mut Prng) -> Cut {
        let changes = std::mem::take(&mut self.unflushed);
        let mut cut = Cut { fate, writes: changes.len() as u64, kept: 0 };
        for change in &changes {
            cut.kept += u64::from(self.keep_some(change, fate, prng));
        }
        for change in &changes {
            let (offset, len) = change.range();
            copy_range(&self.certain, &self.now, offset, len);
        }
        self.flushed += changes.len() as u64;
        (self.unflushed_bytes, self.is_cut) = (0, false);
        cut
    }

    /// Whether all of it was kept.
    fn keep_some(&mut self, change: &Change, fate: Unflushed, prng: &mut Prng) -> bool {
        let kept = match (fate, change) {
            (Unflushed::Lost, _) => false,
            (Unflushed::Kept, _) => true,
            (Unflushed::Some, _) | (Unflushed::Torn, Change::Zero { .. }) => prng.chance(50),
            (Unflushed::Torn, Change::Write { offset, data }) => {
                let mut all = true;
                for (index, sector) in data.chunks(self.sector as usize).enumerate() {
                    let kept = prng.chance(50);
                    if kept {
                        let at = offset + index as u64 * self.sector;
                        self.certain.write_all_at(sector, at).expect("memory takes it");
                    }
                    all &= kept;
                }
                return all;
            }
        };
        if kept {
            change.apply(&self.certain).expect("memory takes it");
        }
        kept
    }
}

/// Copies a range that is mostly holes when it is long.
fn copy_range(from: &File, to: &File, offset: u64, len: u64) {
    const STEP: u64 = 1 << 20;
    let hole = Change::Zero { offset, len };
    hole.apply(to).expect("memory takes it");
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let Ok(data) = sys::lseek(from.as_fd(), at as i64, libc::SEEK_DATA) else { return };
        at = data.max(at);
        let step = STEP.min(end.saturating_sub(at));
        let mut buffer = vec![0; step as usize];
        from.read_exact_at(&mut buffer, at).expect("memory gives it back");
        to.write_all_at(&buffer, at).expect("memory takes it");
        at += step;
    }
}

/// How a disk came out of a cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) fate: Unflushed,
    /// Writes and discards that no flush had followed.
    pub(crate) writes: u64,
    /// Those of them that are there as a whole.
    pub(crate) kept: u64,
}

type Disks = Arc<Mutex<Vec<Disk>>>;

/// The server and its disks.
pub(crate) struct Recorder {
    disks: Disks,
    point: PathBuf,
    session: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Recorder {
    /// Disks of these sizes in MiB, with sectors of `sector` bytes: what a cut never tears.
    pub(crate) fn new(mib: &[u64], sector: u64) -> Recorder {
        let disks: Disks = Arc::new(Mutex::new(mib.iter().map(|mib| Disk::new(mib << 20, sector)).collect()));
        let dir = tempfile::Builder::new().prefix("dtfs-recorder-").tempdir().expect("a temporary directory");
        let point = dir.path().join("disks");
        fs::create_dir(&point).expect("a mount point");
        let session = serve(Shelf(disks.clone()), &point);
        Recorder { disks, point, session: Some(session), _dir: dir }
    }

    /// The file that is disk number `disk`.
    pub(crate) fn path(&self, disk: usize) -> PathBuf {
        self.point.join(disk.to_string())
    }

    /// From now on a flush of this disk takes so long.
    pub(crate) fn slow_down(&self, disk: usize, flush_takes: Duration) {
        self.disks.lock()[disk].flush_takes = flush_takes;
    }

    /// From now on writes of blocks that begin with `bad` fail on this disk; without it none does.
    pub(crate) fn refuse(&self, disk: usize, bad: Option<&[u8]>) {
        self.disks.lock()[disk].bad = bad.map(<[u8]>::to_vec);
    }

    /// Writes that failed by [`Recorder::refuse`].
    pub(crate) fn refused(&self, disk: usize) -> u64 {
        self.disks.lock()[disk].refused
    }

    /// Waits until at least `unflushed` changes are on their way, or for a while. From that moment on these disks answer
    /// EIO: what was not flushed by then is in doubt.
    pub(crate) fn cut(&self, disks: &[usize], unflushed: usize) {
        let until = Instant::now() + CUT_PATIENCE;
        loop {
            let mut all = self.disks.lock();
            let count: usize = disks.iter().map(|disk| all[*disk].unflushed.len()).sum();
            if count >= unflushed || Instant::now() > until {
                disks.iter().for_each(|disk| all[*disk].is_cut = true);
                return;
            }
            drop(all);
            std::thread::yield_now();
        }
    }

    /// Power is back: the disk works again, with what is left of it. Nobody may have it open.
    pub(crate) fn restore(&self, disk: usize, fate: Unflushed, prng: &mut Prng) -> Cut {
        self.disks.lock()[disk].restore(fate, prng)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Lazily: a test that fails may leave a loop device on it.
        if try_tool("umount", &["--lazy", utf8(&self.point)]).status.success()
            && !std::thread::panicking()
            && let Some(session) = self.session.take()
        {
            let _ = session.join();
        }
    }
}

fn serve(shelf: Shelf, point: &Path) -> JoinHandle<()> {
    let session = fuse_rig::mount(shelf, c"dtfs-recorder", point, THREADS);
    std::thread::spawn(move || session.run().expect("the recorder ends in order"))
}

/// The disks as a directory of files.
struct Shelf(Disks);

impl Shelf {
    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let disks = self.0.lock();
        let size = match ino.checked_sub(FIRST_DISK) {
            None => 0,
            Some(index) => disks.get(index as usize)?.size,
        };
        let kind = if ino < FIRST_DISK { FileType::Directory } else { FileType::RegularFile };
        Some(fuse_rig::attr(ino, kind, size))
    }

    fn disk<T>(&self, ino: INodeNo, act: impl FnOnce(&mut Disk) -> std::io::Result<T>) -> Result<T, Errno> {
        let mut disks = self.0.lock();
        let disk =
            ino.0.checked_sub(FIRST_DISK).and_then(|index| disks.get_mut(index as usize)).ok_or(Errno::ENOENT)?;
        act(disk).map_err(|error| Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

fn end(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Shelf {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        match number.and_then(|number| self.attr(number.checked_add(FIRST_DISK)?)) {
            Some(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Past every cache: what the loop device writes is here when it is told so.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk(ino, |disk| disk.read(offset, size.into())) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk(ino, |disk| disk.change(Change::Write { offset, data: data.to_vec() })) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close(2), not a flush of the disk.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // What is written while it takes its time is not covered, and a cut finds it unfinished.
        let outcome = self.disk(ino, |disk| Ok((disk.changes(), disk.flush_takes))).and_then(|(upto, time)| {
            std::thread::sleep(time);
            self.disk(ino, |disk| disk.flush(upto))
        });
        end(outcome, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // A discard, or zeros: mkfs and btrfs ask for them.
        let zeroes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        end(
            match zeroes {
                true => self.disk(ino, |disk| disk.change(Change::Zero { offset, len: length })),
                false => Err(Errno::EOPNOTSUPP),
            },
            reply,
        );
    }
}
