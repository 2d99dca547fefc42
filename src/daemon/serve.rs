//! `dtfs serve --stdio DIR`: the target's end of one session.

use std::path::Path;

use crate::applier::{Adopt, ReplicaError};
use crate::config::{Adoption, Paths};
use crate::control::{ExitCode, Failure};
use crate::receiver::{self, ServeError, ServeOptions};

/// Serves one session over standard input and output.
///
/// # Errors
/// [`Failure`] when the directory is refused or the session failed; the source was told.
pub fn serve(paths: &Paths, dir: &Path, adoption: Adoption) -> Result<(), Failure> {
    let adopt = match adoption {
        Adoption::Allow => Adopt::Yes,
        Adoption::Refuse => Adopt::No,
    };
    let options =
        ServeOptions { dir: dir.to_owned(), states: paths.replicas_dir(), adopt, inbox_cap: None, inbox_segment: None };
    super::confine::confine()?;
    // Nothing that this process makes may be narrowed by the umask it was started with.
    crate::sys::set_umask(0);
    receiver::serve(std::io::stdin().lock(), std::io::stdout(), &options).map_err(|error| {
        let code = match &error {
            ServeError::Replica(ReplicaError::Busy { .. }) => ExitCode::Busy,
            ServeError::Replica(ReplicaError::NotEmpty { .. } | ReplicaError::OtherVolume { .. }) => ExitCode::Refused,
            _ => ExitCode::Failed,
        };
        Failure::new(code, &error)
    })
}
