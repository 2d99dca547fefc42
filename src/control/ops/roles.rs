//! A volume that becomes a copy.

use super::{forget_volume, unexpected};
use crate::config::{Paths, VolumeName};
use crate::control::{Client, Demoted, Failure, OwnVersions, Reply, Request};

/// Makes `volume` a copy that another source may bring up to date, and forgets it here: its files stay, its journal goes.
///
/// # Errors
/// Code 3 without a daemon, code 5 while somebody uses its mount, code 7 when something would be lost in silence.
pub fn demote(paths: &Paths, volume: &VolumeName, own: OwnVersions) -> Result<Demoted, Failure> {
    let demoted = match Client::connect(paths)?.call(&Request::Demote { volume: volume.clone(), own })? {
        Reply::Demoted(demoted) => demoted,
        other => return Err(unexpected(&other)),
    };
    forget_volume(paths, volume)?;
    Ok(demoted)
}
