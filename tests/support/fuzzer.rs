//! What fsx lacks: random operations on one file, O_DIRECT and all modes of fallocate among them, each read checked
//! against a model in memory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dtfs::sys::{self, Errno};

use super::mapping;
use super::prng::Prng;

/// The file is never longer.
const LIMIT: u64 = 512 * 1024;
const LONGEST: u64 = 64 * 1024;
/// What O_DIRECT asks of offsets, lengths and memory, and FALLOC_FL_COLLAPSE_RANGE of its range, on any of our disks.
const BLOCK: u64 = 4096;

/// How the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Buffered,
    /// O_DIRECT, aligned as a disk wants it; mappings of the same descriptor stay cached.
    Direct,
}

/// A file, and what it must hold.
pub(crate) struct Fuzzer {
    path: PathBuf,
    access: Access,
    file: File,
    model: Vec<u8>,
    random: Prng,
    context: String,
    done: BTreeMap<&'static str, u64>,
}

const KINDS: [(&str, u64); 13] = [
    ("write", 20),
    ("read", 20),
    ("map-write", 10),
    ("map-read", 10),
    ("truncate", 6),
    ("punch", 6),
    ("zero", 6),
    ("zero-keep", 3),
    ("reserve", 4),
    ("collapse", 2),
    ("insert", 2),
    ("reopen", 2),
    ("sync", 1),
];

impl Fuzzer {
    /// A new file at `path`.
    pub(crate) fn new(path: &Path, seed: u64, access: Access) -> Fuzzer {
        let file = open(path, access);
        let (random, context) = (Prng::new(seed ^ 0xf5f5), format!("{}, {access:?}, seed {seed}", path.display()));
        Fuzzer { path: path.to_owned(), access, file, model: Vec::new(), random, context, done: BTreeMap::new() }
    }

    /// Does `ops` operations; panics at the first byte that is not what the model says.
    pub(crate) fn run(&mut self, ops: u64) {
        let total: u64 = KINDS.iter().map(|kind| kind.1).sum();
        for number in 0..ops {
            let mut roll = self.random.below(total);
            let kind = KINDS.iter().find(|kind| roll.checked_sub(kind.1).map(|left| roll = left).is_none());
            let kind = kind.expect("the roll is below the total").0;
            self.step(kind).unwrap_or_else(|errno| panic!("{}: operation {number}, {kind}: {errno}", self.context));
            *self.done.entry(kind).or_default() += 1;
            let len = self.file.metadata().expect("fstat").len();
            assert_eq!(len, self.model.len() as u64, "{}: size after operation {number}, {kind}", self.context);
        }
        self.file.sync_all().expect("fsync");
        self.check_all();
    }

    fn check_all(&mut self) {
        let whole = std::fs::read(&self.path).expect("the file can be read");
        same(&whole, &self.model, 0, &self.context, "at the end");
    }

