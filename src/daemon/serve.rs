//! `dtfs serve --stdio DIR`: the target's end of one session.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guard::guarding_of;
use crate::applier::{Adopt, ReplicaError, Trust};
use crate::config::{Adoption, DaemonFile, MountsFile, Paths, Trusted, VolumeFile};
use crate::control::{ExitCode, Failure};
use crate::receiver::{self, OwnVolume, ServeError, ServeOptions};
use crate::wire::{PatientReader, RefuseCode, refuse, remote_command};

/// A source says something every two seconds. It may be held up by its own disk; one that says nothing for so long has gone,
/// and the place is free for its next session.
const SILENCE: Duration = Duration::from_secs(30);

/// Serves one session over standard input and output.
///
/// # Errors
/// [`Failure`] when the directory is refused or the session failed; the source was told.
pub fn serve(paths: &Paths, dir: &Path, adoption: Adoption) -> Result<(), Failure> {
    refuse_another_place(dir)?;
    let adopt = match adoption {
        Adoption::Allow => Adopt::Yes,
        Adoption::Refuse => Adopt::No,
    };
    let settings = settings(paths)?;
    let options = ServeOptions {
        dir: dir.to_owned(),
        states: paths.replicas_dir(),
        adopt,
        guarding: guarding_of(&settings),
        trust: trust_of(paths, dir, &settings)?,
        own_volume: own_volume(paths),
        inbox_cap: settings.inbox_cap.map(|cap| cap.0),
        inbox_segment: None,
    };
    super::confine::confine()?;
    // Nothing that this process makes may be narrowed by the umask it was started with.
    crate::sys::set_umask(0);
    let input =
        unbuffered_stdin().map_err(|error| Failure::new(ExitCode::Failed, format!("standard input: {error}")))?;
    receiver::serve(PatientReader::new(input, SILENCE), std::io::stdout(), &options).map_err(|error| {
        let code = match &error {
            ServeError::Replica(ReplicaError::Busy { .. }) => ExitCode::Busy,
            ServeError::Replica(ReplicaError::NotEmpty { .. } | ReplicaError::OtherVolume { .. }) => ExitCode::Refused,
            _ => ExitCode::Failed,
        };
        Failure::new(code, &error)
    })
}

/// What `dtfs.toml` of this host says. A file that cannot be understood is told to the source: somebody is waiting there.
fn settings(paths: &Paths) -> Result<DaemonFile, Failure> {
    match DaemonFile::load(paths) {
        Ok(file) => Ok(file),
        Err(error) => {
            refuse(std::io::stdout(), RefuseCode::Failed, &error.to_string())
                .map_err(|error| Failure::new(ExitCode::Failed, error))?;
            Err(error.into())
        }
    }
}

/// What the source of the copy in `dir` is trusted with: as its volume's file says, or else `dtfs.toml`. While a file that cannot
/// be understood may be the one that says so, nobody is trusted.
fn trust_of(paths: &Paths, dir: &Path, settings: &DaemonFile) -> Result<Trust, Failure> {
    let dir = resolved(dir);
    let (mut said, mut unread) = (None, None);
    for named in VolumeFile::load_all(paths)? {
        match named.file {
            Ok(file) => said = said.or(file.source.filter(|source| resolved(&source.dir) == dir).map(|s| s.trust)),
            Err(error) => unread = unread.or(Some(error)),
        }
    }
    let trusted = match (said, unread) {
        (Some(trust), _) => trust.unwrap_or(settings.trust),
        (None, Some(error)) if settings.trust == Trusted::Full => {
            refuse(std::io::stdout(), RefuseCode::Failed, &error.to_string())
                .map_err(|error| Failure::new(ExitCode::Failed, error))?;
            return Err(error.into());
        }
        (None, _) => settings.trust,
    };
    Ok(match trusted {
        Trusted::Full => Trust::Full,
        Trusted::Restricted => Trust::Restricted,
    })
}

fn resolved(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

/// Says which volume of this host a directory is, as `dtfs_mounts` has it now: also one that is not mounted is no copy's place.
fn own_volume(paths: &Paths) -> OwnVolume {
    let paths = paths.clone();
    Box::new(move |dir| {
        let mounts = match MountsFile::load(&paths) {
            Ok(mounts) => mounts,
            Err(error) => return Some(format!("one of this host's volumes, perhaps: {error}")),
        };
        let entry = mounts.entries().find(|entry| resolved(&entry.path) == resolved(dir))?;
        Some(format!("the volume {} of this host", entry.volume))
    })
}

/// Standard input without a buffer of its own, so that waiting for it says whether something is there.
fn unbuffered_stdin() -> std::io::Result<File> {
    std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
}

/// A key whose `authorized_keys` line says `command="dtfs serve --stdio DIR"` reaches DIR whatever it asks for. Somebody who
/// asks for another place is told, rather than given this one. `--adopt` counts only in the line itself.
fn refuse_another_place(dir: &Path) -> Result<(), Failure> {
    let Ok(asked) = std::env::var("SSH_ORIGINAL_COMMAND") else { return Ok(()) };
    if [&[][..], &["--adopt"]].iter().any(|extra| asked == remote_command(dir, extra)) {
        return Ok(());
    }
    let text = format!("this key reaches {} only", dir.display());
    let failure = Failure::new(ExitCode::Refused, format!("{text}, and was asked for: {}", asked.escape_debug()));
    refuse(std::io::stdout(), RefuseCode::Wrong, &text).map_err(|error| Failure::new(ExitCode::Failed, error))?;
    Err(failure)
}
