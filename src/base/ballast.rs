//! Room that is kept for a database on a full disk: SQLite cannot even delete there, because the log that it writes a
//! deletion to has to grow first.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Enough for the log of a few hundred pages.
const BYTES: i64 = 1 << 20;

/// A file beside a database that only takes room. It is given up when the disk is full, so that what is under way can be
/// committed, and taken again at the next start, when there is room.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    held: bool,
}

impl Ballast {
    /// Takes the room, in the file `ballast` of `dir`; none on a disk that is full, or nearly: what was given up there is left
    /// to the database.
    ///
    /// # Errors
    /// As open(2) and fallocate(2), but for a full disk.
    pub fn take(dir: &Path) -> io::Result<Ballast> {
        let path = dir.join("ballast");
        let held = match std::fs::metadata(&path).map(|meta| meta.len()) {
            Ok(len) if len >= BYTES as u64 => true,
            _ => has_room(dir)? && allocate(&path)?,
        };
        Ok(Ballast { path, held })
    }

    /// Gives the room up. True when there was any.
    pub fn release(&mut self) -> bool {
        let released = std::mem::take(&mut self.held) && std::fs::remove_file(&self.path).is_ok();
        if released {
            tracing::warn!(path = %self.path.display(), "the disk is full: the room kept for the database is given up");
        }
        released
    }
}

fn has_room(dir: &Path) -> io::Result<bool> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_free() as u64 * stat.fragment_size() as u64 >= 16 * BYTES as u64)
}

/// False when the disk has no room.
fn allocate(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path) {
        Err(error) if is_full(&error) => return Ok(false),
        file => file?,
    };
    match fallocate(file.as_fd(), FallocateFlags::empty(), 0, BYTES) {
        // A filesystem that cannot preallocate has no ballast.
        Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EOPNOTSUPP) => {
            std::fs::remove_file(path)?;
            Ok(false)
        }
        done => Ok(done.map(|()| true)?),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_taken_once_and_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::take(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("ballast")).unwrap().len(), BYTES as u64);
        assert!(ballast.release());
        assert!(!ballast.release());
        assert!(!dir.path().join("ballast").exists());
        assert!(Ballast::take(dir.path()).unwrap().release());
    }
}
