//! The directory of segment files: creating, taking into use, recycling.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::layout::SegmentHeader;
use crate::base::faults;
use crate::journal::error::{JournalError, io, std_io};
use crate::sys;

/// FS_NOCOW_FL: on btrfs, overwrite in place. A copied block would need new space and break recycling's point.
const NOCOW: u32 = 0x0080_0000;
const ZEROS: &[u8] = &[0; 1 << 20];

/// How far ahead of the end blocks are written, when frames are small: they are when programs wait for each of them.
const AHEAD: u64 = 256 << 10;
const SMALL_FRAME: u64 = 16 << 10;

/// An open segment file.
pub(super) struct SegmentFile {
    fd: OwnedFd,
    pub(super) path: PathBuf,
    /// Its size, all of it allocated.
    pub(super) capacity: u64,
    /// Up to here its blocks are known to have been written, so that writing there changes data and no block map.
    written: AtomicU64,
}

/// The directory that holds them.
pub(super) struct SegmentDir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What the directory holds.
#[derive(Default)]
pub(super) struct Listing {
    /// Segments in use, by number.
    pub(super) segments: Vec<u64>,
    /// Names of files that wait to be used again.
    pub(super) free: Vec<String>,
}

impl SegmentDir {
    /// Opens the directory, which is created (0700) when it is missing.
    pub(super) fn open(path: &Path) -> Result<SegmentDir, JournalError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(std_io("create directory", path))?;
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io("open directory", path)(Errno::EINVAL))?;
        let cwd = nix::fcntl::AT_FDCWD;
        let fd = sys::openat(cwd.as_fd(), &name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
            .map_err(io("open directory", path))?;
        set_nocow(fd.as_fd());
        sync_parent(path)?;
        Ok(SegmentDir { fd, path: path.to_owned() })
    }

    /// Reads the names. Others than ours are left alone.
    pub(super) fn list(&self) -> Result<Listing, JournalError> {
        let mut listing = Listing::default();
        let entries = std::fs::read_dir(&self.path).map_err(std_io("list", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(std_io("list", &self.path))?;
            let name = entry.file_name();
            let Some((stem, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            match (stem.parse(), extension) {
                (Ok(no), "seg") if name == *segment_name(no) => listing.segments.push(no),
                (Ok(_), "free") => listing.free.push(format!("{stem}.free")),
                _ => {}
            }
        }
        listing.segments.sort_unstable();
        listing.free.sort_unstable();
        Ok(listing)
    }

    /// Opens a file that is there.
    pub(super) fn open_file(&self, name: &str) -> Result<SegmentFile, JournalError> {
        let path = self.path.join(name);
        let fd = sys::openat(self.fd.as_fd(), &c_name(name, &path)?, libc::O_RDWR, 0).map_err(io("open", &path))?;
        let stat = sys::fstat(fd.as_fd()).map_err(io("stat", &path))?;
        Ok(SegmentFile { fd, path, capacity: stat.size, written: AtomicU64::new(0) })
    }

    /// A new file of `bytes`, allocated, named as free with the number `no`. Leaves nothing behind when it fails.
    pub(super) fn create_free(&self, no: u64, bytes: u64) -> Result<SegmentFile, JournalError> {
        let name = free_name(no);
        let path = self.path.join(&name);
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
        let fd = sys::openat(self.fd.as_fd(), &c_name(&name, &path)?, flags, 0o600).map_err(io("create", &path))?;
        set_nocow(fd.as_fd());
        let allocated =
            faults::point("journal.allocate").and_then(|()| allocate(fd.as_fd(), bytes)).map_err(io("allocate", &path));
        let file = SegmentFile { fd, path, capacity: bytes, written: AtomicU64::new(0) };
        match allocated {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = self.remove(file);
                Err(error)
            }
        }
    }

    /// Takes a free file into use: header first, name second, each durable, so that a `.seg` always has its own header.
    pub(super) fn activate(&self, mut file: SegmentFile, header: &SegmentHeader) -> Result<SegmentFile, JournalError> {
        file.write(&[&header.encode()], 0)?;
        file.sync()?;
        self.rename(&mut file, &segment_name(header.segment))?;
        self.sync()?;
        Ok(file)
    }

    /// Makes a file free under the number `no`, which no other free file has. Durable before the file may be written again: otherwise a crash could show another
    /// segment's bytes under this one's name.
    pub(super) fn retire(&self, file: &mut SegmentFile, no: u64) -> Result<(), JournalError> {
        self.rename(file, &free_name(no))?;
        self.sync()
    }

    /// Removes a file's name.
    pub(super) fn remove(&self, file: SegmentFile) -> Result<(), JournalError> {
        std::fs::remove_file(&file.path).map_err(std_io("remove", &file.path))
    }

    /// Removes a name without opening it.
    pub(super) fn remove_name(&self, name: &str) -> Result<(), JournalError> {
        let path = self.path.join(name);
        std::fs::remove_file(&path).map_err(std_io("remove", &path))
    }

    /// Makes the names durable.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        sys::fsync(self.fd.as_fd()).map_err(io("fsync directory", &self.path))
    }

    /// The path of segment `no`.
    pub(super) fn segment_path(&self, no: u64) -> PathBuf {
        self.path.join(segment_name(no))
    }

    fn rename(&self, file: &mut SegmentFile, name: &str) -> Result<(), JournalError> {
        let path = self.path.join(name);
        std::fs::rename(&file.path, &path).map_err(std_io("rename", &file.path))?;
        file.path = path;
        Ok(())
    }
}

