//! Reading files that only their owner can have written, and replacing them in one step.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{ConfigError, Edits, Paths};

/// No configuration file is larger; a larger one is a mistake or an attack.
const MAX_BYTES: u64 = 1 << 20;

/// Held by whoever edits a configuration file, so that two editors do not undo each other. Dropping it unlocks.
///
/// Where edits are only rehearsed nothing is locked, and nothing is written under it.
pub struct EditLock {
    held: Option<Flock<File>>,
}

impl EditLock {
    /// Waits for the lock of the files below `paths`. Creates the directory when it is missing.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take(paths: &Paths) -> Result<EditLock, ConfigError> {
        if paths.edits() == Edits::Rehearsed {
            return Ok(EditLock { held: None });
        }
        create_dirs(&paths.config_dir())?;
        let file = paths.config_dir().join(".lock");
        let handle = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&file)
            .map_err(|e| ConfigError::io(&file, "open", e))?;
        let held = Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, e)| ConfigError::io(&file, "lock", e))?;
        Ok(EditLock { held: Some(held) })
    }

    /// As [`replace`], unless it is only rehearsed.
    pub(super) fn replace(&self, file: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
        match self.held {
            Some(_) => replace(file, bytes),
            None => read_trusted(file).map(|_| ()),
        }
    }

    /// As [`remove`], unless it is only rehearsed.
    pub(super) fn remove(&self, file: &Path) -> Result<(), ConfigError> {
        match self.held {
            Some(_) => remove(file),
            None => Ok(()),
        }
    }
}

/// The whole file, `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is not a plain file that only its owner (root or us) can change.
pub(super) fn read_trusted(file: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let handle = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file) {
        Ok(handle) => handle,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(not_trusted(file, "it is a symlink", "replace it with the file itself"));
        }
        Err(e) => return Err(ConfigError::io(file, "open", e)),
    };
    check_trust(file, &handle)?;
    let mut bytes = Vec::new();
    handle.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| ConfigError::io(file, "read", e))?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(not_trusted(file, "it is larger than 1 MiB", "see what is in it")),
        false => Ok(Some(bytes)),
    }
}

fn check_trust(file: &Path, handle: &File) -> Result<(), ConfigError> {
    let meta = handle.metadata().map_err(|e| ConfigError::io(file, "stat", e))?;
    if !meta.is_file() {
        return Err(not_trusted(file, "it is not a plain file", "move it away"));
    }
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(not_trusted(file, "it belongs to another user", "chown root it after reading it"));
    }
    match meta.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(not_trusted(file, "its group or others may write it", "chmod go-w it after reading it")),
    }
}

fn not_trusted(file: &Path, problem: &str, remedy: &str) -> ConfigError {
    ConfigError::Unsafe { file: file.to_owned(), problem: problem.to_owned(), remedy: remedy.to_owned() }
}

/// Replaces `file` with `bytes` (mode 0644): after a crash the old or the new content is there, never a part.
///
/// # Errors
/// When the old file is not trusted, or the system refuses; the old file is then still whole.
pub(super) fn replace(file: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
    read_trusted(file)?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    create_dirs(dir)?;
    let temporary = temporary_name(file);
    let written = write_new(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, file));
    if let Err(e) = written {
        // Best effort: what failed is already being reported.
        let _ = std::fs::remove_file(&temporary);
        return Err(ConfigError::io(file, "write", e));
    }
    sync_dir(dir)
}

/// Removes `file`, durably; a missing one is fine.
///
/// # Errors
/// When the system refuses.
pub(super) fn remove(file: &Path) -> Result<(), ConfigError> {
    match std::fs::remove_file(file) {
        Ok(()) => sync_dir(file.parent().unwrap_or(Path::new("/"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(ConfigError::io(file, "remove", e)),
    }
}

fn temporary_name(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn write_new(temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    // Only an earlier process with our number, which died here, can have left one.
    let _ = std::fs::remove_file(temporary);
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(0o644).open(temporary)?;
    // The umask may have taken bits away.
    handle.set_permissions(Permissions::from_mode(0o644))?;
    handle.write_all(bytes)?;
    handle.sync_all()
}

fn create_dirs(dir: &Path) -> Result<(), ConfigError> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(|e| ConfigError::io(dir, "create", e))
}

fn sync_dir(dir: &Path) -> Result<(), ConfigError> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(|e| ConfigError::io(dir, "sync", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_with_mode_0644_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b/file");
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(read_trusted(&file).unwrap().unwrap(), b"two");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        remove(&file).unwrap();
        assert!(read_trusted(&file).unwrap().is_none());
    }

    #[test]
    fn refuses_symlinks_and_files_that_others_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        assert!(matches!(read_trusted(&file), Err(ConfigError::Unsafe { .. })));
        assert!(matches!(replace(&file, b"y"), Err(ConfigError::Unsafe { .. })));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(replace(&link, b"y"), Err(ConfigError::Unsafe { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
