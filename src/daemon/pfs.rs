//! HAMMER's pfs directives.

use std::io::Write;
use std::path::Path;

use super::volume::{Volume, VolumeError, open_journal};
use crate::applier::{Replica, ReplicaError};
use crate::base::VolumeUuid;
use crate::config::{MountsFile, Paths, VolumeFile, VolumeName, check_target_dir};
use crate::control::ops::{self, MountHow, Rehearsal, Which, resolve_volume};
use crate::control::{ExitCode, Failure, PfsRole, PfsStatus, PfsVerb, Verdict, try_connect};
use crate::journal::Journal;

/// Does `verb` and shows on `out` what the volume or the copy is.
///
/// # Errors
/// [`Failure`] with the codes of `define volume` for a master, of a target's directory for a slave.
pub fn pfs(paths: &Paths, verb: &PfsVerb, out: &mut dyn Write) -> Result<(), Failure> {
    let (title, status) = match verb {
        PfsVerb::Master { dir } => (dir.display().to_string(), master(paths, dir)?),
        PfsVerb::Slave { dir, shared } => (dir.display().to_string(), slave(paths, dir, *shared)?),
        PfsVerb::Status { volume } => (volume.clone(), status(paths, volume)?),
    };
    writeln!(out, "{title} {{\n{status}\n}}")
        .map_err(|error| Failure::new(ExitCode::Failed, format!("cannot write the result: {error}")))
}

fn master(paths: &Paths, dir: &Path) -> Result<PfsStatus, Failure> {
    make_dir(dir)?;
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = VolumeName::new(name)?;
    let (entry, _) = ops::define_volume(paths, &name, dir)?;
    if try_connect(paths)?.is_none() {
        // Its identity is made with its journal, which the daemon finds.
        let (journal, _) = open_journal(paths, &entry, &VolumeFile::load(paths, &name)?)?;
        let status = of_journal(&journal, name.as_str(), &paths.volume_state(&name))?;
        journal.close_clean().map_err(VolumeError::from)?;
        return Ok(status);
    }
    let how = MountHow { rehearsal: Rehearsal::ForReal, open_files: crate::config::OpenFiles::Refuse };
    let reply = ops::mount(paths, &Which::Paths(vec![entry.path]), how)?;
    match reply.verdicts.into_iter().find_map(|verdict| match verdict.verdict {
        Verdict::NotDone(failure) => Some(failure),
        _ => None,
    }) {
        Some(failure) => Err(failure),
        None => ops::pfs_status(paths, name),
    }
}

fn slave(paths: &Paths, dir: &Path, shared: VolumeUuid) -> Result<PfsStatus, Failure> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let dir = check_target_dir(paths, &absolute, &MountsFile::load(paths)?)?;
    Replica::await_source(&dir, &paths.replicas_dir(), shared, super::guard::guarding(paths)?).map_err(refused)?;
    of_replica(paths, &dir)?.ok_or_else(|| Failure::new(ExitCode::Failed, format!("{} is no copy", dir.display())))
}

fn status(paths: &Paths, text: &str) -> Result<PfsStatus, Failure> {
    if text.contains('/')
        && let Some(status) = of_replica(paths, Path::new(text))?
    {
        return Ok(status);
    }
    ops::pfs_status(paths, resolve_volume(paths, text)?)
}

/// What the directory is, when it is a copy.
fn of_replica(paths: &Paths, dir: &Path) -> Result<Option<PfsStatus>, Failure> {
    let Some(about) = Replica::describe(dir, &paths.replicas_dir()).map_err(refused)? else { return Ok(None) };
    Ok(Some(PfsStatus {
        end_tid: about.applied.tid,
        shared_uuid: about.volume.to_string(),
        unique_uuid: about.id.to_string(),
        label: String::new(),
        role: PfsRole::Slave,
        snapshots: None,
    }))
}

/// What an open volume is.
pub(super) fn of_volume(volume: &Volume) -> Result<PfsStatus, Failure> {
    of_journal(&volume.journal, volume.name.as_str(), &volume.store_dir)
}

fn of_journal(journal: &Journal, label: &str, store_dir: &Path) -> Result<PfsStatus, Failure> {
    Ok(PfsStatus {
        end_tid: journal.durable_tid(),
        shared_uuid: journal.identity().volume.to_string(),
        unique_uuid: journal.unique_id().map_err(VolumeError::from)?.to_string(),
        label: label.to_owned(),
        role: PfsRole::Master,
        snapshots: Some(store_dir.join("snapshots")),
    })
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Failure::new(ExitCode::Failed, format!("cannot make {}: {error}", dir.display())))
        }
        _ => Ok(()),
    }
}

fn refused(error: ReplicaError) -> Failure {
    let code = match &error {
        ReplicaError::Busy { .. } => ExitCode::Busy,
        ReplicaError::NotEmpty { .. } | ReplicaError::OtherVolume { .. } => ExitCode::Refused,
        _ => ExitCode::Failed,
    };
    Failure::new(code, error)
}
