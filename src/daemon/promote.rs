//! `dtfs promote`: a copy becomes a master.
//!
//! Every step can be repeated. What decides is the transaction that founds the journal; from then on the directory is the
//! volume's, and only what reminds of a copy is left to be taken away.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::volume::journal_options;
use crate::applier::ReplicaError;
use crate::base::Tid;
use crate::config::{MountsFile, OpenFiles, Paths, VolumeFile, VolumeName};
use crate::control::ops::{self, MountHow, Rehearsal, Which};
use crate::control::{ExitCode, Failure, Promotion, Verdict, try_connect};
use crate::journal::{Founding, Journal, JournalError};
use crate::receiver::{self, Force, RaiseError, Raised};

/// Makes the copy in `wanted.dir` a master volume, and mounts it when a daemon runs.
///
/// # Errors
/// Code 7 while it is converging, unless that does not matter; code 5 while a session is using it; code 2 when the name is
/// taken.
pub fn promote(paths: &Paths, wanted: &Promotion, out: &mut dyn Write) -> Result<(), Failure> {
    let dir = place_of(paths, wanted)?;
    let copy = ops::copy_in(paths, &dir)?.map(|(copy, _)| copy);
    let name = name_of(wanted, copy.as_ref(), &dir)?;
    refuse_taken(paths, &name, &dir)?;
    let force = if wanted.even_converging { Force::Yes } else { Force::No };
    let raised = raise(paths, &dir, wanted.at, force).map_err(|error| refused(&dir, error))?;
    let store = paths.volume_state(&name);
    let options = journal_options(&store, &VolumeFile::load(paths, &name)?)?;
    let founding =
        Founding { history: &raised.history, fork: raised.fork, spaces: &raised.spaces, objects: &raised.objects };
    let epoch = Journal::found(&store, &options, &founding).map_err(cannot_found)?;
    let text = told(&name, &dir, &raised, &epoch.to_string());
    raised.leave().map_err(|error| failed(&format!("{} is a master, but its id is left: {error}", dir.display())))?;
    if let Some(copy) = &copy {
        ops::promote_copy(paths, copy, &name)?;
    }
    ops::define_volume(paths, &name, &dir)?;
    // A source that calls right now finds the lock taken, or the volume defined: never an empty directory that is nobody's.
    drop(raised);
    mount(paths, &dir)?;
    writeln!(out, "{text}").map_err(|error| failed(&format!("cannot write the result: {error}")))
}

/// How long the session of a source that has gone may take to end.
const SESSION_ENDS: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A source that was just lost leaves a session behind that finishes what it has received.
fn raise(paths: &Paths, dir: &Path, at: Option<Tid>, force: Force) -> Result<Raised, RaiseError> {
    let deadline = Instant::now() + SESSION_ENDS;
    loop {
        match receiver::raise(dir, &paths.replicas_dir(), at, force) {
            Err(RaiseError::Replica(ReplicaError::Busy { .. })) if Instant::now() < deadline => {
                std::thread::sleep(LOOK_EVERY);
            }
            outcome => return outcome,
        }
    }
}

/// The directory that was named, or that of the copy of that name.
fn place_of(paths: &Paths, wanted: &Promotion) -> Result<PathBuf, Failure> {
    let named = wanted.dir.to_str().filter(|text| !text.contains('/')).and_then(|text| VolumeName::new(text).ok());
    let source = match named {
        Some(name) => VolumeFile::load(paths, &name)?.source,
        None => None,
    };
    let dir = source.map_or_else(|| wanted.dir.clone(), |source| source.dir);
    dir.canonicalize().map_err(|error| failed(&format!("{}: {error}", dir.display())))
}

fn name_of(wanted: &Promotion, copy: Option<&VolumeName>, dir: &Path) -> Result<VolumeName, Failure> {
    match wanted.name.as_ref().or(copy) {
        Some(name) => Ok(name.clone()),
        None => Ok(VolumeName::new(dir.file_name().and_then(|name| name.to_str()).unwrap_or_default())?),
    }
}

fn refuse_taken(paths: &Paths, name: &VolumeName, dir: &Path) -> Result<(), Failure> {
    let mounts = MountsFile::load(paths)?;
    if let Some(entry) = mounts.entries().find(|entry| entry.path == dir) {
        return Err(Failure::new(ExitCode::Usage, format!("{} is the volume {} already", dir.display(), entry.volume)));
    }
    match mounts.find_volume(name) {
        None => Ok(()),
        Some(entry) => {
            Err(Failure::new(ExitCode::Usage, format!("the volume {name} is already {}", entry.path.display()))
                .with_remedy("choose another name with: --as NAME"))
        }
    }
}

fn told(name: &VolumeName, dir: &Path, raised: &Raised, epoch: &str) -> String {
    let fork = raised.fork.tid;
    let lost = match raised.received > fork {
        true => format!("; received and given up: everything behind {fork} up to {}", raised.received),
        false => String::new(),
    };
    let count = raised.objects.len();
    format!(
        "{} is the master volume {name} now: epoch {epoch} begins behind {fork}, {count} objects{lost}",
        dir.display()
    )
}

fn mount(paths: &Paths, dir: &Path) -> Result<(), Failure> {
    if try_connect(paths)?.is_none() {
        return Ok(());
    }
    let how = MountHow { rehearsal: Rehearsal::ForReal, open_files: OpenFiles::Refuse };
    let reply = ops::mount(paths, &Which::Paths(vec![dir.to_owned()]), how)?;
    let refused = reply.verdicts.into_iter().find_map(|verdict| match verdict.verdict {
        Verdict::NotDone(failure) => Some(failure),
        _ => None,
    });
    refused.map_or(Ok(()), Err)
}

fn cannot_found(error: JournalError) -> Failure {
    match &error {
        JournalError::Foreign { .. } => Failure::new(ExitCode::Usage, &error)
            .with_remedy("another volume of that name had its journal there: choose another name with --as NAME"),
        _ => failed(&error.to_string()),
    }
}

fn refused(dir: &Path, error: RaiseError) -> Failure {
    let code = match &error {
        RaiseError::Converging { .. } | RaiseError::Performed { .. } => ExitCode::Refused,
        RaiseError::NoReplica { .. } => ExitCode::Usage,
        RaiseError::Replica(ReplicaError::Busy { .. }) => ExitCode::Busy,
        _ => ExitCode::Failed,
    };
    let remedy = match &error {
        RaiseError::Converging { .. } => {
            "wait until its source says that it is consistent, or take it as it is with --force"
        }
        RaiseError::Replica(ReplicaError::Busy { .. }) => {
            "its source is still there: stop it, or forget the target there, first"
        }
        RaiseError::NoReplica { .. } => "name the directory of a target's tree on this host",
        RaiseError::Performed { .. } => "name that TID or a later one with --at, or take everything without --at",
        _ => return Failure::new(code, format!("{}: {error}", dir.display())),
    };
    Failure::new(code, format!("{}: {error}", dir.display())).with_remedy(remedy)
}

fn failed(text: &str) -> Failure {
    Failure::new(ExitCode::Failed, text)
}
