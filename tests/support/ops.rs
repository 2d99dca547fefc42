//! The changes that a worker of the workload makes.
//!
//! Workers share names on purpose, so they race: what POSIX lets a race answer (ENOENT, EEXIST, ...) counts as not
//! done. Any other errno ends the worker with an error, above all those that only a broken filesystem gives.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use dtfs::base::Timespec;
use dtfs::sys::{self, DirStream, Errno, LinkSource, Stat, TimeChange};

use super::mapping;
use super::prng::Prng;

const DIRS: u64 = 4;
const FILES: u64 = 14;
const MAX_DEPTH: u64 = 3;

/// What a race between the workers, or a name of another type, may answer to any operation.
const RACES: [Errno; 8] = [
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::ENOTEMPTY,
    Errno::ENOTDIR,
    Errno::EISDIR,
    Errno::ELOOP,
    // A fifo without a reader, a device without a driver.
    Errno::ENXIO,
    // fs.protected_regular and fs.protected_fifos in a sticky directory, also for root; a default ACL on a file.
    Errno::EACCES,
];

/// One operation: its name in the receipt, its weight, what else native answers, and itself.
type Op = (&'static str, u64, &'static [Errno], fn(&mut Worker) -> Outcome);
type Outcome = sys::Result<()>;

const OPS: &[Op] = &[
    ("create", 24, &[], Worker::create),
    ("mkdir", 8, &[], Worker::mkdir),
    ("write", 16, &[], Worker::write),
    ("append", 8, &[], Worker::append),
    ("rewrite", 4, &[], Worker::rewrite),
    ("truncate", 6, &[], Worker::truncate),
    ("fallocate", 3, &[], |w| w.fallocate(0)),
    ("keep-size", 2, &[], |w| w.fallocate(libc::FALLOC_FL_KEEP_SIZE)),
    ("punch", 4, &[], |w| w.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
    ("zero-range", 3, &[], |w| w.fallocate(libc::FALLOC_FL_ZERO_RANGE)),
    ("copy-range", 4, &[], Worker::copy_range),
    ("mmap", 4, &[], Worker::map_and_write),
    ("fsync", 2, &[], Worker::fsync),
    // EINVAL: a directory into itself.
    ("rename", 10, &[Errno::EINVAL], |w| w.rename(0)),
    ("noreplace", 3, &[Errno::EINVAL], |w| w.rename(libc::RENAME_NOREPLACE)),
    ("exchange", 5, &[Errno::EINVAL], |w| w.rename(libc::RENAME_EXCHANGE)),
    ("rename-dir", 5, &[Errno::EINVAL], Worker::rename_dir),
    // EPERM: a directory.
    ("link", 8, &[Errno::EPERM], Worker::link),
    ("unlink", 6, &[], Worker::unlink),
    ("unlink-open", 4, &[], Worker::unlink_open),
    ("rmdir", 4, &[], Worker::rmdir),
    ("symlink", 3, &[], Worker::symlink),
    ("fifo", 1, &[], |w| w.mknod(libc::S_IFIFO, 0)),
    ("socket", 1, &[], |w| w.mknod(libc::S_IFSOCK, 0)),
    ("char", 1, &[], |w| w.mknod(libc::S_IFCHR, libc::makedev(1, 3))),
    // A major number for local use: no driver answers, whoever opens it.
    ("block", 1, &[], |w| w.mknod(libc::S_IFBLK, libc::makedev(240, 300))),
    // EOPNOTSUPP: a symlink has no mode.
    ("chmod", 8, &[Errno::EOPNOTSUPP], Worker::chmod),
    ("chown", 6, &[], Worker::chown),
    ("times", 6, &[], Worker::times),
    // EPERM: user.* on what is neither file nor directory; EOPNOTSUPP: no ACL on a symlink; ENOSPC: ext4's one block.
    ("setxattr", 6, &[Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSPC], Worker::set_xattr),
    ("acl", 4, &[Errno::EOPNOTSUPP, Errno::ENOSPC], Worker::set_acl),
    ("removexattr", 3, &[Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENODATA], Worker::remove_xattr),
    ("list", 3, &[], Worker::list),
];

/// The names of all kinds of change that a worker makes.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|op| op.0)
}

/// A place for a name.
struct Slot {
    dir: OwnedFd,
    name: CString,
}

impl Slot {
    fn at(&self) -> (BorrowedFd<'_>, &CStr) {
        (self.dir.as_fd(), &self.name)
    }