impl SegmentFile {
    /// Whether it is the free file with the number `no`.
    pub(super) fn is_named_free(&self, no: u64) -> bool {
        self.path.file_name().is_some_and(|name| name == &*free_name(no))
    }

    /// Writes all of `parts` at `offset`.
    pub(super) fn write(&self, parts: &[&[u8]], offset: u64) -> Result<(), JournalError> {
        faults::point("journal.pwrite")
            .and_then(|()| sys::pwritev_all(self.fd.as_fd(), parts, offset))
            .map_err(io("write", &self.path))
    }

    /// Zeros to write behind a frame that ends at `end`, where nothing was written before.
    ///
    /// The first write to an allocated block changes the file's block map, and fdatasync then waits for the filesystem's
    /// own journal; a later one does not, and takes half the time. So the blocks of the next small frames are written with
    /// the first one that comes to them. Behind the end of the log nobody reads, and zeros are what stands there anyway.
    pub(super) fn ahead(&self, start: u64, end: u64) -> &'static [u8] {
        if end <= self.written.load(Ordering::Relaxed) {
            return &[];
        }
        let small = end - start <= SMALL_FRAME;
        let ahead = if small { AHEAD.min(self.capacity.saturating_sub(end)) } else { 0 };
        self.written.store(end + ahead, Ordering::Relaxed);
        &ZEROS[..ahead as usize]
    }

    /// Begins to write what is in memory from `offset` on.
    pub(super) fn start_writeback(&self, offset: u64) {
        sys::start_writeback(self.fd.as_fd(), offset);
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        faults::step("journal.fdatasync", || sys::fdatasync(self.fd.as_fd())).map_err(io("fdatasync", &self.path))
    }

    /// Fills `buffer` from `offset`; ENODATA where the file is shorter.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), JournalError> {
        sys::read_exact_at(self.fd.as_fd(), buffer, offset).map_err(io("read", &self.path))
    }
}

/// Makes the name of `path` itself durable.
pub(in crate::journal) fn sync_parent(path: &Path) -> Result<(), JournalError> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(std_io("fsync directory", parent))
}

/// The file name of a segment.
pub(super) fn segment_name(no: u64) -> String {
    format!("{no:08}.seg")
}

fn free_name(no: u64) -> String {
    format!("{no:08}.free")
}

fn c_name(name: &str, path: &Path) -> Result<CString, JournalError> {
    CString::new(name).map_err(|_| io("open", path)(Errno::EINVAL))
}

/// Filesystems without the flag answer with an error, which is as good.
fn set_nocow(fd: BorrowedFd<'_>) {
    if let Ok(flags) = sys::file_flags_get(fd) {
        let _ = sys::file_flags_set(fd, sys::FileFlags(flags.0 | NOCOW));
    }
}

/// Space for the whole file, so that writing to it later cannot meet a full disk.
fn allocate(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    match sys::fallocate(fd, 0, 0, bytes) {
        Err(Errno::EOPNOTSUPP) => fill(fd, bytes),
        other => other,
    }
}

fn fill(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(ZEROS.len() as u64);
        sys::pwritev_all(fd, &[&ZEROS[..len as usize]], offset)?;
        offset += len;
    }
    Ok(())
}
