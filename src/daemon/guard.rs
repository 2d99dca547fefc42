//! Keeps others out of the trees of this host's copies, also while no session is up.

use std::path::PathBuf;

use crate::applier::{Guarding, Replica};
use crate::base::Guarded;
use crate::config::{DaemonFile, Paths, Switch, VolumeFile};
use crate::control::Failure;

/// What `dtfs.toml` says.
pub(super) fn guarding(paths: &Paths) -> Result<Guarding, Failure> {
    Ok(guarding_of(&DaemonFile::load(paths)?))
}

pub(super) fn guarding_of(settings: &DaemonFile) -> Guarding {
    match settings.guard {
        Switch::On => Guarding::On,
        Switch::Off => Guarding::Off,
    }
}

/// Puts back what a reboot, or somebody, has taken away. A copy that a session works on is looked after by that one; those that
/// are reached by ssh alone are in no file of this host, and wait for their next session.
pub(super) fn put_back(paths: &Paths, guarding: Guarding) {
    for dir in copies(paths) {
        match Replica::guard_idle(&dir, &paths.replicas_dir(), guarding) {
            Ok(Some(Guarded::Restored)) => {
                tracing::warn!(dir = %dir.display(), "this copy was open to others for a time: its source will verify it");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(dir = %dir.display(), %error, "others can change this copy"),
        }
    }
}

fn copies(paths: &Paths) -> Vec<PathBuf> {
    let files = VolumeFile::load_all(paths).unwrap_or_default();
    let mut dirs = Vec::new();
    for file in files.into_iter().filter_map(|named| named.file.ok()) {
        dirs.extend(file.source.map(|source| source.dir));
        dirs.extend(file.targets.iter().filter_map(|target| target.url.local_dir()).map(PathBuf::from));
    }
    dirs
}