    fn open(&self, flags: i32, mode: u32) -> sys::Result<OwnedFd> {
        // O_NONBLOCK: opening a fifo must not wait for its other end.
        sys::openat(self.dir.as_fd(), &self.name, flags | libc::O_NONBLOCK, mode)
    }

    /// A regular file open with `flags`; ENXIO for anything else.
    fn open_file(&self, flags: i32, mode: u32) -> sys::Result<(OwnedFd, Stat)> {
        let file = self.open(flags, mode)?;
        let stat = sys::fstat(file.as_fd())?;
        if stat.mode & libc::S_IFMT == libc::S_IFREG { Ok((file, stat)) } else { Err(Errno::ENXIO) }
    }
}

pub(crate) struct Worker {
    root: OwnedFd,
    prng: Prng,
    number: u64,
    seed: u64,
}

impl Worker {
    pub(crate) fn new(dir: &Path, seed: u64, number: u64) -> Worker {
        let root = File::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Worker::at(root.into(), seed, number)
    }

    pub(crate) fn at(root: OwnedFd, seed: u64, number: u64) -> Worker {
        // Far apart, so that two workers of neighbouring seeds do not run the same sequence.
        Worker { root, prng: Prng::new(seed.wrapping_mul(1_000_003) ^ (number << 48)), number, seed }
    }

