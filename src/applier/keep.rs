//! Keeping what only this tree has, when its source was put back to an older state and the operator wants the source to be
//! followed. The tree is compared with the source as after any doubt; what the comparison, or a record beside it, would
//! overwrite or remove is copied or moved before, to `.dtfs/fork-EPOCH/PATH`, where PATH is its path when that began.
//!
//! `STATE/keeping` says that this goes on, and where each object was. It is written before the comparison begins, and goes
//! when every object has been compared. An object is in it as long as nothing was compared of it: *complete* ones are what
//! the source has.
//!
//! File: `dtfs keeping 1` and the name of the epoch, a line each; then for each name of an object that is no directory: inode
//! number u64, generation u32, length of the path u32, the path; at the end crc32c of everything before, u32, little endian.
//! In memory an object takes 24 bytes.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::catalog::{Known, Row};
use super::objects::{Occupant, c_name, entry_names};
use super::park::{OID_XATTR, ensure_dir};
use super::roles::create_private;
use super::{Applier, ApplyError, Outcome, doubt};
use crate::backing::{Extent, Tree, next_extent};
use crate::base::{EpochId, Name, ObjectKey, Oid, Position, Tid, faults};
use crate::record::{RESERVED_DIR, RESERVED_XATTR_PREFIX};
use crate::sys::{self, Errno, TimeChange};

const FILE: &str = "keeping";
const HEADER: &str = "dtfs keeping 1";
/// A copy before it has its name, beside the directory that keeps it.
const COPYING: &[u8] = b"copying";
/// Longest path that is believed to be one.
const MOST_PATH_BYTES: u32 = 1 << 20;

/// Whether an entry went to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    Moved,
    No,
}

/// Where what only this tree has is kept, and what that was.
pub(super) struct Keeping {
    /// `.dtfs/fork-EPOCH`.
    dir: OwnedFd,
    paths: File,
    /// Inode number, generation and the place of the path in the file, sorted.
    objects: Vec<(u64, u32, u64)>,
}

impl Applier {
    /// From here on until everything was compared nothing that is here now goes before it was kept. The catalog is made
    /// anew: of no object is anything known. In doubt until the next jump, so that a crash ends in the same again.
    ///
    /// # Errors
    /// [`ApplyError`]; it can be done again.
    pub fn begin_keeping(&mut self, at: Position, epoch: EpochId) -> Result<(), ApplyError> {
        self.finish_group()?;
        self.doubt
            .cast(&format!("its source was put back to an older state, and goes on in epoch {epoch}"), Some(at))?;
        faults::point("applier.keeping").map_err(ApplyError::Sync)?;
        let explain = |applier: &Applier, cause| applier.explain("keep", Oid::ROOT, at.tid, cause);
        write_index(&self.keeping_file(), &self.tree, epoch).map_err(|cause| explain(self, cause))?;
        self.forget_all();
        let (path, spaces) = (self.catalog.path().to_owned(), self.catalog.spaces().clone());
        self.catalog = doubt::make_anew(&path, &self.tree, &self.park, &spaces)?;
        let root = Row { key: self.tree.root_key(), kind: libc::S_IFDIR, known: Known::Placeholder };
        self.catalog.put(Oid::ROOT, root)?;
        self.resume_keeping().and_then(|()| self.load_displaced()).map_err(|cause| explain(self, cause))?;
        self.ask_for_parked()
    }

    /// What this process believed of the tree.
    fn forget_all(&mut self) {
        self.open.clear();
        self.touched.clear();
        self.missing.clear();
        self.displaced.clear();
        self.unlisted.clear();
        (self.listing, self.listed) = (None, None);
    }

    /// Goes on with what an earlier process began.
    pub(super) fn resume_keeping(&mut self) -> Outcome<()> {
        self.keeping = match Index::open(&self.keeping_file()).map_err(errno_of)? {
            None => None,
            Some(Index { epoch, paths, objects }) => {
                let name = Name::new(format!("fork-{epoch}").as_bytes()).map_err(|_| Errno::EINVAL)?;
                Some(Keeping { dir: ensure_dir(&self.tree, self.park.own(), &name)?, paths, objects })
            }
        };
        Ok(())
    }

    /// Everything was compared: nothing is left to be kept.
    ///
    /// # Errors
    /// [`ApplyError`]; it goes on then.
    pub fn end_keeping_when_settled(&mut self) -> Result<(), ApplyError> {
        if self.keeping.is_none() || !self.catalog.is_complete()? {
            return Ok(());
        }
        let file = self.keeping_file();
        fs::remove_file(&file)
            .and_then(|()| sync_parent(&file))
            .map_err(|error| self.explain("keep", Oid::ROOT, Tid::ZERO, errno_of(error).into()))?;
        self.keeping = None;
        Ok(())
    }

    pub(super) fn is_keeping(&self) -> bool {
        self.keeping.is_some()
    }

