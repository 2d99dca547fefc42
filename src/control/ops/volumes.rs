//! Volumes: defined and forgotten.

use std::io;
use std::path::{Path, PathBuf};

use super::entries::{refuse_mounted, write_entry};
use super::{Told, tell};
use crate::config::{
    EditLock, Edits, MountEntry, MountOptions, MountsFile, Paths, VolumeFile, VolumeName, check_volume_dir,
    create_volume_file, remove_volume_file,
};
use crate::control::{ExitCode, Failure, Request, try_connect};

/// Makes `dir` the volume `name`: an entry in `dtfs_mounts`, a file in `mounts.d`. Nothing is mounted.
///
/// # Errors
/// Code 2 or 7 when the directory is refused or the name is taken; nothing is changed then.
pub fn define_volume(paths: &Paths, name: &VolumeName, dir: &Path) -> Result<(MountEntry, Told), Failure> {
    let lock = EditLock::take(paths)?;
    let options = MountOptions { volume: Some(name.clone()), ..MountOptions::default() };
    // The file of the volume comes first, because an entry without its file would run with the defaults after a
    // crash in between. So everything that can refuse the entry is asked before.
    let mounts = MountsFile::load(paths)?;
    check_volume_dir(paths, &std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()), &mounts)?;
    refuse_taken(&mounts, name)?;
    create_volume_file(&lock, paths, name)?;
    let entry = write_entry(&lock, paths, dir, &options)?;
    drop(lock);
    Ok((entry, tell(paths, &Request::Reload)?))
}

/// Writes down that this host is the source of `volume`. Returns where its tree is.
///
/// # Errors
/// Code 2 when it has no entry, or its file cannot be understood; code 7 when another host is its source.
pub fn define_master(paths: &Paths, volume: &VolumeName) -> Result<(PathBuf, Told), Failure> {
    let lock = EditLock::take(paths)?;
    if let Some(source) = VolumeFile::load(paths, volume)?.source {
        let message = format!("{volume} is a copy, written by {}", source.host);
        return Err(
            Failure::new(ExitCode::Refused, message).with_remedy(format!("dtfs promote {volume} makes it the master"))
        );
    }
    let mounts = MountsFile::load(paths)?;
    let Some(entry) = mounts.find_volume(volume) else {
        let message = format!("the volume {volume} has no entry in {}", mounts.file().display());
        return Err(Failure::new(ExitCode::Usage, message)
            .with_remedy(format!("define it first: dtfs define volume {volume} DIR")));
    };
    create_volume_file(&lock, paths, volume)?;
    drop(lock);
    Ok((entry.path.clone(), tell(paths, &Request::Reload)?))
}

fn refuse_taken(mounts: &MountsFile, name: &VolumeName) -> Result<(), Failure> {
    match mounts.find_volume(name) {
        None => Ok(()),
        Some(entry) => {
            let message = format!("the volume {name} is already {}", entry.path.display());
            Err(Failure::new(ExitCode::Usage, message).with_remedy("choose another name"))
        }
    }
}

/// Forgets a volume: its entry, its file, its journal and its cursors. User files and the trees of targets stay as
/// they are. Returns what was done, one sentence each.
///
/// # Errors
/// Code 5 while it is mounted; nothing is changed then.
pub fn forget_volume(paths: &Paths, volume: &VolumeName) -> Result<Vec<String>, Failure> {
    let mounts = MountsFile::load(paths)?;
    let entry = mounts.find_volume(volume).cloned();
    if let Some(entry) = &entry {
        refuse_mounted(paths, &entry.path)?;
    }
    if let Some(mut client) = try_connect(paths)? {
        client.call(&Request::Forget { volume: volume.clone(), target: None })?;
    }
    let mut notes = edit_out(paths, volume)?;
    notes.extend(remove_state(paths, volume)?);
    if let Some(store) = entry.and_then(|entry| entry.options.store) {
        notes.push(format!("its journal in {} was kept: remove it when nobody needs it", store.display()));
    }
    // The daemon's own list of volumes follows the files.
    tell(paths, &Request::Reload)?;
    Ok(notes)
}

/// Takes the volume out of both files.
fn edit_out(paths: &Paths, volume: &VolumeName) -> Result<Vec<String>, Failure> {
    let lock = EditLock::take(paths)?;
    let mut notes = Vec::new();
    let mut mounts = MountsFile::load(paths)?;
    let path = mounts.find_volume(volume).map(|entry| entry.path.clone());
    if let Some(path) = path {
        mounts.remove(&path);
        mounts.save(&lock)?;
        notes.push(format!("removed the entry {} from {}", path.display(), mounts.file().display()));
    }
    let file = paths.volume_file(volume);
    if file.exists() {
        remove_volume_file(&lock, paths, volume)?;
        notes.push(format!("removed {}", file.display()));
    }
    Ok(notes)
}

/// Removes the volume's directory below our own state directory. A symlink in its place is left alone: what it leads
/// to is not known to be ours.
fn remove_state(paths: &Paths, volume: &VolumeName) -> Result<Option<String>, Failure> {
    let state = paths.volume_state(volume);
    let failed =
        |e: io::Error| Failure::new(ExitCode::Partly, format!("cannot remove the journal {}: {e}", state.display()));
    match std::fs::symlink_metadata(&state) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
        Ok(meta) if !meta.is_dir() => Ok(Some(format!("{} is not a directory and was kept", state.display()))),
        Ok(_) if paths.edits() == Edits::Rehearsed => Ok(Some(format!("removed the journal {}", state.display()))),
        Ok(_) => {
            std::fs::remove_dir_all(&state).map_err(failed)?;
            Ok(Some(format!("removed the journal {}", state.display())))
        }
    }
}