    fn step(&mut self, kind: &str) -> sys::Result<()> {
        match kind {
            "write" => self.write(),
            "read" => self.read(),
            "map-write" => self.map_write(),
            "map-read" => self.map_read(),
            "truncate" => self.truncate(),
            "punch" => self.fill_with_zeros(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            "zero" => self.fill_with_zeros(libc::FALLOC_FL_ZERO_RANGE),
            "zero-keep" => self.fill_with_zeros(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
            "reserve" => self.fill_with_zeros(0),
            "collapse" => self.collapse(),
            "insert" => self.insert(),
            "reopen" => {
                self.file = open(&self.path, self.access);
                Ok(())
            }
            _ => sys::fdatasync(self.file.as_fd()),
        }
    }

    /// A range below the limit, aligned where the disk wants it.
    fn range(&mut self) -> (u64, u64) {
        let align = if self.access == Access::Direct { BLOCK } else { 1 };
        let offset = self.random.below(LIMIT - align) / align * align;
        let longest = LONGEST.min(LIMIT - offset);
        let len = (1 + self.random.below(longest)).next_multiple_of(align).min(LIMIT - offset);
        (offset, len)
    }

    /// A range of the file, any alignment; `None` when it is empty.
    fn inside(&mut self) -> Option<(u64, u64)> {
        let size = self.model.len() as u64;
        let offset = self.random.below(size.max(1));
        let len = 1 + self.random.below(LONGEST);
        (size > 0).then(|| (offset, len.min(size - offset)))
    }

    fn grow(&mut self, end: u64) {
        if end as usize > self.model.len() {
            self.model.resize(end as usize, 0);
        }
    }

    fn write(&mut self) -> sys::Result<()> {
        let (offset, len) = self.range();
        let data = self.random.bytes(len as usize);
        let memory = Aligned::holding(&data);
        let mut done = 0;
        while done < data.len() {
            done += sys::pwrite(self.file.as_fd(), &memory.bytes()[done..], offset + done as u64)?;
        }
        self.grow(offset + len);
        self.model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        Ok(())
    }

    fn read(&mut self) -> sys::Result<()> {
        let (offset, len) = self.range();
        let mut memory = Aligned::holding(&vec![0xee; len as usize]);
        let got = sys::pread(self.file.as_fd(), memory.bytes_mut(), offset)?;
        let end = (offset + len).min(self.model.len() as u64).max(offset.min(self.model.len() as u64));
        let want = &self.model[(offset as usize).min(self.model.len())..end as usize];
        same(&memory.bytes()[..got], want, offset, &self.context, "read");
        Ok(())
    }

    fn map_write(&mut self) -> sys::Result<()> {
        let Some((offset, len)) = self.inside() else { return Ok(()) };
        let data = self.random.bytes(len as usize);
        let sync = self.random.chance(30);
        mapping::write(self.file.as_fd(), offset, &data, self.model.len() as u64, sync)?;
        self.model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        Ok(())
    }

    fn map_read(&mut self) -> sys::Result<()> {
        let Some((offset, len)) = self.inside() else { return Ok(()) };
        let got = mapping::read(self.file.as_fd(), offset, len, self.model.len() as u64)?;
        same(&got, &self.model[offset as usize..(offset + len) as usize], offset, &self.context, "mapped read");
        Ok(())
    }

    fn truncate(&mut self) -> sys::Result<()> {
        let size = self.random.below(LIMIT);
        sys::ftruncate(self.file.as_fd(), size)?;
        self.model.resize(size as usize, 0);
        Ok(())
    }

    fn fill_with_zeros(&mut self, mode: i32) -> sys::Result<()> {
        let (offset, len) = self.range();
        sys::fallocate(self.file.as_fd(), mode, offset, len)?;
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            self.grow(offset + len);
        }
        if mode & !libc::FALLOC_FL_KEEP_SIZE != 0 {
            let end = ((offset + len) as usize).min(self.model.len());
            self.model[(offset as usize).min(end)..end].fill(0);
        }
        Ok(())
    }

    fn collapse(&mut self) -> sys::Result<()> {
        let Some((offset, len)) = self.inside().map(aligned_out) else { return Ok(()) };
        if offset + len >= self.model.len() as u64 {
            return Ok(());
        }
        if self.allowed(libc::FALLOC_FL_COLLAPSE_RANGE, offset, len)? {
            self.model.drain(offset as usize..(offset + len) as usize);
        }
        Ok(())
    }

    fn insert(&mut self) -> sys::Result<()> {
        let Some((offset, len)) = self.inside().map(aligned_out) else { return Ok(()) };
        if offset >= self.model.len() as u64 || self.model.len() as u64 + len > LIMIT {
            return Ok(());
        }
        if self.allowed(libc::FALLOC_FL_INSERT_RANGE, offset, len)? {
            let at = offset as usize;
            self.model.splice(at..at, std::iter::repeat_n(0, len as usize));
        }
        Ok(())
    }

    /// A mode that the kernel's FUSE does not pass must be refused, and nothing may have changed.
    fn allowed(&self, mode: i32, offset: u64, len: u64) -> sys::Result<bool> {
        match sys::fallocate(self.file.as_fd(), mode, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn aligned_out((offset, len): (u64, u64)) -> (u64, u64) {
    (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK))
}

fn open(path: &Path, access: Access) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    if access == Access::Direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn same(got: &[u8], want: &[u8], offset: u64, context: &str, what: &str) {
    assert_eq!(got.len(), want.len(), "{context}: {what} at {offset:#x}: length");
    if let Some(at) = got.iter().zip(want).position(|(a, b)| a != b) {
        let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
        panic!(
            "{context}: {what} at {offset:#x}: first wrong byte at {:#x}, {wrong} wrong of {}; got {:#x}, not {:#x}",
            offset + at as u64,
            got.len(),
            got[at],
            want[at]
        );
    }
}

/// Memory that begins at a multiple of [`BLOCK`].
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn holding(data: &[u8]) -> Aligned {
        let mut memory = vec![0; data.len() + BLOCK as usize];
        let start = memory.as_ptr().align_offset(BLOCK as usize);
        memory[start..start + data.len()].copy_from_slice(data);
        Aligned { memory, start, len: data.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