    /// Before content of a file changes: copies it when it is one of those.
    pub(super) fn keep_content(&mut self, oid: Oid, fd: BorrowedFd<'_>) -> Outcome<()> {
        let Some(keeping) = &mut self.keeping else { return Ok(()) };
        let row = self.catalog.get(oid)?.filter(|row| row.kind == libc::S_IFREG && row.known != Known::Complete);
        let Some(at) = row.and_then(|row| keeping.find(row.key)) else { return Ok(()) };
        faults::point("applier.keep")?;
        let (dir, name) = keeping.place(&self.tree, at)?;
        if self.tree.open_child(dir.as_fd(), &name, libc::O_PATH).is_err() {
            copy(&self.tree, fd, self.park.own(), (dir.as_fd(), &name))?;
        }
        keeping.objects.remove(at);
        Ok(())
    }

    /// Before the last name of an object goes: moves it when it is one of those.
    pub(super) fn keep_entry(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<Kept> {
        let Some(keeping) = &mut self.keeping else { return Ok(Kept::No) };
        if occupant.is_dir() || occupant.stat.nlink > 1 {
            return Ok(Kept::No);
        }
        let row = match occupant.oid.filter(|_| !occupant.stale) {
            Some(oid) => self.catalog.get(oid)?,
            None => None,
        };
        let compared = row.is_some_and(|row| row.known == Known::Complete);
        let Some(at) = keeping.find(occupant.key).filter(|_| !compared) else { return Ok(Kept::No) };
        faults::point("applier.keep")?;
        let (to, to_name) = keeping.place(&self.tree, at)?;
        match self.tree.mutate().rename(dir, name, to.as_fd(), &to_name, libc::RENAME_NOREPLACE) {
            // Its content was copied there already.
            Err(Errno::EEXIST) => return Ok(Kept::No),
            moved => moved?,
        }
        keeping.objects.remove(at);
        let kept = self.tree.open_child(to.as_fd(), &to_name, libc::O_PATH)?;
        match self.tree.mutate().remove_xattr(kept.as_fd(), OID_XATTR) {
            Ok(()) | Err(Errno::ENODATA | Errno::EPERM) => Ok(Kept::Moved),
            Err(errno) => Err(errno.into()),
        }
    }

    fn keeping_file(&self) -> PathBuf {
        self.catalog.path().with_file_name(FILE)
    }
}

impl Keeping {
    fn find(&self, key: ObjectKey) -> Option<usize> {
        let wanted = (key.ino, key.generation);
        let at = self.objects.partition_point(|(ino, generation, _)| (*ino, *generation) < wanted);
        self.objects.get(at).is_some_and(|(ino, generation, _)| (*ino, *generation) == wanted).then_some(at)
    }

    /// Directory and name for an object, below the directory that keeps them.
    fn place(&self, tree: &Tree, at: usize) -> Outcome<(OwnedFd, Name)> {
        place_below(tree, self.dir.as_fd(), &self.path(self.objects[at].2).map_err(errno_of)?)
    }

    fn path(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut len = [0; 4];
        self.paths.read_exact_at(&mut len, offset)?;
        let mut path = vec![0; u32::from_le_bytes(len).min(MOST_PATH_BYTES) as usize];
        self.paths.read_exact_at(&mut path, offset + 4)?;
        Ok(path)
    }
}

/// The file, as it is read.
struct Index {
    epoch: String,
    paths: File,
    objects: Vec<(u64, u32, u64)>,
}

impl Index {
    fn open(path: &Path) -> io::Result<Option<Index>> {
        let paths = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let end = paths.metadata()?.len().checked_sub(4).ok_or(io::ErrorKind::InvalidData)?;
        let mut reader = Summed { inner: BufReader::with_capacity(1 << 20, &paths), crc: 0, at: 0 };
        let (header, epoch) = (reader.line()?, reader.line()?);
        let mut objects = Vec::new();
        while reader.at < end {
            let (ino, generation) = (u64::from_le_bytes(reader.array()?), u32::from_le_bytes(reader.array()?));
            objects.push((ino, generation, reader.at));
            let len = u32::from_le_bytes(reader.array()?);
            if len > MOST_PATH_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            reader.take_bytes(len as usize)?;
        }
        let sum = reader.crc;
        if header != HEADER || reader.at != end || u32::from_le_bytes(reader.array()?) != sum {
            return Err(io::ErrorKind::InvalidData.into());
        }
        objects.sort_unstable();
        // Further names of one object: what it has is kept under one of them.
        objects.dedup_by_key(|(ino, generation, _)| (*ino, *generation));
        Ok(Some(Index { epoch, paths: paths.try_clone()?, objects }))
    }
}

/// Reads, and sums what was read.
struct Summed<R> {
    inner: R,
    crc: u32,
    at: u64,
}

impl<R: Read> Summed<R> {
    fn take_bytes(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.inner.read_exact(&mut bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        self.at += len as u64;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.take_bytes(N)?);
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while line.len() < 256 {
            match self.array::<1>()? {
                [b'\n'] => return String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into()),
                [byte] => line.push(byte),
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Writes down where everything is that is no directory. Whole or not at all, and durable when it returns.
fn write_index(path: &Path, tree: &Tree, epoch: EpochId) -> Outcome<()> {
    let fresh = path.with_extension("new");
    let file = create_private(&fresh).map_err(errno_of)?;
    let mut out = Summing { inner: BufWriter::with_capacity(1 << 20, &file), crc: 0 };
    out.put(format!("{HEADER}\n{epoch}\n").as_bytes()).map_err(errno_of)?;
    let mut todo = vec![(tree.root_key(), Vec::new())];
    while let Some((key, path)) = todo.pop() {
        let dir = tree.open_key(key, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME)?;
        for name in entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)? {
            if path.is_empty() && name.as_bytes() == RESERVED_DIR {
                continue;
            }
            let found = tree.lookup(dir.as_fd(), &name)?;
            let path = [&path[..], if path.is_empty() { b"" } else { b"/" }, name.as_bytes()].concat();
            match found.stat.mode & libc::S_IFMT {
                libc::S_IFDIR => todo.push((found.key, path)),
                _ => out.entry(found.key, &path).map_err(errno_of)?,
            }
        }
    }
    let mut finish = || {
        let crc = out.crc;
        out.put(&crc.to_le_bytes())?;
        out.inner.flush()?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_parent(path)
    };
    Ok(finish().map_err(errno_of)?)
}

/// Writes, and sums what was written.
struct Summing<W> {
    inner: W,
    crc: u32,
}

impl<W: Write> Summing<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.inner.write_all(bytes)
    }

