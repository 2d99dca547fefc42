//! Root's own way into the tree of a target, which everybody else finds read-only, and the end of what keeps them out.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use dtfs::backing::guard;

use super::process::mounts_below;

/// The tree itself, by a mount of its own that nobody else sees. Tests that damage a target on purpose do it here.
pub(crate) struct Behind(OwnedFd);

impl Behind {
    pub(crate) fn of(target: &Path) -> Behind {
        Behind(guard::open_covered(&target.canonicalize().expect("the target is there")).expect("root can open it"))
    }

    /// A path to it, for this process and those that it starts.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

/// Takes away what keeps others out of `target`, as an operator does with umount(8).
pub(crate) fn uncover(target: &Path) {
    if let Ok(target) = target.canonicalize() {
        guard::remove_cover(&target).expect("root can unmount it");
    }
}

/// As [`uncover`] for every target at or below `dir`.
pub(crate) fn uncover_below(dir: &Path) {
    let Ok(dir) = dir.canonicalize() else { return };
    for (path, _) in mounts_below(&dir).iter().rev() {
        let _ = guard::remove_cover(Path::new(path));
    }
}

/// Moves the directory of a target, out of which a session may keep others at any time.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    uncover(from);
    fs::rename(from, to)
}
