//! Hosts that this one knows, and which of them may write what here.

use std::path::Path;

use super::{Told, tell};
use crate::base::Fingerprint;
use crate::config::{
    EditLock, MountsFile, Paths, Peers, SourceEntry, VolumeFile, VolumeName, check_target_dir, remove_volume_file,
    retire_source, set_peer, set_source,
};
use crate::control::{ExitCode, Failure, Request};

/// The hosts that are known.
///
/// # Errors
/// When the file cannot be understood.
pub fn list_peers(paths: &Paths) -> Result<Vec<(String, Fingerprint)>, Failure> {
    Ok(Peers::load(paths)?.iter().map(|(host, fingerprint)| (host.to_owned(), fingerprint)).collect())
}

/// Adds a host, or replaces its key.
///
/// # Errors
/// Code 2 when another host has that key: then a copy would be for both.
pub fn add_peer(paths: &Paths, host: &str, fingerprint: Fingerprint) -> Result<(), Failure> {
    let lock = EditLock::take(paths)?;
    let twin = Peers::load(paths)?
        .iter()
        .find(|(name, known)| *known == fingerprint && *name != host)
        .map(|(n, _)| n.to_owned());
    if let Some(twin) = twin {
        return Err(Failure::new(ExitCode::Usage, format!("that is the key of {twin}"))
            .with_remedy(format!("dtfs peer forget {twin}, or ask {host} for its own: dtfs peer show")));
    }
    set_peer(&lock, paths, host, Some(fingerprint))?;
    Ok(())
}

/// Forgets a host; its sessions end.
///
/// # Errors
/// Code 2 when it is not known.
pub fn forget_peer(paths: &Paths, host: &str) -> Result<(), Failure> {
    let lock = EditLock::take(paths)?;
    match set_peer(&lock, paths, host, None)? {
        true => Ok(()),
        false => Err(Failure::new(ExitCode::Usage, format!("the host {} is not known", host.escape_debug()))
            .with_remedy("dtfs peer list shows those that are")),
    }
}

/// Lets `host` write `dir` as the copy `volume`.
///
/// # Errors
/// Code 2 or 7 when the directory is refused or the name is taken; nothing is changed then.
pub fn define_source(paths: &Paths, volume: &VolumeName, wanted: SourceEntry) -> Result<(SourceEntry, Told), Failure> {
    let lock = EditLock::take(paths)?;
    let mounts = MountsFile::load(paths)?;
    if let Some(entry) = mounts.find_volume(volume) {
        let message = format!("the volume {volume} is {}: changes are made there", entry.path.display());
        return Err(Failure::new(ExitCode::Usage, message).with_remedy("give the copy another name"));
    }
    if let Some(source) = VolumeFile::load(paths, volume)?.source {
        let message = format!("the copy {volume} exists already: {} from {}", source.dir.display(), source.host);
        return Err(Failure::new(ExitCode::Usage, message).with_remedy(format!("dtfs forget source {volume}")));
    }
    let dir = std::path::absolute(&wanted.dir).unwrap_or_else(|_| wanted.dir.clone());
    let source = SourceEntry { dir: check_target_dir(paths, &dir, &mounts)?, ..wanted };
    set_source(&lock, paths, volume, Some(&source))?;
    drop(lock);
    Ok((source, tell(paths, &Request::Reload)?))
}

/// Lets nobody write the copy `volume` any more; returns who did, and where it lies. Its tree stays.
///
/// # Errors
/// Code 2 when there is none.
pub fn forget_source(paths: &Paths, volume: &VolumeName) -> Result<SourceEntry, Failure> {
    let lock = EditLock::take(paths)?;
    let settings = VolumeFile::load(paths, volume)?;
    let Some(source) = settings.source.clone() else {
        return Err(Failure::new(ExitCode::Usage, format!("{volume} is no copy that another host writes"))
            .with_remedy("the files in mounts.d that have a [source] are those"));
    };
    let is_volume = MountsFile::load(paths)?.find_volume(volume).is_some();
    match !is_volume && settings == (VolumeFile { source: settings.source.clone(), ..VolumeFile::default() }) {
        true => remove_volume_file(&lock, paths, volume)?,
        false => set_source(&lock, paths, volume, None)?,
    }
    Ok(source)
}

/// The copy that lies in `dir`, when another host may write it.
///
/// # Errors
/// When the files cannot be listed.
pub fn copy_in(paths: &Paths, dir: &Path) -> Result<Option<(VolumeName, SourceEntry)>, Failure> {
    let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let files = VolumeFile::load_all(paths)?.into_iter();
    let mut copies = files.filter_map(|named| Some((named.volume, named.file.ok()?.source?)));
    Ok(copies.find(|(_, source)| real(&source.dir) == real(dir)))
}

/// The copy `copy` becomes the volume `volume`: its source may not write any more. When both have one name, it is told so.
///
/// # Errors
/// When the files cannot be read or written.
pub fn promote_copy(paths: &Paths, copy: &VolumeName, volume: &VolumeName) -> Result<(), Failure> {
    if copy != volume {
        return forget_source(paths, copy).map(drop);
    }
    let lock = EditLock::take(paths)?;
    match VolumeFile::load(paths, copy)?.source {
        Some(source) => Ok(retire_source(&lock, paths, copy, &source.host)?),
        None => Ok(()),
    }
}
