//! This host's key: made once, and in a file that nobody else may read.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};

use crate::config::Paths;
use crate::control::{ExitCode, Failure};
use crate::wire::Identity;

/// Reads the key; makes it the first time.
///
/// # Errors
/// When it cannot be read or made, or others could have read it.
pub(super) fn identity(paths: &Paths) -> io::Result<Identity> {
    let file = paths.identity_file();
    let open = || OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&file);
    let handle = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(paths)?;
            open()?
        }
        outcome => outcome?,
    };
    let meta = handle.metadata()?;
    if meta.mode() & 0o077 != 0 || meta.uid() != nix::unistd::geteuid().as_raw() {
        let text = format!("{}: others can read this host's key; remove it, and a new one is made", file.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut pem = String::new();
    handle.take(64 << 10).read_to_string(&mut pem)?;
    Identity::from_pem(&pem).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// Two that make it at once end with the same one.
fn make(paths: &Paths) -> io::Result<()> {
    let file = paths.identity_file();
    let dir = file.parent().ok_or(io::ErrorKind::NotFound)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let fresh = dir.join(format!(".identity.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    handle.write_all(Identity::generate()?.as_bytes())?;
    handle.sync_all()?;
    let linked = std::fs::hard_link(&fresh, &file);
    std::fs::remove_file(&fresh)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }?;
    std::fs::File::open(dir)?.sync_all()
}

/// What other hosts know this one by.
///
/// # Errors
/// When its key cannot be read or made.
pub fn show_identity(paths: &Paths, output: &mut dyn Write) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(ExitCode::Failed, error.to_string());
    writeln!(output, "{}", identity(paths).map_err(failed)?.fingerprint()).map_err(failed)
}