    /// Does `count` operations. Returns how often each kind succeeded.
    pub(crate) fn run(&mut self, count: u64) -> BTreeMap<&'static str, u64> {
        self.run_until(count, &[])
    }

    /// As [`Worker::run`], and ends with the first operation that answers one of `ends`.
    pub(crate) fn run_until(&mut self, count: u64, ends: &[Errno]) -> BTreeMap<&'static str, u64> {
        let mut done = BTreeMap::new();
        let total: u64 = OPS.iter().map(|op| op.1).sum();
        for index in 0..count {
            let mut ticket = self.prng.below(total);
            let chosen = OPS.iter().find(|op| {
                let hit = ticket < op.1;
                ticket = ticket.saturating_sub(op.1);
                hit
            });
            let &(name, _, also, op) = chosen.expect("a ticket is below the sum of the weights");
            match op(self) {
                Ok(()) => *done.entry(name).or_default() += 1,
                Err(errno) if ends.contains(&errno) => break,
                Err(errno) if RACES.contains(&errno) || also.contains(&errno) => {}
                Err(errno) => panic!("seed {}, worker {}, operation {index}, {name}: {errno}", self.seed, self.number),
            }
        }
        done
    }

    /// A random directory of the tree, near the root more often.
    fn dir(&mut self) -> sys::Result<OwnedFd> {
        let mut dir = self.root.try_clone().map_err(|_| Errno::EMFILE)?;
        for _ in 0..self.prng.below(MAX_DEPTH + 1) {
            let name = self.dir_name();
            match sys::openat(dir.as_fd(), &name, libc::O_PATH | libc::O_DIRECTORY, 0) {
                Ok(child) => dir = child,
                Err(errno) if RACES.contains(&errno) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(dir)
    }

    fn dir_name(&mut self) -> CString {
        c_string(format!("d{}", self.prng.below(DIRS)))
    }

    fn file_slot(&mut self) -> sys::Result<Slot> {
        Ok(Slot { dir: self.dir()?, name: c_string(format!("f{}", self.prng.below(FILES))) })
    }

    fn dir_slot(&mut self) -> sys::Result<Slot> {
        Ok(Slot { dir: self.dir()?, name: self.dir_name() })
    }

    fn any_slot(&mut self) -> sys::Result<Slot> {
        if self.prng.chance(25) { self.dir_slot() } else { self.file_slot() }
    }

    /// The inode at a random name, opened for nothing but its attributes.
    fn any_object(&mut self) -> sys::Result<OwnedFd> {
        self.any_slot()?.open(libc::O_PATH, 0)
    }

    fn any_file(&mut self, flags: i32) -> sys::Result<(OwnedFd, Stat)> {
        self.file_slot()?.open_file(flags, 0)
    }

    /// Mostly small offsets, sometimes ones that leave a large hole.
    fn offset(&mut self) -> u64 {
        if self.prng.chance(5) { self.prng.below(64 << 20) } else { self.prng.below(256 << 10) }
    }

    fn data(&mut self) -> Vec<u8> {
        let len = if self.prng.chance(10) { self.prng.below(256 << 10) } else { self.prng.below(12 << 10) };
        self.prng.bytes(len as usize + 1)
    }

    fn create(&mut self) -> Outcome {
        let slot = self.file_slot()?;
        let mode = self.prng.pick(&[0o644, 0o600, 0o755, 0o4755, 0o2775, 0o666]);
        let exclusive = if self.prng.chance(50) { libc::O_EXCL } else { 0 };
        let (file, _) = slot.open_file(libc::O_WRONLY | libc::O_CREAT | exclusive, mode)?;
        let data = self.data();
        write_all(file.as_fd(), &data, 0)
    }

    fn mkdir(&mut self) -> Outcome {
        let slot = self.dir_slot()?;
        sys::mkdirat(slot.dir.as_fd(), &slot.name, self.prng.pick(&[0o755, 0o700, 0o2775, 0o1777]))
    }

    fn write(&mut self) -> Outcome {
        let (file, _) = self.any_file(libc::O_RDWR)?;
        for _ in 0..=self.prng.below(3) {
            let (data, offset) = (self.data(), self.offset());
            write_all(file.as_fd(), &data, offset)?;
        }
        Ok(())
    }

    fn append(&mut self) -> Outcome {
        let (file, _) = self.any_file(libc::O_WRONLY | libc::O_APPEND)?;
        let data = self.data();
        write_all(file.as_fd(), &data, 0)
    }

    fn rewrite(&mut self) -> Outcome {
        let (file, _) = self.any_file(libc::O_WRONLY | libc::O_TRUNC)?;
        let data = self.data();
        write_all(file.as_fd(), &data, 0)
    }

    fn truncate(&mut self) -> Outcome {
        let (file, stat) = self.any_file(libc::O_WRONLY)?;
        let size = if self.prng.chance(50) { self.prng.below(stat.size + 1) } else { stat.size + self.offset() };
        sys::ftruncate(file.as_fd(), size)
    }

    fn fallocate(&mut self, mode: i32) -> Outcome {
        let (file, _) = self.any_file(libc::O_RDWR)?;
        let (offset, len) = (self.prng.below(512 << 10), self.prng.below(256 << 10) + 1);
        sys::fallocate(file.as_fd(), mode, offset, len)
    }

    fn copy_range(&mut self) -> Outcome {
        let (from, from_stat) = self.any_file(libc::O_RDONLY)?;
        let (to, to_stat) = self.any_file(libc::O_RDWR)?;
        // Overlapping ranges of one file are EINVAL.
        if from_stat.ino == to_stat.ino || from_stat.size == 0 {
            return Err(Errno::ENXIO);
        }
        let (start, offset) = (self.prng.below(from_stat.size), self.offset());
        sys::copy_file_range(from.as_fd(), start, to.as_fd(), offset, 64 << 10).map(drop)
    }

    /// Writes through a shared mapping. The file is this worker's own: another's truncate would be a SIGBUS.
    fn map_and_write(&mut self) -> Outcome {
        let slot = Slot { dir: self.dir()?, name: c_string(format!("m{}", self.number)) };
        let (file, stat) = slot.open_file(libc::O_RDWR | libc::O_CREAT, 0o644)?;
        let len = (stat.size.max(1) + self.prng.below(64 << 10)).min(256 << 10);
        if len > stat.size {
            sys::ftruncate(file.as_fd(), len)?;
        }
        let data = self.prng.bytes(len.min(5000) as usize);
        let at = self.prng.below(len - data.len() as u64 + 1);
        mapping::write(file.as_fd(), at, &data, len, self.prng.chance(50))
    }

    fn fsync(&mut self) -> Outcome {
        let (file, _) = self.any_file(libc::O_WRONLY)?;
        sys::fsync(file.as_fd())
    }

    fn rename(&mut self, flags: u32) -> Outcome {
        // Between any kinds of names, so that types replace each other at one name.
        let (from, to) = (self.any_slot()?, self.any_slot()?);
        sys::renameat2(from.dir.as_fd(), &from.name, to.dir.as_fd(), &to.name, flags)
    }

    fn rename_dir(&mut self) -> Outcome {
        let (from, to) = (self.dir_slot()?, self.dir_slot()?);
        sys::renameat2(from.dir.as_fd(), &from.name, to.dir.as_fd(), &to.name, 0)
    }

    fn link(&mut self) -> Outcome {
        let (from, to) = (self.file_slot()?, self.file_slot()?);
        let (dir, name) = from.at();
        sys::linkat(LinkSource::Entry(dir, name), to.dir.as_fd(), &to.name)
    }

    fn unlink(&mut self) -> Outcome {
        let slot = self.file_slot()?;
        sys::unlinkat(slot.dir.as_fd(), &slot.name, 0)
    }

    /// Removes a name and goes on writing, truncating and changing the file behind it.
    fn unlink_open(&mut self) -> Outcome {
        let slot = self.file_slot()?;
        let (file, _) = slot.open_file(libc::O_RDWR, 0)?;
        sys::unlinkat(slot.dir.as_fd(), &slot.name, 0)?;
        let (data, offset) = (self.data(), self.offset());
        write_all(file.as_fd(), &data, offset)?;
        sys::ftruncate(file.as_fd(), offset)?;
        sys::fchmod(file.as_fd(), 0o604)
    }

    fn rmdir(&mut self) -> Outcome {
        let slot = self.dir_slot()?;
        sys::unlinkat(slot.dir.as_fd(), &slot.name, libc::AT_REMOVEDIR)
    }

    fn symlink(&mut self) -> Outcome {
        let slot = self.file_slot()?;
        let text = c_string(format!("../d{}/{}", self.prng.below(DIRS), "x".repeat(self.prng.below(200) as usize)));
        sys::symlinkat(&text, slot.dir.as_fd(), &slot.name)
    }

    fn mknod(&mut self, file_type: u32, rdev: u64) -> Outcome {
        let slot = self.file_slot()?;
        sys::mknodat(slot.dir.as_fd(), &slot.name, file_type | 0o640, rdev)
    }

    fn chmod(&mut self) -> Outcome {
        let object = self.any_object()?;
        let mode = self.prng.pick(&[0o644, 0o600, 0o777, 0o4755, 0o2755, 0o6711, 0o1777, 0o000]);
        sys::fchmod(object.as_fd(), mode)
    }

    fn chown(&mut self) -> Outcome {
        let object = self.any_object()?;
        let ids = [None, Some(0), Some(1000), Some(65_534), Some(4_000_000_000)];
        sys::fchown(object.as_fd(), self.prng.pick(&ids), self.prng.pick(&ids))
    }

    fn times(&mut self) -> Outcome {
        let object = self.any_object()?;
        let sec = self.prng.below(5_000_000_000) as i64 - 1_000_000_000;
        let time = TimeChange::Set(Timespec { sec, nsec: self.prng.below(1_000_000_000) as u32 });
        let atime = self.prng.pick(&[TimeChange::Keep, TimeChange::Now, time]);
        sys::utimens(object.as_fd(), atime, self.prng.pick(&[time, time, TimeChange::Now]))
    }

    fn set_xattr(&mut self) -> Outcome {
        let object = self.any_object()?;
        let name = self.prng.pick(&[c"user.a", c"user.b", c"trusted.a", c"trusted.b"]);
        let len = self.prng.below(300) as usize;
        let value = self.prng.bytes(len);
        sys::setxattr(object.as_fd(), name, &value, 0)
    }

    fn set_acl(&mut self) -> Outcome {
        let object = self.any_object()?;
        let name =
            self.prng.pick(&[c"system.posix_acl_access", c"system.posix_acl_access", c"system.posix_acl_default"]);
        let (user, bits) = (self.prng.below(5000) as u32, self.prng.below(8) as u16);
        sys::setxattr(object.as_fd(), name, &acl(user, bits), 0)
    }

    fn remove_xattr(&mut self) -> Outcome {
        let object = self.any_object()?;
        let names = [c"user.a", c"user.b", c"trusted.a", c"system.posix_acl_access", c"system.posix_acl_default"];
        sys::removexattr(object.as_fd(), self.prng.pick(&names))
    }

    fn list(&mut self) -> Outcome {
        let dir = self.dir()?;
        let mut stream = DirStream::new(sys::openat(dir.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?);
        while stream.next_entry()?.is_some() {}
        Ok(())
    }
}

fn write_all(file: BorrowedFd<'_>, data: &[u8], offset: u64) -> Outcome {
    let mut written = 0;
    while written < data.len() {
        written += sys::pwrite(file, &data[written..], offset + written as u64)?;
    }
    Ok(())
}

/// An ACL that gives `user` the permissions `bits`: version 2, entries of (tag, permissions, id) in the kernel's order.
fn acl(user: u32, bits: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [(1, 7, NO_ID), (2, bits, user), (4, 5, NO_ID), (16, 7, NO_ID), (32, 1, NO_ID)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn c_string(text: String) -> CString {
    CString::new(text).expect("names have no NUL")
}
