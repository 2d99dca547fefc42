//! Where the memory of volumes lies that outlives the daemon: on a filesystem in memory, for it is written all the time and
//! of no use after a restart of the system.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::config::{Paths, VolumeName};
use crate::sys;

/// Everyone may make files here, nobody may touch another's.
const ANYWHERE: &str = "/dev/shm";
/// Below the runtime directory: where the files are when they are not in it.
const LINK: &str = "memory";

/// The file of `volume`. The runtime directory is in memory on a system's own root; below another root, where it is not,
/// the files lie in `/dev/shm`, and a link leads there.
///
/// # Errors
/// As mkdir(2); `PermissionDenied` when somebody else made the directory.
pub(super) fn memory_file(paths: &Paths, volume: &VolumeName) -> io::Result<PathBuf> {
    let run = paths.run_dir();
    private_dir(&run)?;
    if is_in_memory(&run)? || !is_in_memory(Path::new(ANYWHERE)).unwrap_or(false) {
        return Ok(run.join(format!("{volume}.memory")));
    }
    let name = blake3::hash(run.canonicalize()?.as_os_str().as_bytes()).to_hex();
    let dir = Path::new(ANYWHERE).join(format!("dtfs-{}", &name[..16]));
    private_dir(&dir)?;
    match symlink(&dir, run.join(LINK)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    Ok(dir.join(format!("{volume}.memory")))
}

/// Removes what lies in `/dev/shm` for these paths, before they are removed themselves.
///
/// # Errors
/// As readlink(2) and unlink(2); that nothing lies there is none.
pub(super) fn remove_memory(paths: &Paths) -> io::Result<()> {
    let removed = std::fs::read_link(paths.run_dir().join(LINK)).and_then(std::fs::remove_dir_all);
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_in_memory(dir: &Path) -> io::Result<bool> {
    let dir = std::fs::File::open(dir)?;
    Ok(sys::fstatfs(dir.as_fd())?.magic == libc::TMPFS_MAGIC)
}

/// Makes the directory, or finds one that nobody else can have put there.
fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o77 == 0;
    if ours { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}