    fn entry(&mut self, key: ObjectKey, path: &[u8]) -> io::Result<()> {
        self.put(&key.ino.to_le_bytes())?;
        self.put(&key.generation.to_le_bytes())?;
        self.put(&(path.len() as u32).to_le_bytes())?;
        self.put(path)
    }
}

/// The directory and the name that `path` has below `dir`; what lies between is made.
pub(super) fn place_below(tree: &Tree, dir: BorrowedFd<'_>, path: &[u8]) -> Outcome<(OwnedFd, Name)> {
    let mut dir = sys::reopen(dir, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    loop {
        let name = Name::new(components.next().unwrap_or_default()).map_err(|_| Errno::EINVAL)?;
        if components.peek().is_none() {
            return Ok((dir, name));
        }
        match tree.mutate().mkdir(dir.as_fd(), &name, 0o700) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        dir = tree.open_child(dir.as_fd(), &name, libc::O_RDONLY | libc::O_DIRECTORY)?;
    }
}

/// Copies content and attributes of a file into `beside`, and gives the copy its name when all of it is on the disk: what is
/// to be kept may be overwritten as soon as this returns.
pub(super) fn copy(
    tree: &Tree,
    from: BorrowedFd<'_>,
    beside: BorrowedFd<'_>,
    (dir, name): (BorrowedFd<'_>, &Name),
) -> Outcome<()> {
    let copying = Name::new(COPYING).map_err(|_| Errno::EINVAL)?;
    let mutate = tree.mutate();
    match mutate.unlink(beside, &copying) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let to = mutate.create_file(beside, &copying, 0o600)?;
    let stat = sys::fstat(from)?;
    let mut at = 0;
    while let Some(extent) = next_extent(from, at, stat.size)? {
        let (offset, len, is_data) = match extent {
            Extent::Data { offset, len } => (offset, len, true),
            Extent::Hole { offset, len } => (offset, len, false),
        };
        if is_data {
            copy_range(tree, from, to.as_fd(), (offset, offset + len))?;
        }
        at = offset + len;
    }
    mutate.truncate(to.as_fd(), stat.size)?;
    mutate.chown(to.as_fd(), Some(stat.uid), Some(stat.gid))?;
    for (xattr, value) in tree.xattrs(from, RESERVED_XATTR_PREFIX)? {
        mutate.set_xattr(to.as_fd(), &c_name(&xattr)?, &value, 0)?;
    }
    mutate.chmod(to.as_fd(), stat.mode)?;
    mutate.set_times(to.as_fd(), TimeChange::Set(stat.atime), TimeChange::Set(stat.mtime))?;
    sys::fsync(to.as_fd())?;
    mutate.rename(beside, &copying, dir, name, libc::RENAME_NOREPLACE)?;
    Ok(sys::fsync(dir)?)
}

/// By copy_file_range(2), which shares the blocks where the filesystem can; else by reading and writing.
fn copy_range(tree: &Tree, from: BorrowedFd<'_>, to: BorrowedFd<'_>, (mut at, end): (u64, u64)) -> Outcome<()> {
    const PIECE: u64 = 1 << 20;
    while at < end {
        match sys::copy_file_range(from, at, to, at, (end - at).min(1 << 30) as usize) {
            Ok(0) => return Ok(()),
            Ok(copied) => at += copied as u64,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EXDEV | Errno::EPERM) => {
                let mut piece = vec![0; PIECE.min(end - at) as usize];
                sys::read_exact_at(from, &mut piece, at)?;
                tree.mutate().write_all(to, &piece, at)?;
                at += piece.len() as u64;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
